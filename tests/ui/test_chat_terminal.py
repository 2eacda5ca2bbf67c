"""The chat in a pseudo-terminal with the built-in model, whose answers must be right."""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

pexpect = pytest.importorskip("pexpect")  # no pseudo-terminals on Windows

import termios  # noqa: E402 (not on Windows)

from idefics_cli.demo.samples import write_samples  # noqa: E402 (after the skip)
from tests.support.chat_terminal import (  # noqa: E402 (after the skip)
    MODES,
    PROMPT,
    Mode,
    Open,
    Terminal,
    check_screen,
)
from tests.support.tiny import CHATTING  # noqa: E402 (after the skip)


@dataclass(frozen=True)
class Sample:
    """A picture, and facts about it."""

    path: Path
    questions: dict[str, tuple[str, str]]

    def ask(self, task: str) -> tuple[str, str]:
        """Return a question and its answer."""
        return self.questions[task]


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """Pictures with a question each about background, number and place."""
    folder = tmp_path_factory.mktemp("my pictures")
    write_samples(folder, count=24, seed=3)
    rows = map(json.loads, (folder / "metadata.jsonl").read_text(encoding="utf-8").splitlines())
    found = [
        Sample(
            folder / row["file_name"],
            {q["task"]: (q["question"], q["answer"]) for q in row["questions"]},
        )
        for row in rows
    ]
    return [s for s in found if {"background", "count", "position"} <= s.questions.keys()]


@pytest.mark.parametrize("mode", MODES[1:], ids=lambda mode: mode.name)
def test_a_walk_through_a_chat(
    mode: Mode,
    tmp_path: Path,
    open_terminal: Open,
    samples: list[Sample],
    checkpoint: Callable[[str], Path],
) -> None:
    here = open_terminal(tmp_path, mode=mode)
    # The line editor and the other commands are those of modes with a whole walk.
    is_whole = mode.name == "accessible"
    walk(here, samples, checkpoint("idefics2"), is_whole=is_whole)
    time.sleep(0.5)  # the prompt is drawn before it reads
    here.child.sendintr()
    here.see("Ctrl-D or /exit leaves")
    assert here.leave() == 0, here.raw[-800:]
    check_screen(here.raw, mode)


def test_a_chat_goes_on_where_it_was_left_even_after_a_kill(
    tmp_path: Path,
    open_terminal: Open,
    samples: list[Sample],
    checkpoint: Callable[[str], Path],
) -> None:
    killed = open_terminal(tmp_path)
    first = samples[0]
    walk(killed, samples, checkpoint("idefics2"))
    killed.child.kill(9)
    killed.child.expect(pexpect.EOF)  # nothing has the terminal open any more
    killed.child.close(force=True)
    check_screen(killed.raw, MODES[0])
    # The file of the picture was moved; the chat has a copy.
    first.path.rename(first.path.with_suffix(".moved"))
    try:
        question = first.ask("background")[0]
        editor = tmp_path / "editor"
        editor.write_text(f"#!/bin/sh\nprintf '%s' '{question}' > \"$1\"\n", encoding="utf-8")
        editor.chmod(0o755)
        mode = Mode("with an editor", environ={"VISUAL": str(editor)})
        again = open_terminal(killed.home, "-c", mode=mode)
        again.see("2 questions, 1 picture")
        again.answer(*first.ask("count"))
        # The last line by Up; a line that Ctrl-C removed; a line from an editor.
        again.wait_for_prompt()
        again.answer("\x1b[A", first.ask("count")[1])
        again.wait_for_prompt()
        again.type(first.ask("position")[0], end="\x03")
        time.sleep(0.5)  # no output marks the moment to wait for
        again.answer("\x1b[A", first.ask("position")[1])
        again.wait_for_prompt()
        again.child.send("\x18\x05")
        again.see(first.ask("background")[1] + "\r\n")
        again.type("/exit")
        again.child.expect(pexpect.EOF)
    finally:
        first.path.with_suffix(".moved").rename(first.path)


@pytest.mark.parametrize(
    ("answer", "drawing"), [("\x1b[?62;4c", "\x1bP"), ("\x1b_Gi=31;OK\x1b\\\x1b[?62c", "\x1b_Gi=")]
)
def test_a_terminal_with_graphics_shows_the_picture_itself(
    answer: str, drawing: str, tmp_path: Path, open_terminal: Open, samples: list[Sample]
) -> None:
    here = open_terminal(tmp_path)
    here.see("\x1b[c")
    here.child.send(f"{answer}")
    here.see("Ctrl-D leaves")
    here.wait_for_prompt()
    here.type(f"@'{samples[0].path}'")
    here.see(drawing)
    here.see("goes with your next message")
    assert "\u2580" not in here.raw
    here.answer(*samples[0].ask("background"))
    assert here.leave() == 0, here.raw[-800:]
    assert "`idefics chat -c` continues this chat" in here.raw


