"""The chat for a screen reader, in a pseudo-terminal."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

import pytest

pexpect = pytest.importorskip("pexpect")  # no pseudo-terminals on Windows

from tests.support.chat_terminal import (  # noqa: E402 (after the skip)
    MODES,
    Mode,
    Open,
    check_screen,
)


def test_pasted_lines_are_one_question_for_a_screen_reader(
    tmp_path: Path, open_terminal: Open
) -> None:
    here = open_terminal(tmp_path, mode=MODES[3])
    here.see("Ctrl-D leaves")
    here.wait_for_prompt()
    time.sleep(0.5)  # as above
    here.child.send("What is\nthe weather\nlike?")
    here.see("like?")
    time.sleep(0.5)  # nothing is sent before Enter
    here.type("")
    here.wait_for_prompt()
    here.type(f"/export json {tmp_path}/chat.json")
    here.see("wrote")
    (turn,) = json.loads((tmp_path / "chat.json").read_text())["turns"]
    assert turn["text"] == "What is\nthe weather\nlike?"


def test_no_key_is_shown_in_the_output_of_the_program(tmp_path: Path, open_terminal: Open) -> None:
    here = open_terminal(tmp_path, "--no-preview", mode=MODES[3])
    # The program reads no keys yet.
    here.see("Ctrl-D leaves")
    here.type("/stats\rHello.\rHello.\r/undo")
    shown = here.see("took back: Hello.")
    lines = [line for line in shown.replace("\r", "\n").split("\n") if line.strip()]
    typed = ("/stats", "Hello.", "/undo")
    assert not [line for line in lines if line in typed], shown
    assert not re.search(r"[^> ]/(?:stats|undo)", shown), shown


def test_a_screen_reader_hears_whose_turn_it_is_and_of_keys_that_work(
    tmp_path: Path, open_terminal: Open
) -> None:
    mode = Mode("by the variable", environ={"ACCESSIBLE": "1"}, draws=False)
    here = open_terminal(tmp_path, mode=mode)
    here.see("your turn > ")
    here.type("/help")
    shown = here.see("your turn > ")
    assert "Several lines: paste them" in shown
    assert "Alt-Enter" not in shown
    assert "Ctrl-X" not in shown
    here.type('"""\rHello.\r"""')
    here.see("Show me an image.")
    assert here.leave() == 0
    again = open_terminal(tmp_path, mode=mode)
    again.see("your turn > ")
    time.sleep(0.5)  # as above
    again.child.send("\x1b[A")
    assert again.see("Hello.").strip() == "Hello."
    check_screen(here.raw, mode)


def test_ctrl_c_in_a_begun_line_ends_it_before_the_note(
    tmp_path: Path, open_terminal: Open
) -> None:
    here = open_terminal(tmp_path, mode=MODES[3])
    here.see("Ctrl-D leaves")
    here.wait_for_prompt()
    time.sleep(0.5)  # as above
    here.type("x", end="")
    here.see("x")
    time.sleep(0.5)  # as above
    here.child.sendintr()
    assert "> x" not in here.see("note: Ctrl-D").split("\r\n")[-1]
    here.wait_for_prompt()
    here.child.sendeof()
    here.child.expect(pexpect.EOF)
    # The blank after the prompt's ">" may arrive after `wait_for_prompt` has returned.
    assert here.child.before.lstrip(" ") == "\r\n"
