"""Tables: each row names a picture, and has its caption or the answer to a question about it.

Columns are named as in the data sets of Hugging Face (`file_name`, `image`, `text`), and as
`idefics caption` names them.
"""

from __future__ import annotations

import base64
import random
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from idefics_cli.core.conversation.marks import PICTURE_MARK
from idefics_cli.core.conversation.pictures import COLUMNS, RowPictures, placed
from idefics_cli.core.errors import ImageError, PromptError
from idefics_cli.core.json_objects import JsonObject, checked_text, kind_of
from idefics_cli.core.text import abbreviated
from idefics_cli.core.types import Attachment, Message, Part
from idefics_cli.models.families.picture_marks import place_pictures, read_marks
from idefics_cli.training.data.files import known_name, read_file
from idefics_cli.training.data.options import ReadOptions
from idefics_cli.training.data.places import PicturePlaces
from idefics_cli.training.data.row import LeftOut, RowResult, TrainingRow

ANSWERS = ("caption", "text", "answer", "completion", "response")
"""Columns that may hold the answer of a row; the first that has a value counts."""
QUESTIONS = ("question", "prompt", "instruction")
_SHOWN_NAMES = 12


def read_table(path: Path, options: ReadOptions) -> Iterator[RowResult]:
    """Yield the rows of the table *path*."""
    folder = PicturePlaces(path, options.images)
    for row in read_file(path):
        try:
            if row.fault is not None:
                raise row.fault
            yield from _rows(row.key, without_bytes(row.cells), options, folder)
        except (PromptError, ImageError) as error:
            yield LeftOut(row.key, "wrong row", error)


def is_table(row: JsonObject, options: ReadOptions) -> bool:
    """Whether *row* names a picture."""
    chosen = picture_column(row, options)
    return any(row.get(name) is not None for name in (COLUMNS if chosen is None else (chosen,)))


def picture_column(row: JsonObject, options: ReadOptions) -> str | None:
    """Return the column of *row* that *options* choose for pictures; None if they choose none."""
    chosen = options.picture
    return chosen if chosen is None or chosen in row else known_name(chosen)


def column_hint(flag: str, row: JsonObject) -> str:
    """Return a hint that *flag* chooses a column, and which ones *row* has."""
    names = ", ".join(f"`{abbreviated(name)}`" for name in list(row)[:_SHOWN_NAMES])
    more = ", …" if len(row) > _SHOWN_NAMES else ""
    return f"`{flag} COLUMN` names it; the columns are {names}{more}"


def without_bytes(row: JsonObject) -> JsonObject:
    """Return *row* with `data:` URIs in place of the bytes of pictures, as Parquet files have."""
    return {name: _without_bytes(value) for name, value in row.items()}


def captioned(
    key: str, pictures: tuple[Attachment, ...], answer: str, options: ReadOptions
) -> TrainingRow:
    """Return the row of *pictures* whose question is the prompt of *options*.

    The request is the one that `idefics caption` makes with this prompt.

    Raises:
        PromptError: If a field of the prompt has no value.
        ImageError: If a field needs the picture, which cannot be read.
    """
    by_number = dict(enumerate(pictures, 1))
    placement = place_pictures(read_marks(options.prompt), list(by_number))
    text = placement.in_words(placement.order)
    fill = options.fill or (lambda text, key, pictures: text)
    parts = [
        fill(part, key, pictures) if isinstance(part, str) else by_number[part] for part in text
    ]
    parts = _after([by_number[number] for number in placement.unnamed], parts, options)
    return _row(key, Message("user", tuple(parts)), answer, options)


def lines_of(texts: list[str], options: ReadOptions, key: str) -> list[tuple[str, str]]:
    """Return the captions among *texts* that *options* choose, each with the key of its row."""
    if options.lines == "all" and len(texts) > 1:
        return [(f"{key}:{number}", text) for number, text in enumerate(texts, 1)]
    if options.lines == "random":
        return [(key, random.Random(f"{options.seed} {key}").choice(texts))]
    return [(key, texts[0])]


def _rows(
    key: str, row: JsonObject, options: ReadOptions, folder: PicturePlaces
) -> Iterator[RowResult]:
    if row.get("status") == "error":
        yield LeftOut(key, "failed caption")
        return
    if row.get("finish") == "length":
        yield LeftOut(key, "cut caption")
        return
    pictures = RowPictures(folder.resolve).of_columns(row, picture_column(row, options))
    if not pictures:
        column = "column names" if options.picture is None else f"column `{options.picture}` with"
        raise PromptError(f"no {column} a picture", hint=column_hint("--picture", row))
    answers = [answer for answer in _answers(row, options) if answer]
    if not answers:
        yield LeftOut(key, "no answer")
        return
    question = _question(row, options)
    for name, answer in lines_of(answers, options, key):
        if question is None:
            yield captioned(name, pictures, answer, options)
        else:
            yield _asked(name, pictures, question, answer, options)
    if options.lines == "first":
        yield from (LeftOut(key, "further line") for _ in answers[1:])


def _asked(
    key: str, pictures: tuple[Attachment, ...], question: str, answer: str, options: ReadOptions
) -> TrainingRow:
    if PICTURE_MARK in question:
        (message,) = placed([Message("user", (question,))], pictures)
    else:
        message = Message("user", tuple(_after(pictures, [question], options)))
    return _row(key, message, answer, options)


def _after(pictures: Sequence[Attachment], texts: list[Part], options: ReadOptions) -> list[Part]:
    """Return *pictures* with *texts* after them, as `idefics caption` does for every model."""
    first = texts[0] if texts else ""
    if options.mode == "complete" and isinstance(first, str) and first and pictures:
        texts = [f" {first}", *texts[1:]]
    return [*pictures, *(text for text in texts if text != "")]


def _row(key: str, question: Message, answer: str, options: ReadOptions) -> TrainingRow:
    messages = (question, Message("assistant", (answer,)))
    return TrainingRow(key, messages, (False, True), options.mode)


def _question(row: JsonObject, options: ReadOptions) -> str | None:
    names = QUESTIONS if options.question is None else (options.question,)
    name = next((name for name in names if row.get(name) not in (None, "")), None)
    if name is None:
        if options.question is not None:
            raise PromptError(f"no question in the column `{options.question}`")
        return None
    return checked_text(row[name], name)


def _answers(row: JsonObject, options: ReadOptions) -> list[str]:
    """Return the answers of a row; several if its value is a list, as of several samples."""
    if options.answer is not None and options.answer not in row:
        raise PromptError(f"no column `{options.answer}`", hint=column_hint("--answer", row))
    names = ANSWERS if options.answer is None else (options.answer,)
    given = [name for name in names if name in row]
    if not given:
        raise PromptError("no column has an answer", hint=column_hint("--answer", row))
    name = next((name for name in given if row[name] not in (None, "")), given[0])
    value = row[name]
    if value is None:
        return []
    if not isinstance(value, (str, list)):
        raise PromptError(f"`{name}` is not text but {kind_of(value)}")
    values = value if isinstance(value, list) else [value]
    return [checked_text(one, name).strip() for one in values]


def _without_bytes(value: object) -> object:
    if isinstance(value, list):
        return [_without_bytes(one) for one in value]
    if not isinstance(value, Mapping) or "bytes" not in value:
        return value
    data, path = value.get("bytes"), value.get("path")
    if isinstance(data, bytes):
        return f"data:;base64,{base64.b64encode(data).decode()}"
    return path
