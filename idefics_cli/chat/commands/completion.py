"""Completion: candidates for the last word of the line that the user types."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass

from idefics_cli.chat.commands.line import find_paths, split_words
from idefics_cli.chat.commands.words import escape_word

_WORD = re.compile(r"(?:\\.|[^\s\\])+")


@dataclass(frozen=True, slots=True)
class Candidate:
    """One completion.

    Attributes:
        text: The text to insert.
        replaces: Number of characters before the cursor that the text replaces.
        description: A few words about it.
    """

    text: str
    replaces: int
    description: str = ""


def path_candidates(line: str) -> list[Candidate]:
    """Return the pictures and folders whose paths begin with the last word of *line*."""
    word = _last_word(line)
    mark = "@" if word.startswith("@") else ""
    typed = (split_words(word) or [""])[0].removeprefix("@")
    return [
        Candidate(mark + escape_word(path), len(word), "folder" if path.endswith(os.sep) else "")
        for path in find_paths(typed)
    ]


def word_candidates(line: str, words: Iterable[tuple[str, str]]) -> list[Candidate]:
    """Return the *words* that begin with the last word of *line*, in their order.

    Args:
        line: The line up to the cursor.
        words: Pairs of a word and its description.
    """
    word = _last_word(line)
    return [
        Candidate(name, len(word), description)
        for name, description in words
        if name.startswith(word) and name != word
    ]


def ends_in_path(line: str) -> bool:
    """Whether the last word of *line* is a path after an `@`."""
    return _last_word(line).startswith("@")


def _last_word(line: str) -> str:
    # All words are matched from the left. A pattern that ends at the end of the line would be tried
    # from every character, which took seconds for a long word.
    last = max(_WORD.finditer(line), key=re.Match.end, default=None)
    return last[0] if last and last.end() == len(line) else ""
