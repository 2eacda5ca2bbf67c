"""What waits on the keyboard, and the signal that ends the program."""

from __future__ import annotations

import contextlib
import select
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_PASTE_SECONDS = 0.05


def has_typed_text(*, wait_seconds: float = _PASTE_SECONDS) -> bool:
    """Whether text waits on the keyboard, also a line that is not ended yet.

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
        # Line by line, a terminal does not report a line without an end.
        tty.setcbreak(keyboard, termios.TCSANOW)
        return bool(select.select([keyboard], [], [], wait_seconds)[0])
    finally:
        termios.tcsetattr(keyboard, termios.TCSANOW, former)


@contextlib.contextmanager
def leaving_on_termination() -> Iterator[None]:
    """Leave with an exception on SIGTERM, so that the terminal gets its modes back.

    The exit code is that of a shell for this signal: 128 and its number.
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
