"""Lines that are typed at the prompt of a chat, and the pictures that they name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document

from idefics_cli.chat.commands.completion import Candidate
from idefics_cli.ui.chat.line_input import (
    DrawnInput,
    PlainInput,
    Stopped,
    TypedAhead,
    completer,
    is_open,
    unquoted,
)
from tests.support.keyboard import ALT_ENTER, CTRL_C, CTRL_R, ENTER, UP, Terminal, keyboard


@pytest.mark.parametrize(
    ("typed", "line"),
    [
        (f"hello{ENTER}", "hello"),
        (f"one{ALT_ENTER}two{ENTER}", "one\ntwo"),
        (f'"""{ENTER}one{ENTER}two{ENTER}"""{ENTER}', "one\ntwo"),
        (f'"""one"""{ENTER}', "one"),
        (f"lost{CTRL_C}kept{ENTER}", "kept"),
    ],
)
def test_keys_make_a_line(typed: str, line: str) -> None:
    with keyboard() as (keys, lines):
        keys.send_text(typed)
        assert lines.read("> ") == line


@pytest.mark.parametrize(
    "control", ["\x1b[31m", "\x1b[0m", "\x1b[1;31m", "\x1b[1;31;40m", "\x1b[<0m", "\x1b[5;5R"]
)
def test_colours_in_a_pasted_text_are_left_out(control: str) -> None:
    with keyboard() as (keys, lines):
        keys.send_text(f"a {control}red{control} star{ENTER}")
        assert lines.read("> ") == "a red star"


def test_ctrl_c_right_after_enter_takes_the_line_back() -> None:
    with keyboard() as (keys, lines):
        keys.send_text(f"a long story{ENTER}{CTRL_C}short{ENTER}next{ENTER}")
        assert lines.read("> ") == "short"
        assert lines.read("> ") == "next"
        keys.send_text(f"{UP * 3}{ENTER}")
        assert lines.read("> ") == "a long story"


def test_ctrl_c_on_an_empty_line_and_ctrl_d_are_told() -> None:
    with keyboard() as (keys, lines):
        keys.send_text(CTRL_C)
        with pytest.raises(KeyboardInterrupt):
            lines.read("> ")
        keys.send_text("\x04")
        with pytest.raises(EOFError):
            lines.read("> ")


def test_when_nobody_can_answer_any_more_what_was_typed_is_kept() -> None:
    with keyboard():
        lines = DrawnInput(Terminal(terminal=True), lambda line: [], None, lambda: True)
        with pytest.raises(Stopped) as stopped:
            lines.read("> ", text="What is")
        assert stopped.value.text == "What is"


def test_a_text_that_is_offered_can_be_edited() -> None:
    with keyboard() as (keys, lines):
        keys.send_text(f"?{ENTER}")
        assert lines.read("> ", text="What is it") == "What is it?"


@pytest.mark.parametrize("before", ["one", "What is\nit?"])
def test_one_press_of_up_brings_a_text_back_that_was_not_answered(before: str) -> None:
    with keyboard() as (keys, lines):
        keys.send_text(f'"""{before}"""{ENTER}')
        assert lines.read("> ") == before
        keys.send_text(f"{UP}{ENTER}")
        assert lines.read("> ", recall="What is\nit?") == "What is\nit?"
        keys.send_text(f"/exit{ENTER}")
        assert lines.read("> ", recall="What is\nit?") == "/exit"


def test_lines_are_found_again_in_the_next_run_and_by_nobody_else(tmp_path: Path) -> None:
    history = tmp_path / "data" / "history"
    with keyboard(history) as (keys, lines):
        keys.send_text(f"one{ENTER}")
        lines.read("> ")
    with keyboard(history) as (keys, lines):
        keys.send_text(f"{CTRL_R}on{ENTER}{ENTER}")
        assert lines.read("> ") == "one"
    if os.name == "posix":
        assert history.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [('"""', True), ('"""a', True), ('"""a"""', False), ('""""""', False), ("a", False)],
)
def test_three_quotes_open_a_text(text: str, expected: bool) -> None:
    assert is_open(text) == expected
    if not expected:
        assert '"""' not in unquoted(text)


# Text typed before the program read the keyboard


class Person:
    """Returns the text that is offered, with a full stop."""

    def __init__(self) -> None:
        self.offered: list[str] = []

    def read(self, prompt: str, *, text: str = "", recall: str = "") -> str:
        self.offered.append(text)
        return f"{text}."


@pytest.mark.parametrize(
    ("typed", "lines", "offered"),
    [
        ("", ["."], [""]),
        ("Wha", ["Wha."], ["Wha"]),
        ("Hello.\r", ["Hello.", "."], [""]),
        ("Hello.\nWhat?\nAnd", ["Hello.", "What?", "And.", "."], ["And", ""]),
        ('"""a\nb"""\nc\n', ["a\nb", "c", "."], [""]),
        ('"""a\nb', ['"""a\nb.', "."], ['"""a\nb', ""]),
    ],
)
def test_lines_that_were_typed_early_are_sent_and_the_last_is_offered(
    typed: str, lines: list[str], offered: list[str]
) -> None:
    person, told = Person(), list[str]()
    ahead = TypedAhead(typed, person, told.append)
    assert [ahead.read("> ") for _ in lines] == lines
    assert person.offered == offered
    assert len(told) == len(lines) - len(offered)


def test_a_draft_comes_before_lines_that_were_typed_early() -> None:
    ahead = TypedAhead("And?\n", Person(), lambda line: None)
    assert [ahead.read("> ", text="What?"), ahead.read("> ")] == ["What?.", "And?"]


# A history that cannot be kept, and pasted lines without a line editor


@pytest.mark.parametrize("kind", ["missing", "a file", "pipe", "too long", "device"])
def test_a_folder_that_cannot_be_written_keeps_the_history_for_this_run(
    kind: str, tmp_path: Path
) -> None:
    (tmp_path / "file").touch()
    history = {
        "missing": Path("/proc/nothere/idefics/history"),
        "a file": tmp_path / "file" / "history",
        "pipe": tmp_path / "pipe",
        "too long": tmp_path / ("x" * 300) / "history",
        "device": Path("/dev/full"),
    }[kind]
    if kind == "pipe":
        os.mkfifo(history)
    with keyboard(history) as (keys, lines):
        for typed in (f"one{ENTER}", f"{UP}{ENTER}"):
            keys.send_text(typed)
            assert lines.read("> ") == "one"


@pytest.mark.parametrize(
    ("typed", "waits", "expected"),
    [
        (["a", "b", "c", "d"], [False, True, True, False], ["a\nb\nc"]),  # pasted
        (["a", "b"], [True, True, False, False], ["a", "b"]),  # typed while the model answered
        (["/set x=1", "a"], [False, False, False], ["/set x=1", "a"]),
        (['"""', "a", '"""', "b"], [False, False], ["a"]),
    ],
)
def test_pasted_lines_are_one_text_without_a_line_editor(
    typed: list[str],
    waits: list[bool],
    expected: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("builtins.input", lambda prompt: typed.pop(0))
    lines = PlainInput(print, lambda line: [], None, lambda **_: waits.pop(0))
    assert [lines.read("> ") for _ in expected] == expected


def test_the_menu_shows_no_character_that_moves_the_cursor() -> None:
    hostile = "\u202egnp.exe\x1b[2J\n"
    found = completer(lambda line: [Candidate(hostile, 0, hostile)]).get_completions(
        Document("x"), CompleteEvent()
    )
    (completion,) = found
    assert completion.text == hostile
    assert completion.display_text == completion.display_meta_text == r"\u202egnp.exe␛[2J␊"
