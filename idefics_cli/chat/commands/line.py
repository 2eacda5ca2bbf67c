"""Pictures that a line names: dragged into it, after an `@`, or after `/image`."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from idefics_cli.core.errors import ImageError

PICTURE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif",
)  # fmt: skip
# A word. A terminal quotes the path of a dragged file, or puts backslashes before spaces.
_WORD = re.compile(
    r"""(?<!\S)(?P<at>@?)(?:'(?P<single>[^']+)'|"(?P<double>[^"]+)"|(?P<bare>(?:\\.|[^\s\\])+))""",
    re.DOTALL,
)
_TRAILING = "?!.,;:)"
_ADDRESS = re.compile(r"https?://\S", re.IGNORECASE)
_MAGIC = re.compile(r"[*?[]")


@dataclass(frozen=True, slots=True)
class Line:
    """A line without the pictures that it names.

    Attributes:
        text: The text without the names of the pictures.
        sources: The pictures in order; they need not exist.
    """

    text: str
    sources: tuple[str, ...]


def read_line(line: str) -> Line:
    """Find the pictures that *line* names by an absolute path, `~`, `file://` or `@`.

    A path without `@` must have the suffix of a picture. It is a picture even if there is no such
    file: the user gets an error, and not an answer that the model makes up. All other text stays
    as it is.
    """
    whole = _path(line.strip())
    if _is_absolute(line.strip()) and _is_file(whole) and _has_suffix(whole):
        return Line("", (whole,))
    sources: list[str] = []
    kept, start = "", 0
    for match in _WORD.finditer(line):
        source, tail = _named(match)
        if source is None:
            continue
        sources.append(source)
        kept += line[start : match.start()] + tail
        # Of the two spaces around the word, one is removed with it.
        start = match.end() + (line[match.end() : match.end() + 1] == " " and not tail)
    return Line((kept + line[start:]).strip() if sources else line, tuple(sources))


def expand_sources(words: str) -> tuple[str, ...]:
    """Return the pictures that *words* name: paths, addresses and patterns.

    Raises:
        ImageError: If a pattern matches nothing.
    """
    whole = _path(words.strip())
    if _is_file(whole):
        return (whole,)
    return tuple(source for word in split_words(words) for source in _expanded(word))


def split_words(words: str) -> list[str]:
    """Split *words* at spaces, except inside quotes and after backslashes."""
    return [_value(match) for match in _WORD.finditer(words)]


def find_paths(prefix: str, *, suffixes: Sequence[str] = PICTURE_SUFFIXES) -> list[str]:
    """Return the paths of folders and pictures that begin with *prefix*, sorted."""
    folder, name = os.path.split(prefix)
    found = []
    try:
        with os.scandir(os.path.expanduser(folder) or ".") as entries:
            for entry in entries:
                if not entry.name.startswith(name) or (entry.name[0] == "." and not name):
                    continue
                if entry.is_dir():
                    found.append(os.path.join(folder, entry.name) + "/")
                elif entry.name.lower().endswith(tuple(suffixes)):
                    found.append(os.path.join(folder, entry.name))
    except OSError:
        return []
    return sorted(found)


def escape_word(path: str) -> str:
    """Return *path* with backslashes before spaces and quotes, as `split_words` reads it."""
    return re.sub(r"([\s\\'\"])", r"\\\1", path)


def _value(match: re.Match[str]) -> str:
    quoted = match["single"] or match["double"]
    value = quoted if quoted is not None else re.sub(r"\\(.)", r"\1", match["bare"])
    return match["at"] + value


def _named(match: re.Match[str]) -> tuple[str | None, str]:
    """Return the picture that a word names, or None, and the punctuation after it."""
    value = _value(match).removeprefix("@")
    for word, tail in _readings(value):
        if match["at"] and _ADDRESS.match(word):
            return word, tail
        path = _path(word)
        if match["at"] and (_is_file(path) or _has_suffix(path)):
            return path, tail
        if not match["at"] and _is_absolute(word) and _has_suffix(path):
            return path, tail
    return None, ""


def _readings(value: str) -> list[tuple[str, str]]:
    """Return *value* as it is and, unless it is a file, without the punctuation at its end."""
    readings = [(value, "")]
    bare = value.rstrip(_TRAILING)
    if bare != value and not _is_file(_path(value)):
        readings.insert(0, (bare, value[len(bare) :]))
    return readings


def _expanded(word: str) -> list[str]:
    path = _path(word.removeprefix("@"))
    if _ADDRESS.match(path) or not _MAGIC.search(path) or _is_file(path):
        return [path]
    found = sorted(glob.glob(path, recursive=True))
    pictures = [name for name in found if _has_suffix(name)] or found
    if not pictures:
        raise ImageError(f"no picture matches `{word}`", kind="missing")
    return pictures


def _path(word: str) -> str:
    if word.lower().startswith("file://"):
        return unquote(re.sub(r"^file://(localhost)?", "", word, flags=re.IGNORECASE))
    return os.path.expanduser(word)


def _is_absolute(word: str) -> bool:
    return word.startswith(("/", "~/")) or word.lower().startswith("file://")


def _has_suffix(path: str) -> bool:
    return path.lower().endswith(PICTURE_SUFFIXES)


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # a name that is too long, or with a NUL
        return False
