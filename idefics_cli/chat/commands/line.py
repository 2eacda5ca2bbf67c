"""The reader of lines: it finds the pictures that a line names.

Their names may be dragged into the line, typed, or written after `@` or `/image`.
"""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import unquote_to_bytes, urlsplit

from idefics_cli.chat.commands.words import Word, escape_word, is_windows_path, scan_words
from idefics_cli.core.errors import ImageError
from idefics_cli.core.sources import is_address
from idefics_cli.images.folders import has_wildcard
from idefics_cli.images.formats import HEAD_BYTES, identify

PICTURE_SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".heic", ".heif", ".avif",
)  # fmt: skip
VIDEO_SUFFIXES = (".mp4", ".mov", ".m4v", ".mkv", ".avi", ".webm")
# A user may take files with these suffixes for pictures. A word with such a suffix counts as a
# picture if the file exists. If not, the word may be plain text; see `_looks_like_picture`.
_OTHER_SUFFIXES = (
    ".jfif", ".jpe", ".jp2", ".jxl", ".ico", ".icns", ".psd", ".tga", ".ppm", ".pgm", ".pbm",
    ".dds", ".svg", ".pdf", ".eps", ".dng", ".cr2", ".nef", ".arw", ".orf", ".rw2",
    *VIDEO_SUFFIXES,
)  # fmt: skip
_MOST_PICTURES = 100
_WORDS_OF_A_NAME = 8
_LEADING = re.compile(r"[(\[{<\"'\u201c\u2018\u201e\u00ab\u300c\u300e\uff08\u3010]+")
_TRAILING = (
    "?!.,;:)]}>\"'\u2019\u201d\u00bb\u2026\u3002\uff0c\u3001\uff1f\uff01\uff1a\uff1b\uff09\u300d\u300f"
    "\u3011"
)
# In Chinese and Japanese, text may follow the name of a picture without a space. This pattern finds
# the suffix before such text.
_SUFFIX_IN_TEXT = re.compile(
    rf"(?:{'|'.join(map(re.escape, PICTURE_SUFFIXES))})(?=[^\x00-\x7f])", re.IGNORECASE
)
_LOCAL = re.compile(r"file:(?://(?:localhost)?(?=/)|(?=/[^/]))", re.IGNORECASE)
_CODE = frozenset('<>="|{}')
_FENCE = re.compile(r"^[^\S\n]*```", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Line:
    """A line without the pictures that it names.

    Attributes:
        text: The text without the names of the pictures.
        sources: The pictures in order; they need not exist.
        is_guess: Whether a name without `@` was read as a picture.
    """

    text: str
    sources: tuple[str, ...]
    is_guess: bool = field(default=False, compare=False)


@dataclass(frozen=True, slots=True)
class _Named:
    """The pictures that one word names, where they begin in the line, and the text after them."""

    sources: tuple[str, ...]
    start: int
    tail: str = ""


def read_line(line: str) -> Line:
    """Find the pictures that *line* names: paths, addresses, patterns and folders.

    A name that looks like the name of a picture counts as one even if there is no such file. The
    user then gets an error instead of an answer that the model made up. A name in backquotes is
    text. All other text stays as it is.

    Raises:
        ImageError: If a folder is named, or a pattern that matches nothing.
    """
    whole = _path(line.strip())
    if _has_suffix(whole, PICTURE_SUFFIXES) and _is_file(whole):
        return Line("", (whole,))
    sources: list[str] = []
    kept, start, is_guess = "", 0, False
    words = [] if _FENCE.search(line) else list(scan_words(line))
    for place, word in enumerate(words):
        is_edge = place in (0, len(words) - 1) and "\n" not in line
        named = _named(word, is_edge=is_edge)
        if named is None:
            continue
        before = words[max(0, place - _WORDS_OF_A_NAME) : place]
        named = _with_spaces(line, word, named, [w for w in before if w.start >= start])
        sources += named.sources
        is_guess |= not word.is_marked
        kept += line[start : named.start] + named.tail
        # The removed word had a space on each side, so one of these two spaces is removed, too.
        start = word.end + (line[word.end : word.end + 1] == " " and not named.tail)
    text = (kept + line[start:]).strip() if sources else line
    return Line(text, tuple(sources), is_guess)


def expand_sources(words: str) -> tuple[str, ...]:
    """Return the pictures that *words* name: paths, addresses and patterns.

    Raises:
        ImageError: If a pattern matches nothing, or a folder is named.
    """
    whole = _path(words.strip())
    if _is_file(whole):
        return (whole,)
    return tuple(source for word in scan_words(words) for source in _expanded(word.value))


def split_words(words: str) -> list[str]:
    """Split *words* at spaces, except inside quotes and after backslashes."""
    return ["@" * word.is_marked + word.value for word in scan_words(words)]


def find_paths(
    prefix: str, *, suffixes: Sequence[str] = (*PICTURE_SUFFIXES, *VIDEO_SUFFIXES)
) -> list[str]:
    """Return the paths of folders, pictures and videos that begin with *prefix*, sorted."""
    folder, name = os.path.split(prefix)
    found = []
    try:
        with os.scandir(os.path.expanduser(folder) or ".") as entries:
            for entry in entries:
                if not entry.name.startswith(name) or (entry.name[0] == "." and not name):
                    continue
                if _is_folder(entry):
                    found.append(os.path.join(folder, entry.name) + "/")
                elif entry.name.lower().endswith(tuple(suffixes)):
                    found.append(os.path.join(folder, entry.name))
    except OSError:
        return []
    return sorted(found)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a loop of links, or a server that is gone
        return False


def _named(word: Word, *, is_edge: bool) -> _Named | None:
    """Return the pictures that *word* names, if any.

    Args:
        word: A word of the line.
        is_edge: Whether it is the first or the last word.
    """
    if word.value.startswith("`"):
        return None
    if len(word.quoted) > 1 and not _is_file(_path(word.value)):
        # Two quoted names without a space in between: a user dragged two files into the line.
        names = [_path(piece) for piece in word.quoted]
        if all(_is_absolute(name) and _has_suffix(name, PICTURE_SUFFIXES) for name in names):
            return _Named(tuple(names), word.start)
    for value, tail in _readings(word):
        sources = _sources(value, word, is_edge=is_edge)
        if sources:
            lead = 0 if word.quoted else len(word.value) - len(_without_lead(word.value))
            return _Named(sources, word.start + lead, tail)
    return None


def _readings(word: Word) -> Iterator[tuple[str, str]]:
    """Yield the names that *word* may contain, each with the text after it, the likeliest first."""
    whole = word.value
    if _is_file(_path(whole)):
        yield whole, ""
        return
    value = whole if word.quoted else _without_lead(whole)
    cut = _end_without_trail(value)
    if (inside := _SUFFIX_IN_TEXT.search(value)) and not _is_file(_path(value[:cut])):
        yield value[: inside.end()], value[inside.end() :]
    if cut < len(value):
        yield value[:cut], value[cut:]
    yield value, ""


def _end_without_trail(value: str) -> int:
    """Return where the punctuation at the end of *value* begins, with an `'s` before it."""
    end = len(value.rstrip(_TRAILING))
    return end - 2 if value[:end].endswith(("'s", "\u2019s")) else end


def _without_lead(value: str) -> str:
    match = _LEADING.match(value)
    return value[match.end() :] if match else value


def _sources(value: str, word: Word, *, is_edge: bool) -> tuple[str, ...]:
    """Return the pictures that the text *value* of *word* names; none if it is only text."""
    if not value:
        return ()
    if is_address(value):
        names = word.is_marked or is_edge or _names_picture_on_server(value)
        return (value,) if names else ()
    if value[:5].lower() == "data:":
        return (value,) if word.is_marked or value[5:11].lower() == "image/" else ()
    path = _path(value)
    if value[:5].lower() == "file:" and "/" in value[5:6]:
        return (path,)
    if os.path.isdir(path):
        is_meant = word.is_marked or (is_edge and "/" in value.rstrip("/") + value[1:])
        return tuple(_expanded(value)) if is_meant and path.strip("/.") else ()
    if _is_file(path):
        return (path,) if word.is_marked or _is_picture_file(value, path) else ()
    if not _looks_like_picture(value, word, is_edge=is_edge):
        return ()
    if has_wildcard(path) and not word.quoted:
        return tuple(_expanded(value)) if word.is_marked or "/" in path or is_edge else ()
    return (path,)


def _is_picture_file(value: str, path: str) -> bool:
    """Whether the suffix or the first bytes of a file say that its name is meant as a picture."""
    if _has_suffix(path, (*PICTURE_SUFFIXES, *_OTHER_SUFFIXES)):
        return True
    if os.sep not in value:
        return False
    try:
        with open(path, "rb") as file:
            return identify(file.read(HEAD_BYTES)).plugin is not None
    except OSError:
        return False


def _looks_like_picture(value: str, word: Word, *, is_edge: bool) -> bool:
    """Whether *value* is meant as the name of a picture, although there is no such file."""
    is_clear = word.is_marked or is_edge or "/" in value or is_windows_path(value)
    if not _has_suffix(value, PICTURE_SUFFIXES):
        return is_clear and _has_suffix(value, _OTHER_SUFFIXES)
    # Pasted code names many files, so a word with characters of code is not a picture.
    around = value
    for piece in word.quoted:
        around = around.replace(piece, "", 1)
    return word.is_marked or not _CODE & set(around)


def _with_spaces(line: str, word: Word, named: _Named, before: Sequence[Word]) -> _Named:
    """Return *named*, or a file whose name has spaces and ends with *word*.

    Some terminals paste the name of a dragged file without quotes.
    """
    if word.quoted or len(named.sources) != 1 or _is_file(named.sources[0]):
        return named
    end = word.end - len(named.tail)
    for first in reversed(before):
        path = _path(line[first.start + first.is_marked : end])
        if _is_file(path):
            return _Named((path,), first.start, named.tail)
    return named


def _expanded(word: str) -> list[str]:
    path = _path(word.removeprefix("@"))
    if os.path.isdir(path):
        raise ImageError(
            f"`{path}` is a folder, not a picture",
            kind="not_an_image",
            hint=f"`/image {escape_word(os.path.join(path, ''))}*` attaches the pictures in it",
        )
    if is_address(path) or not has_wildcard(path) or _is_file(path):
        return [path]
    found = sorted(name for name in glob.glob(path, recursive=True) if _is_file(name))
    pictures = [name for name in found if _has_suffix(name, PICTURE_SUFFIXES)] or found
    if not pictures:
        raise ImageError(f"no picture matches `{word}`", kind="missing")
    if len(pictures) > _MOST_PICTURES:
        raise ImageError(
            f"`{word}` matches {len(pictures)} pictures, and a question takes {_MOST_PICTURES}",
            kind="too_large",
            hint="`idefics caption` describes any number of pictures",
        )
    return pictures


def _path(word: str) -> str:
    if match := _LOCAL.match(word):
        return os.fsdecode(unquote_to_bytes(word[match.end() :]))
    return os.path.expanduser(word)


def _is_absolute(path: str) -> bool:
    return os.path.isabs(path) or is_windows_path(path)


def _has_suffix(path: str, suffixes: Sequence[str]) -> bool:
    name = re.split(r"[/\\]", path)[-1].lower()
    stem, dot, suffix = name.rpartition(".")
    return f"{dot}{suffix}" in suffixes and any(
        character.isalnum() or character in "*?" for character in stem
    )


def _names_picture_on_server(address: str) -> bool:
    try:
        parts = urlsplit(address)
    except ValueError:
        return False
    values = re.split(r"[&=]", parts.query)
    return any(_has_suffix(text, PICTURE_SUFFIXES) for text in (parts.path, *values))


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):  # a name that is too long, or with a NUL
        return False
