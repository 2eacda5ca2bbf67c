"""The keyboard: what waits on it, whether its keys are shown, and the signal to end."""

from __future__ import annotations

import contextlib
import select
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType

_PASTE_SECONDS = 0.05
_LOCAL_MODES = 3  # the place of them in what termios gives


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
def silent_keyboard() -> Iterator[None]:
    """Do not let the terminal show keys, which would stand in the output, as `^C`.

    What is typed meanwhile waits for the next line input.
    """
    with _echo(is_on=False):
        yield


@contextlib.contextmanager
def echoing_keyboard() -> Iterator[None]:
    """Let the terminal show keys, also inside of `silent_keyboard`."""
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
        # The terminal may be closed.
        with contextlib.suppress(OSError, ValueError, termios.error):
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
