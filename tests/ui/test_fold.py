"""Folding of lines at spaces, at every width and without loss."""

from __future__ import annotations

import random
import re

import pytest
from rich.cells import cell_len

from idefics_cli.ui.terminal.console import Console
from idefics_cli.ui.terminal.fold import fold
from tests.support.commands import Stream, run

WORDS = ("a", "picture", "日本語の説明", "naïve", "--max-new-tokens", "x" * 90, "שלום")


@pytest.mark.parametrize("seed", range(40))
def test_no_line_is_too_long_and_no_word_is_lost(seed: int) -> None:
    chance = random.Random(seed)
    width = chance.choice((10, 24, 40, 80, 200))
    words = chance.choices(WORDS, k=chance.randint(0, 30))
    line = "".join(word + " " * chance.choice((1, 1, 1, 3)) for word in words).rstrip()
    folded = fold(line, width)
    assert all(cell_len(part) <= width for part in folded)
    assert "".join(folded).replace(" ", "") == line.replace(" ", "")
    # A word that fits on a line is not split.
    assert {w for w in words if cell_len(w) <= width // 2} <= set(" ".join(folded).split())


def test_a_line_that_fits_stays_as_it_is() -> None:
    assert fold("  two  columns", 14) == ["  two  columns"]
    assert fold("", 40) == [""]


def test_the_last_column_of_a_table_goes_on_below_itself() -> None:
    line = "smolvlm-500m  507 M  small; good without any GPU at all"
    assert fold(line, 48) == [
        "smolvlm-500m  507 M  small; good without any GPU",
        "                     at all",
    ]


def test_a_last_column_without_room_goes_on_near_the_margin() -> None:
    line = "  smolvlm-500m          507 M  small; good without a GPU"
    assert fold(line, 40) == ["  smolvlm-500m          507 M  small;", "      good without a GPU"]


def test_messages_and_reports_are_folded_on_a_terminal_only() -> None:
    text = "one two three four five six"
    for is_terminal in (True, False):
        out, err = Stream(terminal=is_terminal), Stream(terminal=is_terminal)
        console = Console(out, err, environ={"NO_COLOR": "1", "COLUMNS": "20"})
        console.report(text)
        console.note(text)
        console.tell(text)
        if is_terminal:
            assert out.text() == "one two three four\n    five six\n"
            assert err.text() == (
                "note: one two three\n  four five six\none two three four\nfive six\n"
            )
        else:
            assert out.text() == f"{text}\n"
            assert err.text() == f"note: {text}\n{text}\n"


@pytest.mark.parametrize("columns", [40, 59])
@pytest.mark.parametrize("command", ["", "ask", "chat", "caption", "models", "models pull"])
def test_help_names_every_option_whole_on_a_narrow_terminal(
    command: str, columns: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    wide = run(*command.split(), "--help").out
    monkeypatch.setenv("COLUMNS", str(columns))
    narrow = run(*command.split(), "--help").out
    options = set(re.findall(r"--[a-z-]+", wide))
    assert "--help" in options
    assert options <= set(re.findall(r"--[a-z-]+", narrow))
    assert all(cell_len(line) <= columns for line in narrow.splitlines())
