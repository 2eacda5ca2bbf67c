"""The state of the keyboard: text that is not read yet, and whether the terminal shows keys.

`leaving_on_termination` restores that state if the program gets SIGTERM.
"""

from __future__ import annotations

import contextlib
import select
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_PASTE_SECONDS = 0.05
_LOCAL_MODES = 3  # their index in the list that `termios.tcgetattr` returns


def has_typed_text(*, wait_seconds: float = _PASTE_SECONDS) -> bool:
    """Whether the user has typed text that no program has read yet, even an unfinished line.

    Args:
        wait_seconds: How long to wait for the first character.
    """
    try:
        import termios
        import tty
    except ImportError:  # Windows
        return False
    try:
        keyboard = sys.stdin.fileno()
        former = termios.tcgetattr(keyboard)
    except (OSError, ValueError, AttributeError, termios.error):  # stdin is not a terminal
        return False
    try:
        # In its usual mode, a terminal hands over complete lines only. In cbreak mode it also
        # reports an unfinished line.
        tty.setcbreak(keyboard, termios.TCSANOW)
        return bool(select.select([keyboard], [], [], wait_seconds)[0])
    finally:
        termios.tcsetattr(keyboard, termios.TCSANOW, former)


@contextlib.contextmanager
def silent_keyboard() -> Iterator[None]:
    """Let the terminal hide keys in the `with` block; otherwise `^C` would stand in the output.

    The next line input reads what the user types meanwhile.
    """
    with _echo(is_on=False):
        yield


@contextlib.contextmanager
def echoing_keyboard() -> Iterator[None]:
    """Let the terminal show keys in the `with` block, even inside `silent_keyboard`."""
    with _echo(is_on=True):
        yield


@contextlib.contextmanager
def _echo(*, is_on: bool) -> Iterator[None]:
    try:
        import termios
    except ImportError:  # Windows
        yield
        return
    try:
        keyboard = sys.stdin.fileno()
        former = termios.tcgetattr(keyboard)
    except (OSError, ValueError, AttributeError, termios.error):  # stdin is not a terminal
        yield
        return
    modes = list(former)
    modes[_LOCAL_MODES] = modes[_LOCAL_MODES] & ~termios.ECHO | (termios.ECHO if is_on else 0)
    termios.tcsetattr(keyboard, termios.TCSANOW, modes)
    try:
        yield
    finally:
        # The call fails if the terminal has been closed meanwhile.
        with contextlib.suppress(OSError, ValueError, termios.error):
            termios.tcsetattr(keyboard, termios.TCSANOW, former)


@contextlib.contextmanager
def leaving_on_termination() -> Iterator[None]:
    """Let SIGTERM raise `SystemExit` in the `with` block, so that every `finally` runs.

    Such a `finally` gives the terminal its modes back. The exit code is 128 plus the number of the
    signal, as in a shell.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    former = signal.signal(signal.SIGTERM, leave)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, former)
