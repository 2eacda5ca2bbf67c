"""How training data is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from idefics_cli.core.types import Attachment, Mode

Lines = Literal["first", "all", "random"]
Learn = Literal["all", "last"]


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How training data is read.

    Attributes:
        prompt: The question about a picture with a caption, unless its row has one. A `<image>`
            in it is the place of the picture.
        fill: Fills the fields of a part of *prompt*, for the row with this key and these pictures;
            None leaves them as they are.
        mode: "chat", or "complete" for a base model.
        picture: Column with the picture of a row; None takes the first that is known.
        question: Column with the question of a row; None takes the first that is known.
        answer: Column with the answer of a row; None takes the first that is known.
        images: Folder to which paths of pictures are relative; None is that of each file.
        lines: Which lines of a text file beside a picture are captions.
        learn: Which answers of a conversation are learned.
        seed: Seed of random choices.
        takes_videos: Whether videos in folders have captions, too. Rows may name videos anyway.
    """

    prompt: str
    fill: Callable[[str, str, Sequence[Attachment]], str] | None = None
    mode: Mode = "chat"
    picture: str | None = None
    question: str | None = None
    answer: str | None = None
    images: Path | None = None
    lines: Lines = "first"
    learn: Learn = "all"
    seed: int = 0
    takes_videos: bool = False
