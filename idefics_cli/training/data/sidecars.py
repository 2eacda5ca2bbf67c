"""Sidecars: a text file with the caption beside each picture, as kohya's trainers read them."""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator
from pathlib import Path

from idefics_cli.core.caption_file import read_caption
from idefics_cli.core.errors import ImageError, PromptError
from idefics_cli.core.sources import source_of
from idefics_cli.core.types import Attachment
from idefics_cli.training.data.folders import unread_parts, walk_data
from idefics_cli.training.data.options import ReadOptions
from idefics_cli.training.data.row import LeftOut, RowResult
from idefics_cli.training.data.table import captioned, lines_of

_EXTENSIONS = (".txt", ".caption")


def read_sidecars(folder: Path, options: ReadOptions) -> Iterator[RowResult]:
    """Yield the pictures in *folder* and below it, each with the caption beside it."""
    walk = walk_data(folder)
    yield from unread_parts(walk)
    texts = {path for path in walk.files if path.endswith(_EXTENSIONS)}
    for picture in walk.pictures(lambda: options.takes_videos):
        text = next((path for path in _places(picture) if path in texts), None)
        if text is None:
            yield LeftOut(picture, "no caption")
            continue
        try:
            captions = _captions(text)
        except PromptError as error:
            yield LeftOut(picture, "wrong row", error)
            continue
        if not captions:
            yield LeftOut(picture, "no answer")
            continue
        attachments = (Attachment(source_of(picture)),)
        for key, caption in lines_of(captions, options, picture):
            try:
                yield captioned(key, attachments, caption, options)
            except (PromptError, ImageError) as error:
                yield LeftOut(key, "wrong row", error)
        if options.lines == "first":
            yield from (LeftOut(picture, "further line") for _ in captions[1:])


def has_sidecars(folder: Path) -> bool:
    """Whether a text file in *folder* or below it stands beside a picture."""
    walk = walk_data(folder)
    texts = {path for path in walk.files if path.endswith(_EXTENSIONS)}
    return bool(texts) and any(
        path in texts for picture in walk.pictures(lambda: True) for path in _places(picture)
    )


def _places(picture: str) -> Iterator[str]:
    """Yield the paths where the caption of *picture* may be: `a.jpg.txt` comes before `a.txt`."""
    stem = os.path.splitext(picture)[0]
    for start in (picture, stem):
        for extension in _EXTENSIONS:
            yield start + extension


def _captions(path: str) -> list[str]:
    """Return the lines of the text file *path* that are not blank."""
    try:
        content = read_caption(Path(path))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise PromptError(f"cannot read `{path}`: {reason}") from error
    is_utf16 = content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    try:
        text = content.decode("utf-16" if is_utf16 else "utf-8-sig")
    except UnicodeDecodeError:
        raise PromptError(
            f"`{path}` is not UTF-8 text", hint="convert it, for example with `iconv -t utf-8`"
        ) from None
    if "\0" in text:
        raise PromptError(f"`{path}` holds NUL characters")
    return [line.strip() for line in text.split("\n") if line.strip()]
