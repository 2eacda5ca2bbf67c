"""The options that only `idefics bench` has."""

from __future__ import annotations

from typing import Annotated

import typer

from idefics_cli.cli import options

_PANEL = "Measuring"

Scenarios = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="SCENARIO",
        help="start, load, tune, serve, vision, prefill, decode, chat or caption; without one, all."
        " A folder of pictures may follow `caption`. `tune` and `serve` need the extras of the same"
        " names, and `serve` also `transformers[serving]`. `scale`, which"
        " only runs by its name, measures worker processes with stand-ins for models.",
        show_default=False,
    ),
]
BatchSizes = Annotated[
    str | None,
    typer.Option(
        metavar="N,N",
        help="Numbers of requests at a time. (default: 1,4,16; 1,4 for large models on a CPU)",
        rich_help_panel=_PANEL,
    ),
]
Contexts = Annotated[
    str | None,
    typer.Option(
        metavar="N,N",
        help="Lengths of the prompts in tokens. (default: 800,2000)",
        rich_help_panel=_PANEL,
    ),
]
NewTokens = Annotated[
    str | None,
    typer.Option(
        metavar="N", help="Length of an answer in tokens. (default: 24)", rich_help_panel=_PANEL
    ),
]
Rounds = Annotated[
    str | None,
    typer.Option(
        metavar="N", help="Most rounds for a figure. (default: 5)", rich_help_panel=_PANEL
    ),
]
Seconds = Annotated[
    str | None,
    typer.Option(
        metavar="X",
        help="Begin no more rounds for a figure after X seconds. (default: 30; 1.5 for demo)",
        rich_help_panel=_PANEL,
    ),
]
Quick = Annotated[
    bool,
    typer.Option(
        "--quick",
        metavar="",
        help="Measure fewer figures in fewer rounds.",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
Shape = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Measure random weights of the shape of smolvlm-256m, smolvlm-500m, smolvlm-2.2b, "
        "idefics2-8b or idefics3-8b; no download.",
        rich_help_panel=options.MODEL_PANEL,
    ),
]
Layers = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Cut the shape to N text layers and N vision layers.",
        rich_help_panel=options.MODEL_PANEL,
    ),
]
VisionLayers = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Cut the shape to N vision layers.",
        rich_help_panel=options.MODEL_PANEL,
    ),
]
KeepWeights = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Keep the random weights in this folder and use them again.",
        rich_help_panel=options.MODEL_PANEL,
    ),
]
PlainQuantization = Annotated[
    str | None,
    typer.Option(
        metavar="METHOD",
        help="Quantization of plain transformers, if idefics has another: none, 8bit or 4bit.",
        rich_help_panel=options.MODEL_PANEL,
    ),
]
ReportFile = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="Write the figures of all rounds to this JSON file.",
        rich_help_panel=options.OUTPUT_PANEL,
    ),
]
Plot = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="Draw the ratios into this PNG file.",
        rich_help_panel=options.OUTPUT_PANEL,
    ),
]
