"""What may stand at the end of a line that is being typed."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from idefics_cli.chat.commands.line import complete_path, escaped, split

_LAST_WORD = re.compile(r"(?:\\.|[^\s\\])*$")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One completion.

    Attributes:
        text: What is inserted.
        replaces: How many characters before the cursor it takes the place of.
        description: What it is, in a few words.
    """

    text: str
    replaces: int
    description: str = ""


Words = Callable[[], Iterable[tuple[str, str]]]
"""Gives words that are possible, each with its description."""


def of_paths(line: str) -> list[Candidate]:
    """Return the pictures and folders that the last word of *line* may become."""
    word = _last_word(line)
    mark = "@" if word.startswith("@") else ""
    typed = (split(word) or [""])[0].removeprefix("@")
    return [
        Candidate(mark + escaped(path), len(word), "folder" if path.endswith(os.sep) else "")
        for path in complete_path(typed)
    ]


def of_words(line: str, words: Iterable[tuple[str, str]]) -> list[Candidate]:
    """Return those of *words* that the last word of *line* begins, in their order."""
    word = _last_word(line)
    return [
        Candidate(name, len(word), description)
        for name, description in words
        if name.startswith(word) and name != word
    ]


def at_path(line: str) -> bool:
    """Whether the last word of *line* is a picture after an `@`."""
    return _last_word(line).startswith("@")


def _last_word(line: str) -> str:
    match = _LAST_WORD.search(line)
    return match[0] if match else ""
