"""Ctrl-C that Python loses: a `KeyboardInterrupt` in a `__del__` method ends nothing."""

from __future__ import annotations

import signal
import sys
import threading
from typing import Any

_SECONDS = 0.01


def repeat_lost_interrupts() -> None:
    """Let a Ctrl-C that comes while Python runs a `__del__` come again right after it.

    By default, Python prints it with a traceback, and the program goes on. Libraries with many such
    methods, such as `regex`, make this likely while they are imported.
    """
    sys.unraisablehook = _repeat


# Any: the type `sys.UnraisableHookArgs` exists for type checkers only.
def _repeat(lost: Any) -> None:
    if lost.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(lost)
        return
    # Not at once: that would raise it in this function, where it is lost, too.
    timer = threading.Timer(_SECONDS, _interrupt)
    timer.daemon = True
    timer.start()


def _interrupt() -> None:
    if sys.platform == "win32":
        signal.raise_signal(signal.SIGINT)
    else:  # this ends a wait of the main thread, too
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