def test_answers_of_a_slow_terminal_never_reach_a_question(
    tmp_path: Path, open_terminal: Open, samples: list[Sample]
) -> None:
    here = open_terminal(tmp_path, "--no-save")
    here.see("\x1b[c")
    here.see("Ctrl-D leaves")
    here.wait_for_prompt()  # the terminal has not answered in time
    here.type("Hel", end="")
    here.child.send("\x1b_Gi=31;OK\x1b")
    time.sleep(0.7)  # longer than the time after which an escape is the key
    here.child.send("\\\x1b[?62;4c")
    here.type("lo.")
    here.child.send("\x1b[?62;4c")  # while the model answers
    here.see("Show me an image.")
    here.wait_for_prompt()
    here.type(f"/export json {tmp_path}/chat.json")
    here.see("wrote")
    (turn,) = json.loads((tmp_path / "chat.json").read_text())["turns"]
    assert turn["text"] == "Hello."
    assert "CPR" not in here.raw
    assert here.leave() == 0
    assert "continues this chat" not in here.raw  # nothing was saved


def test_every_chatting_family_goes_on_with_the_conversation(
    tmp_path: Path, open_terminal: Open, samples: list[Sample], checkpoint: Callable[[str], Path]
) -> None:
    here = open_terminal(tmp_path)
    here.see("Ctrl-D leaves")
    here.type("/set max_new_tokens=5 preview=off")
    here.see("preview = off")
    for number, kind in enumerate(CHATTING, start=1):
        here.type(f"/model {checkpoint(kind)}")
        here.see("now\r\n")
        here.type(f"@'{samples[number % 2].path}' Is it like [1]?")
        here.see(f"[{number}]")
        here.see("x")
        here.wait_for_prompt()
        here.type("/stats")
        here.see(f"answers: {number}, ")
    here.type("/images")
    here.see(f"turn {len(CHATTING)}")
    assert "error" not in here.raw
    assert here.leave() == 0, here.raw[-800:]


@pytest.mark.parametrize("mode", [MODES[0], MODES[3]], ids=lambda mode: mode.name)
def test_sigterm_at_the_prompt_leaves_the_terminal_as_it_was(
    mode: Mode, tmp_path: Path, open_terminal: Open
) -> None:
    here = open_terminal(tmp_path, "--no-preview", mode=replace(mode, is_fresh=True))
    before = termios.tcgetattr(here.child.child_fd)[3]
    here.see("Ctrl-D leaves")
    here.wait_for_prompt()
    time.sleep(0.5)  # the prompt is drawn before it reads
    here.child.kill(signal.SIGTERM)
    here.child.expect(pexpect.EOF)
    assert termios.tcgetattr(here.child.child_fd)[3] == before
    here.child.close()
    assert here.child.exitstatus == 128 + signal.SIGTERM
    assert "Traceback" not in here.child.before


def test_ctrl_z_suspends_and_the_line_goes_on(tmp_path: Path) -> None:
    environ = {**os.environ, "HOME": str(tmp_path), "TERM": "xterm-256color", "PS1": "shell$ "}
    shell = pexpect.spawn("bash", ["--norc", "-i"], env=environ, timeout=60, encoding="utf-8")
    shell.expect_exact("shell$ ")
    shell.send(f"{sys.executable} -m idefics_cli chat -m demo --no-preview --no-save\r")
    shell.expect("Ctrl-D leaves")
    shell.expect(PROMPT)
    time.sleep(0.5)  # as above
    shell.send("/st\x1a")
    shell.expect("Stopped")
    shell.expect_exact("shell$ ")
    shell.send("fg\r")
    shell.expect("/st")
    time.sleep(0.5)
    shell.send("ats\r")
    shell.expect("model: demo")
    shell.send("\x04")
    shell.expect_exact("shell$ ")
    shell.send("exit\r")
    shell.expect(pexpect.EOF)
    shell.close()


def walk(
    here: Terminal, samples: list[Sample], other_model: Path, *, is_whole: bool = True
) -> None:
    """Attach, ask, refer back, undo, retry, interrupt; every answer must be right.

    A walk that is not whole has one line of each kind that looks different in another mode.
    """
    first, second = samples[:2]
    here.see("Ctrl-D leaves")
    # Drag a picture with a space in its path into the line, ask, and refer to it.
    here.type(str(first.path).replace(" ", "\\ "))
    here.see("goes with your next message")
    here.answer(*first.ask("background"))
    if is_whole:
        here.answer(*first.ask("count"))
    # One question of several lines.
    question, answer = first.ask("background")
    for line in ('"""', question):
        here.type(line)
    here.answer('"""', answer)
    if is_whole:
        change_and_retry(here, first, second)
    here.type("/images")
    here.see("turn 1")
    # A long answer of another model is interrupted, and the conversation goes on.
    here.type(f"/model {other_model}")
    here.see("now")
    here.type("Tell me a story.")
    here.child.expect(
        r"(?:[^\s\x1b]+[ \r\n]+){10}"
    )  # words of the answer; the prompt and the question have at most seven
    here.child.sendintr()
    here.see("interrupted; the answer so far is kept")
    if is_whole:
        here.type("/undo")
        here.see("took back: Tell me")
        here.type("/model demo")
        here.see("demo now")
        here.answer(*first.ask("position"))
    here.wait_for_prompt()


def change_and_retry(here: Terminal, first: Sample, second: Sample) -> None:
    """Take back a question, attach and drop a picture, and ask again."""
    here.type("/undo")
    here.see("took back: ")
    # A second picture, and one that does not exist.
    here.type(f"/image '{second.path}'")
    here.see("[2]")
    here.type("/image nothere.png")
    here.see("no such file")
    here.type("/images")
    here.see("next message")
    here.type("/drop 2")
    here.see("dropped [2]")
    # Undo and retry.
    here.type("/undo")
    here.see("took back: ")
    here.answer("/retry", first.ask("background")[1])
