"""Training examples about drawn pictures, for tiny models."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

from PIL import Image, ImageDraw

from idefics_cli.core.types import Attachment, Attention, LoadSpec, Message
from idefics_cli.models.families.base import Family
from idefics_cli.models.families.picture import PictureTensors
from idefics_cli.models.loading.loader import Loaded
from idefics_cli.models.loading.training import load_for_training
from idefics_cli.training.data.row import TrainingRow
from idefics_cli.training.examples import TrainingExample, encode_row
from tests.support import tiny

FAMILY_OF = {"smolvlm2": "smolvlm", "smolvlm": "idefics3"}
ANSWERS = ("A red circle.", "Two cats, one dog.", "A blue square above a circle.", "No.")
SIZES = ((60, 40), (40, 60), (50, 50), (90, 30))


def draw(source: str) -> Image.Image:
    """Return the picture *source*, a number."""
    number = int(source)
    width, height = SIZES[number % len(SIZES)]
    image = Image.new("RGB", (width, height), (255, 255, 230))
    colour = ((40 * number) % 256, (90 * number) % 256, 200)
    ImageDraw.Draw(image).ellipse((5, 5, 25 + number, 30), fill=colour)
    return image


def preprocessor(family: Family) -> Callable[[Attachment], PictureTensors]:
    return lambda attachment: family.preprocess(draw(attachment.source))


def make_rows(count: int) -> list[TrainingRow]:
    """Return conversations, most of them about a picture; every fourth has two turns."""
    rows = []
    for number in range(count):
        picture = Attachment(str(number))
        answer = Message("assistant", (ANSWERS[number % len(ANSWERS)],))
        messages = [Message("user", (picture, "What is in this image?")), answer]
        learned = [False, True]
        if number % 4 == 3:
            messages += [
                Message("user", ("And the second one?",)),
                Message("assistant", ("Two cats.",)),
            ]
            learned += [False, True]
        rows.append(TrainingRow(str(number), tuple(messages), tuple(learned)))
    return rows


def make_examples(family: Family, count: int) -> list[TrainingExample]:
    return [encode_row(row, family, preprocessor(family)) for row in make_rows(count)]


def load_tiny(folder: Path, kind: str, *, attention: Attention = "eager") -> Loaded:
    """Return the tiny model of *kind*, which is made in *folder*, with weights of its own."""
    loaded = _load(folder, kind, attention)
    return replace(loaded, model=deepcopy(loaded.model))


@lru_cache(maxsize=8)
def _load(folder: Path, kind: str, attention: Attention) -> Loaded:
    if not (folder / "config.json").exists():
        tiny.make(folder, kind)
    family = FAMILY_OF.get(kind.partition("-")[0], kind.partition("-")[0])
    return load_for_training(LoadSpec(str(folder), family, name=kind, attention=attention))


def pictures_of(examples: Sequence[TrainingExample]) -> list[list[Image.Image]]:
    return [[draw(each.source) for each in example.sources] for example in examples]
