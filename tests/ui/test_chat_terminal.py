"""The chat in a pseudo-terminal with the built-in model, whose answers must be right."""

from __future__ import annotations

import json
import os
import re
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

pexpect = pytest.importorskip("pexpect")  # no pseudo-terminals on Windows

import termios  # noqa: E402 (not on Windows)

from idefics_cli.demo.samples import write_samples  # noqa: E402 (after the skip)
from tests.support.tiny import CHATTING  # noqa: E402 (after the skip)

ESCAPES = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|\][^\x07]*\x07|[=>])")

# A prompt that reads keys.
PROMPT = r"> ?(?:\x1b\[0m[^>]*\x1b\[\?25h)?$"


@dataclass(frozen=True)
class Mode:
    """A kind of terminal."""

    name: str
    columns: int = 80
    arguments: tuple[str, ...] = ()
    environ: dict[str, str] = field(default_factory=dict)
    draws: bool = True


MODES = (
    Mode("80 columns"),
    Mode("40 columns without colours", columns=40, environ={"NO_COLOR": "1"}),
    Mode("dumb", environ={"TERM": "dumb"}, draws=False),
    Mode("accessible", arguments=("--accessible",), draws=False),
)


class Terminal:
    """A terminal with `idefics chat` in it."""

    def __init__(
        self, python: Sequence[str], home: Path, *arguments: str, mode: Mode = MODES[0]
    ) -> None:
        environ = {
            **os.environ,
            "HOME": str(home),
            "TERM": "xterm-256color",
            "COLORTERM": "truecolor",
            "OMP_NUM_THREADS": "1",
            **mode.environ,
        }
        self.home = home
        program, *before = python
        self.child = pexpect.spawn(
            program,
            [*before, "-m", "idefics_cli", "chat", "-m", "demo", "--device", "cpu", *mode.arguments,
             *arguments],
            env=environ, dimensions=(24, mode.columns), timeout=90, encoding="utf-8",
        )  # fmt: skip
        self.raw = ""

    def type(self, line: str, end: str = "\r") -> None:
        """Type *line* and a key."""
        self.child.send(line + end)

    def see(self, text: str) -> str:
        """Wait for *text*, in lines of any length; return the output up to its end."""
        self.child.expect(re.escape(text).replace(r"\ ", r"\s+"))
        shown: str = self.child.before + self.child.after
        self.raw += shown
        return ESCAPES.sub("", shown)

    def answer(self, question: str, answer: str) -> None:
        """Ask *question*, and wait for the line *answer*."""
        self.type(question)
        self.see(f"{answer}\r\n")

    def wait_for_prompt(self) -> None:
        """Wait until the prompt reads keys, and not the terminal itself."""
        self.child.expect(PROMPT)

    def leave(self) -> int:
        """Leave with Ctrl-D; return the exit code."""
        self.wait_for_prompt()
        self.child.sendeof()
        self.child.expect(pexpect.EOF)
        self.raw += self.child.before
        self.child.close()
        return int(self.child.exitstatus)


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


Open = Callable[..., Terminal]


@pytest.fixture
def open_terminal() -> Iterator[Open]:
    """Return a function that opens a terminal with a chat."""
    opened = []

    def get(home: Path, *arguments: str, mode: Mode = MODES[0]) -> Terminal:
        opened.append(Terminal((sys.executable,), home, *arguments, mode=mode))
        return opened[-1]

    yield get
    for terminal in opened:
        terminal.child.close(force=True)


@pytest.mark.parametrize("mode", MODES[1:], ids=lambda mode: mode.name)
def test_a_walk_through_a_chat(
    mode: Mode,
    tmp_path: Path,
    open_terminal: Open,
    samples: list[Sample],
    checkpoint: Callable[[str], Path],
) -> None:
    here = open_terminal(tmp_path, mode=mode)
    walk(here, samples, checkpoint("idefics2"))
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
    killed, first = open_terminal(tmp_path), samples[0]
    walk(killed, samples, checkpoint("idefics2"))
    killed.child.kill(9)
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
    here = open_terminal(tmp_path, "--no-preview", mode=mode)
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


def test_ctrl_c_in_a_begun_line_ends_it_before_the_note(
    tmp_path: Path, open_terminal: Open
) -> None:
    here = open_terminal(tmp_path, mode=MODES[3])
    here.see("Ctrl-D leaves")
    here.wait_for_prompt()
    time.sleep(0.5)  # as above
    here.type("x", end="")
    here.see("x")
    here.child.sendintr()
    assert "> x" not in here.see("note: Ctrl-D").split("\r\n")[-1]
    here.wait_for_prompt()
    here.child.sendeof()
    here.child.expect(pexpect.EOF)
    assert here.child.before == "\r\n"


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


def walk(here: Terminal, samples: list[Sample], other_model: Path) -> None:
    """Attach, ask, refer back, undo, retry, interrupt; every answer must be right."""
    first, second = samples[:2]
    here.see("Ctrl-D leaves")
    # Drag a picture with a space in its path into the line, ask, and refer to it.
    here.type(str(first.path).replace(" ", "\\ "))
    here.see("goes with your next message")
    here.answer(*first.ask("background"))
    here.answer(*first.ask("count"))
    # One question of several lines.
    question, answer = first.ask("background")
    for line in ('"""', question):
        here.type(line)
    here.answer('"""', answer)
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
    # A long answer of another model is interrupted, and the conversation goes on.
    here.type(f"/model {other_model}")
    here.see("now")
    here.type("Tell me a story.")
    here.child.expect(
        r"(?:[^\s\x1b]+[ \r\n]+){6}"
    )  # words of the answer; the question has four words
    here.child.sendintr()
    here.see("interrupted; the answer so far is kept")
    here.type("/undo")
    here.see("took back: Tell me")
    here.type("/model demo")
    here.see("demo now")
    here.answer(*first.ask("position"))
    here.wait_for_prompt()


def check_screen(raw: str, mode: Mode) -> None:
    """Check that the terminal got no escape sequences that its mode excludes."""
    assert "Traceback" not in raw
    assert "\x1b[6n" not in raw  # an answer about the cursor may come late
    assert ("▀" in raw) == (mode.draws and "NO_COLOR" not in mode.environ)
    if not mode.draws:
        # Readline may ask for meta keys and bracketed paste; nothing else.
        assert set(re.findall(r"\x1b\[[0-9;]*[A-HJKm]", raw)) == set()
        assert not re.search("[─│╭█⠋⠙]", raw)
    if mode.environ.get("NO_COLOR"):
        assert not re.search(r"\x1b\[[0-9;]*[34]8;", raw)
