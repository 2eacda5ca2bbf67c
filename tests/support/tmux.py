"""A chat in a window of tmux, which keeps the cells and the wrapped lines as terminals do."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

_LONGEST_WAIT_SECONDS = 60.0
_STEP_SECONDS = 0.05


def has_tmux() -> bool:
    """Whether tmux is installed."""
    return shutil.which("tmux") is not None


class Window:
    """A window of a tmux server of its own, with `tests.support.talking` in it.

    Args:
        python: The start of the command, in place of `python`.
        home: The home folder of the chat.
        arguments: Options of the chat.
        columns: Width of the window.
        rows: Height of the window.
        environ: More variables of the environment.
    """

    def __init__(
        self,
        python: Sequence[str],
        home: Path,
        *arguments: str,
        columns: int = 80,
        rows: int = 24,
        environ: Mapping[str, str] | None = None,
    ) -> None:
        # The path of a socket has at most 108 bytes.
        self._folder = tempfile.TemporaryDirectory(prefix="tmux")
        # `/copy` sets no clipboard of this computer over ssh.
        self._environ = {**os.environ, "HOME": str(home), "SSH_CONNECTION": "1", **(environ or {})}
        self._environ.pop("TMUX", None)
        command = [*python, "-m", "tests.support.talking", *arguments]
        self._run(
            "-f", os.devnull, "new-session", "-d", "-x", str(columns), "-y", str(rows),
            shlex.join(command), ";", "set", "status", "off", ";", "set", "remain-on-exit", "on",
            ";", "resize-window", "-x", str(columns), "-y", str(rows),
        )  # fmt: skip

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._run("kill-server")
        self._folder.cleanup()

    def type(self, text: str, *keys: str) -> None:
        """Type *text*, and press the *keys* of tmux's names, as `Enter`."""
        if text:
            self._run("send-keys", "-l", text)
        if keys:
            self._run("send-keys", *keys)

    def resize(self, columns: int, rows: int = 24) -> None:
        """Change the size of the window."""
        self._run("resize-window", "-x", str(columns), "-y", str(rows))

    def lines(self, *, whole: bool = False) -> list[str]:
        """Return the lines on the screen, without blanks at their ends.

        Args:
            whole: Join the rows of a line that the terminal wrapped, as a copy by mouse does.
        """
        shown = self._run("capture-pane", "-p", *(["-J"] if whole else []))
        return [line.rstrip() for line in shown.rstrip("\n").split("\n")]

    def buffer(self) -> str:
        """Return the text that was copied last into tmux."""
        return self._run("show-buffer")

    def wait(self, text: str) -> list[str]:
        """Wait until a line that the terminal may have wrapped contains *text*; return `lines`."""
        end = time.monotonic() + _LONGEST_WAIT_SECONDS
        while not any(text in line for line in self.lines(whole=True)):
            assert time.monotonic() < end, "\n".join([f"no `{text}` in", *self.lines()])
            time.sleep(_STEP_SECONDS)
        return self.lines()

    def wait_for_prompt(self) -> list[str]:
        """Wait until the last line is an empty prompt; return `lines`."""
        end = time.monotonic() + _LONGEST_WAIT_SECONDS
        while [line for line in self.lines() if line][-1:] != [">"]:
            assert time.monotonic() < end, "\n".join(["no prompt in", *self.lines()])
            time.sleep(_STEP_SECONDS)
        return self.lines()

    def _run(self, *arguments: str) -> str:
        socket = Path(self._folder.name) / "socket"
        return subprocess.run(
            ["tmux", "-S", str(socket), *arguments],
            env=self._environ, check=True, capture_output=True, text=True,
        ).stdout  # fmt: skip
