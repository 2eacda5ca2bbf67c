"""Ctrl-C where it does no harm."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupts:
    """Lets Ctrl-C raise only where nothing is half done, and a second one anywhere.

    So a record is either written, told and counted, or none of the three; and who writes to a
    pipe that nobody reads can still be stopped. Only the main thread gets signals, and a handler
    that somebody else installed is left alone.
    """

    def __init__(self) -> None:
        self._is_pending = False
        self._is_allowed = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Hold Ctrl-C back until an `allowed` block, or the end of this one."""
        is_main = threading.current_thread() is threading.main_thread()
        if not is_main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return
        signal.signal(signal.SIGINT, self._on_signal)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        self._raise_pending()

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Let Ctrl-C raise `KeyboardInterrupt` in this block, also one that came before."""
        # In this order: from here on the handler raises by itself.
        self._is_allowed = True
        try:
            self._raise_pending()
            yield
        finally:
            self._is_allowed = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        is_second = self._is_pending
        self._is_pending = True
        if self._is_allowed or is_second:
            self._raise_pending()

    def _raise_pending(self) -> None:
        if self._is_pending:
            self._is_pending = False
            raise KeyboardInterrupt
