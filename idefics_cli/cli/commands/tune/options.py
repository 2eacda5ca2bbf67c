"""The options that only `idefics tune` has."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from idefics_cli.cli import options
from idefics_cli.config.setting import Setting, Value
from idefics_cli.core.errors import UsageError

DATA_PANEL = "Data"
TRAINING_PANEL = "Training"

_NUMBERS = {
    row.name: row
    for row in (
        Setting("rank", int, 16, "Width of the LoRA matrices.", minimum=1, maximum=1024),
        Setting("alpha", float, None, "Numerator of their scale.", unset="2 x rank", above=0),
        Setting("dropout", float, 0.05, "Share of their inputs that is dropped.", minimum=0),
        Setting(
            "learning_rate",
            float,
            None,
            "Highest learning rate.",
            unset="by the size of the model",
            above=0,
        ),
        Setting(
            "epochs",
            float,
            None,
            "How often each row is learned.",
            unset="3; more for tiny models",
            above=0,
            maximum=100_000,
        ),
        Setting(
            "replay",
            float,
            None,
            "Number of other questions about each picture. The model answers them before the "
            "training and learns these answers too, so that it keeps its skills.",
            unset="1 for tiny models, else 0",
            minimum=0,
            maximum=16,
        ),
        Setting(
            "most_tokens",
            int,
            None,
            "Leave out rows with more tokens.",
            unset="the context of the model, at most 4096",
            minimum=1,
        ),
    )
}


# Any: `typer.Option` returns this type.
def _number(name: str) -> Any:
    row = _NUMBERS[name]
    return typer.Option(
        row.flag,
        help=f"{row.help} (default: {row.shown_default})",
        metavar="N" if row.kind is int else "X",
        rich_help_panel=TRAINING_PANEL if name != "most_tokens" else DATA_PANEL,
        show_default=False,
    )


def _switch(*flags: str, text: str, panel: str = TRAINING_PANEL) -> Any:
    return typer.Option(*flags, help=text, rich_help_panel=panel, show_default=False)


def _word(*flags: str, metavar: str, text: str, panel: str = DATA_PANEL) -> Any:
    return typer.Option(
        *flags, help=text, metavar=metavar, rich_help_panel=panel, show_default=False
    )


Data = Annotated[
    str,
    typer.Argument(
        metavar="DATA",
        help="Folder of pictures with captions, or a file of conversations or captions.",
        show_default=False,
    ),
]
PictureColumn = Annotated[
    str | None, _word("--picture", metavar="COLUMN", text="Column with the picture of a row.")
]
Question = Annotated[
    str | None, _word("--question", metavar="COLUMN", text="Column with the question of a row.")
]
AnswerColumn = Annotated[
    str | None, _word("--answer", metavar="COLUMN", text="Column with the answer of a row.")
]
Images = Annotated[
    str | None,
    _word("--images", metavar="DIR", text="Folder to which the paths of pictures are relative."),
]
Prompt = Annotated[
    str | None,
    _word(
        "--prompt",
        "-p",
        metavar="TEXT",
        text="Question about each picture with a caption, unless its row has one; it can have "
        "fields such as {stem}. Later captions ask it, too. (default: the model's caption prompt)",
    ),
]
Lines = Annotated[
    str | None,
    _word(
        "--lines",
        metavar="WHICH",
        text="Lines of a text file that are captions: first, all or random. (default: first)",
    ),
]
Learn = Annotated[
    str | None,
    _word(
        "--learn",
        metavar="WHICH",
        text="Answers of a conversation that are learned: all or last. (default: all)",
    ),
]
Validation = Annotated[
    str | None,
    _word(
        "--validation",
        metavar="SHARE|FILE",
        text="Share of the pictures, or other data, to try the model on. (default: 0.05)",
    ),
]
SkipBad = Annotated[
    bool,
    _switch("--skip-bad", text="Train without the rows that cannot be used.", panel=DATA_PANEL),
]
MostTokens = Annotated[str | None, _number("most_tokens")]
Train = Annotated[
    str | None,
    _word(
        "--train",
        metavar="PART,PART",
        text="Parts of the model that are trained: text, connector, vision. (default: text)",
        panel=TRAINING_PANEL,
    ),
]
Full = Annotated[
    bool, _switch("--full", text="Train all weights of these parts, and write a whole model.")
]
Rank = Annotated[str | None, _number("rank")]
Alpha = Annotated[str | None, _number("alpha")]
Dropout = Annotated[str | None, _number("dropout")]
Dora = Annotated[bool, _switch("--dora", text="Train lengths of the weights, too (DoRA).")]
LearningRate = Annotated[str | None, _number("learning_rate")]
Epochs = Annotated[str | None, _number("epochs")]
BatchSize = Annotated[
    str | None,
    _word(
        "--batch-size",
        metavar="N",
        text="Number of rows of a step. (default: 16; 8 for tiny models)",
        panel=TRAINING_PANEL,
    ),
]
KeepFeatures = Annotated[
    bool,
    _switch(
        "--keep-features/--no-keep-features",
        text="Encode each picture once only, if `vision` and `connector` are not trained.",
    ),
]
Checkpointing = Annotated[
    bool | None,
    _switch(
        "--checkpointing/--no-checkpointing",
        text="Compute activations twice, to save memory. (default: on, but not for tiny models)",
    ),
]
Replay = Annotated[str | None, _number("replay")]
Folder = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="DIR",
        help="Write the adapter to this folder.",
        rich_help_panel=options.OUTPUT_PANEL,
        show_default=False,
    ),
]
Plot = Annotated[
    bool,
    _switch("--plot", text="Draw the loss to loss.svg in the folder.", panel=options.OUTPUT_PANEL),
]


def number(name: str, text: str | None) -> Value:
    """Return the number of the option *name*, which the user typed as *text*; None without one.

    Raises:
        UsageError: If the text is not a number, or the number is out of range.
    """
    if text is None:
        return None
    row = _NUMBERS[name]
    try:
        return row.parse(text)
    except ValueError as error:
        raise UsageError(f"{row.flag} {error}") from error
