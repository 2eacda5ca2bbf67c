"""`/copy`: where the text of an answer goes, by the desktop and by the terminal."""

from __future__ import annotations

import base64
import io
import os
import re
from pathlib import Path

import pytest

from idefics_cli.core.errors import IdeficsError
from idefics_cli.ui.terminal.clipboard import MOST_TERMINAL_BYTES, copy_text
from tests.support.chat import world

pytestmark = pytest.mark.skipif(os.name == "nt", reason="programs of these tests are scripts")
TEXT = "Zwei Körper: ▀ und 漢字.\nEnde"
OSC = f"\x1b]52;c;{base64.b64encode(TEXT.encode()).decode()}\x07"
XTERM = {"TERM": "xterm-256color"}


def install(folder: Path, name: str, *, code: int = 0) -> None:
    """Write a program that keeps its arguments and its input in files beside it."""
    program = folder / name
    script = (
        f'#!/bin/sh\necho "$@" > {folder}/{name}.args\ncat > {folder}/{name}.text\nexit {code}\n'
    )
    program.write_text(script, encoding="utf-8")
    program.chmod(0o755)


def copied(environ: dict[str, str], text: str = TEXT) -> tuple[str, str]:
    """Copy *text*; return the sentence about it, and what the terminal got."""
    terminal = io.StringIO()
    return copy_text(text, terminal, environ), terminal.getvalue()


@pytest.mark.parametrize(
    ("variable", "tool", "arguments"),
    [
        ("WAYLAND_DISPLAY", "wl-copy", ""),
        ("DISPLAY", "xclip", "-selection clipboard -in"),
        ("DISPLAY", "xsel", "--clipboard --input"),
    ],
)
def test_a_program_of_the_desktop_gets_the_text(
    variable: str, tool: str, arguments: str, tmp_path: Path
) -> None:
    install(tmp_path, tool)
    environ = {**XTERM, "PATH": f"{tmp_path}:{real_folder(tmp_path)}", variable: ":0"}
    assert copied(environ) == (f"copied {len(TEXT)} characters to the clipboard", "")
    assert (tmp_path / f"{tool}.text").read_text(encoding="utf-8") == TEXT
    assert (tmp_path / f"{tool}.args").read_text(encoding="utf-8") == f"{arguments}\n"


def real_folder(tmp_path: Path) -> Path:
    """Return a folder with `cat` and nothing else, so that no program of this machine is found."""
    folder = tmp_path / "bin"
    folder.mkdir(exist_ok=True)
    if not (folder / "cat").exists():
        (folder / "cat").symlink_to("/bin/cat")
    return folder


def test_windows_gets_utf_16_from_its_subsystem_for_linux(tmp_path: Path) -> None:
    install(tmp_path, "clip.exe")
    environ = {**XTERM, "PATH": f"{tmp_path}:{real_folder(tmp_path)}", "WSL_DISTRO_NAME": "Debian"}
    assert copied(environ)[1] == ""
    assert (tmp_path / "clip.exe.text").read_bytes().decode("utf-16") == TEXT


def test_over_ssh_the_terminal_gets_it_and_no_program_of_the_other_computer(
    tmp_path: Path,
) -> None:
    install(tmp_path, "xclip")
    path = f"{tmp_path}:{real_folder(tmp_path)}"
    environ = {**XTERM, "PATH": path, "DISPLAY": ":0", "SSH_CONNECTION": "1"}
    said, shown = copied(environ)
    assert shown == OSC
    assert said.startswith(f"sent {len(TEXT)} characters to the terminal")
    assert not (tmp_path / "xclip.text").exists()


def test_a_program_that_fails_is_no_end(tmp_path: Path) -> None:
    install(tmp_path, "xclip", code=1)  # as without an X server
    environ = {**XTERM, "PATH": f"{tmp_path}:{real_folder(tmp_path)}", "DISPLAY": ":0"}
    assert copied(environ)[1] == OSC


def test_tmux_passes_it_on(tmp_path: Path) -> None:
    path = f"{tmp_path}:{real_folder(tmp_path)}"
    environ = {"TERM": "tmux-256color", "TMUX": "x", "SSH_CONNECTION": "1", "PATH": path}
    wrapped = "\x1bPtmux;" + OSC.replace("\x1b", "\x1b\x1b") + "\x1b\\"
    assert copied(environ)[1] == wrapped
    install(tmp_path, "tmux", code=1)  # older than `load-buffer -w`
    assert copied(environ)[1] == wrapped
    install(tmp_path, "tmux")
    assert copied(environ) == (
        f"copied {len(TEXT)} characters to tmux, and to the clipboard if its terminal allows that",
        "",
    )
    assert (tmp_path / "tmux.text").read_text(encoding="utf-8") == TEXT


def test_gnu_screen_passes_it_on_in_pieces() -> None:
    text = "word " * 1000
    shown = copied({"TERM": "screen", "STY": "1.pts", "PATH": ""}, text)[1]
    pieces = re.findall(r"\x1bP(.*?)\x1b\\", shown, re.DOTALL)
    assert len(pieces) > 10
    assert max(map(len, pieces)) <= 256
    sent = "".join(pieces)
    assert base64.b64decode(sent.removeprefix("\x1b]52;c;").removesuffix("\x07")) == text.encode()


@pytest.mark.parametrize(
    ("terminal", "text", "error"),
    [
        ("dumb", TEXT, "there is no clipboard that this terminal can reach"),
        ("linux", TEXT, "there is no clipboard that this terminal can reach"),
        (
            "xterm",
            "ä" * 40_000,
            f"the text has 80000 bytes, and terminals take {MOST_TERMINAL_BYTES}",
        ),
    ],
)
def test_where_it_cannot_be_copied_a_file_is_named(terminal: str, text: str, error: str) -> None:
    screen = io.StringIO()
    with pytest.raises(IdeficsError) as raised:
        copy_text(text, screen, {"TERM": terminal, "PATH": ""})
    assert str(raised.value) == error
    assert "/export md FILE" in str(raised.value.hint)
    assert screen.getvalue() == ""


def test_the_command_copies_the_last_answer_or_another_without_control_characters(
    tmp_path: Path,
) -> None:
    here = world(tmp_path, "One\x1b[2J.\n", "Two.", "")
    _, err, _ = here.talk(
        "/copy", "a", "b", "/copy", "/copy 1", "c", "/copy", TERM="xterm", PATH=""
    )
    sent = [base64.b64decode(data).decode() for data in re.findall(r"\x1b\]52;c;(.*?)\x07", err)]
    assert sent == ["Two.", "One\u241b[2J."]
    assert "no question was asked yet" in err
    assert "the answer to question 3 is empty" in err
