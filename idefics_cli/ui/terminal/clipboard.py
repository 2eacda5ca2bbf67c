"""Copying of text to the clipboard, with a program of the desktop or through the terminal.

A terminal sets the clipboard when it gets the control sequence OSC 52.
"""

from __future__ import annotations

import base64
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TextIO

from idefics_cli.core.errors import IdeficsError
from idefics_cli.ui.terminal.console import write

_TIMEOUT_SECONDS = 5.0
# Every terminal with OSC 52 takes a text of this length. hterm, xterm.js and others take at most
# 100,000 characters of base64 (chromium's osc52.sh).
MOST_TERMINAL_BYTES = 74_994
# GNU screen passes on at most 768 bytes of a control string, and its older versions at most 256
# (MAXSTR in its ansi.h). A longer string is sent in pieces of this size.
_SCREEN_PIECE = 200
_HINT = "`/export md FILE` writes the conversation to a file"


@dataclass(frozen=True, slots=True)
class _Tool:
    """A program that puts its stdin on the clipboard."""

    command: tuple[str, ...]
    encoding: str = "utf-8"
    place: str = "the clipboard"


def copy_text(text: str, terminal: TextIO, environ: Mapping[str, str]) -> str:
    """Put *text* on the clipboard, and return a sentence about where it went.

    A terminal does not report whether it has set the clipboard, so the text is sent to the terminal
    only if no program takes it. Over ssh the programs of the desktop are not tried, because they
    would set the clipboard of the remote computer.

    Args:
        text: The text, without control characters.
        terminal: The terminal of the chat.
        environ: The environment, which names the desktop and the terminal.

    Raises:
        IdeficsError: If there is no clipboard, or the text is too long for the terminal.
    """
    for tool in _tools(environ):
        if _run(tool, text, environ):
            return f"copied {len(text)} characters to {tool.place}"
    if environ.get("TERM", "dumb") in ("dumb", "linux") and os.name != "nt":
        raise IdeficsError("there is no clipboard that this terminal can reach", hint=_HINT)
    data = text.encode("utf-8", "replace")
    if len(data) > MOST_TERMINAL_BYTES:
        raise IdeficsError(
            f"the text has {len(data)} bytes, and terminals take {MOST_TERMINAL_BYTES}", hint=_HINT
        )
    write(terminal, _osc52(data, environ))
    return f"sent {len(text)} characters to the terminal, which copies them if its settings allow"


def _tools(environ: Mapping[str, str]) -> Iterator[_Tool]:
    """Yield the programs for this desktop; the first that works is used."""
    if "SSH_CONNECTION" not in environ:
        if sys.platform == "darwin":
            yield _Tool(("pbcopy",))
        if environ.get("WAYLAND_DISPLAY"):
            yield _Tool(("wl-copy",))
        if environ.get("DISPLAY"):
            yield _Tool(("xclip", "-selection", "clipboard", "-in"))
            yield _Tool(("xsel", "--clipboard", "--input"))
        if sys.platform == "win32" or "WSL_DISTRO_NAME" in environ:
            yield _Tool(("clip.exe",), "utf-16")
    if "TMUX" in environ:
        # tmux passes the text on to its terminal, also over ssh. This needs tmux 3.2.
        place = "tmux, and to the clipboard if its terminal allows that"
        yield _Tool(("tmux", "load-buffer", "-w", "-"), place=place)


def _run(tool: _Tool, text: str, environ: Mapping[str, str]) -> bool:
    """Whether *tool* took *text*."""
    program = shutil.which(tool.command[0], path=environ.get("PATH"))
    if program is None:
        return False
    try:
        ran = subprocess.run(
            [program, *tool.command[1:]],
            input=text.encode(tool.encoding, "replace"),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            # pbcopy reads its input in the encoding that this variable names.
            env={**environ, "LC_CTYPE": "UTF-8"} if sys.platform == "darwin" else dict(environ),
            timeout=_TIMEOUT_SECONDS,
            # xclip and wl-copy keep running, because they hand out the text when another program
            # pastes it. In a session of their own, Ctrl-C in the chat does not end them.
            start_new_session=True,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return False
    return ran.returncode == 0


def _osc52(data: bytes, environ: Mapping[str, str]) -> str:
    """Return the control string that sets the clipboard, wrapped for tmux or GNU screen.

    Sources: XTerm control sequences, "Operating System Commands", 52; tmux(1),
    `allow-passthrough`; screen(1), "Device Control String".
    """
    text = f"\x1b]52;c;{base64.b64encode(data).decode('ascii')}\x07"
    if "TMUX" in environ:
        return "\x1bPtmux;" + text.replace("\x1b", "\x1b\x1b") + "\x1b\\"
    if "STY" in environ:
        pieces = range(0, len(text), _SCREEN_PIECE)
        return "".join(f"\x1bP{text[start : start + _SCREEN_PIECE]}\x1b\\" for start in pieces)
    return text
