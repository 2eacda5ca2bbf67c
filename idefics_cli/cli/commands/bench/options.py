"""The options that only `idefics bench` has."""

from __future__ import annotations

from typing import Annotated

import typer

from idefics_cli.cli import options

_PANEL = "Measuring"

Scenarios = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[SCENARIO]...",
        help="start, load, vision, prefill, decode, chat or caption; all if absent. After "
        "`caption`, a folder of pictures.",
        show_default=False,
    ),
]
BatchSizes = Annotated[
    str | None,
    typer.Option(
        metavar="N,N",
        help="Requests at a time. (default: 1,4,16; 1,4 for large models on a CPU)",
        rich_help_panel=_PANEL,
    ),
]
Contexts = Annotated[
    str | None,
    typer.Option(metavar="N,N", help="Prompt tokens. (default: 800,2000)", rich_help_panel=_PANEL),
]
NewTokens = Annotated[
    str | None,
    typer.Option(metavar="N", help="Length of an answer. (default: 24)", rich_help_panel=_PANEL),
]
Rounds = Annotated[
    str | None,
    typer.Option(metavar="N", help="Most rounds of a figure. (default: 5)", rich_help_panel=_PANEL),
]
Seconds = Annotated[
    str | None,
    typer.Option(
        metavar="X",
        help="Begin no further round of a figure after so long. (default: 30; 1.5 for demo)",
        rich_help_panel=_PANEL,
    ),
]
Quick = Annotated[
    bool,
    typer.Option(
        "--quick",
        metavar="",
        help="Fewer figures and rounds.",
        rich_help_panel=_PANEL,
        show_default=False,
    ),
]
Shape = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="Random weights of the real shape of smolvlm-256m, smolvlm-500m, smolvlm-2.2b, "
        "idefics2-8b or idefics3-8b; no download.",
        rich_help_panel=options.MODEL_PANEL,
    ),
]
Layers = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Cut the shape to so many text layers, and as many vision layers.",
        rich_help_panel=options.MODEL_PANEL,
    ),
]
VisionLayers = Annotated[
    str | None,
    typer.Option(
        metavar="N",
        help="Cut the shape to so many vision layers.",
        rich_help_panel=options.MODEL_PANEL,
    ),
]
KeepWeights = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="Keep the random weights here and use them again.",
        rich_help_panel=options.MODEL_PANEL,
    ),
]
PlainQuantization = Annotated[
    str | None,
    typer.Option(
        metavar="METHOD",
        help="Quantize plain transformers otherwise than ours: none, 8bit or 4bit.",
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
