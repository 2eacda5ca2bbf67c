"""Text that is safe to print on a terminal."""

from __future__ import annotations

import pytest

from idefics_cli.core.text import abbreviated, one_line, printable


@pytest.mark.parametrize(
    ("raw", "shown"),
    [
        ("plain ☃ é 日本", "plain ☃ é 日本"),
        ("a\tb\nc\r\nd", "a\tb\nc\nd"),
        ("\x1b[31mred\x1b]0;title\x07", "␛[31mred␛]0;title␇"),
        ("a\rb\x08c\x7f", "a␍b␈c␡"),
        ("\x9b31m", "\\x9b31m"),
        ("name\udcff.png", "name\\xff.png"),
        ("\ud800", "\\ud800"),
        ("abc\u202egnp.exe", "abc\\u202egnp.exe"),
        ("\u2066x", "\\u2066x"),
        ("[bold]not markup[/bold]", "[bold]not markup[/bold]"),
    ],
)
def test_control_characters_become_visible(raw: str, shown: str) -> None:
    assert printable(raw) == shown
    assert printable(shown) == shown


def test_every_c0_and_c1_control_but_tab_and_newline_is_replaced() -> None:
    controls = [chr(c) for c in (*range(32), *range(127, 160)) if chr(c) not in "\t\n"]
    for control in controls:
        assert control not in printable(f"a{control}b")


def test_one_line_is_one_line() -> None:
    assert one_line("a\nb\tc\r\n\x1b") == "a␊b␉c␊␛"


def test_a_long_name_is_cut_in_the_middle_and_keeps_its_end() -> None:
    shown = abbreviated("folder/" * 100 + "x.jpg", 30)
    assert len(shown) == 30
    assert shown.startswith("folder/fol…")
    assert shown.endswith("/x.jpg")
    assert abbreviated("a\x1b\n\u202eb") == "a\\x1b\\n\\u202eb"
