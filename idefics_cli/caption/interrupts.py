"""Ctrl-C and SIGTERM: the first lets the run come to its end in order, the second ends it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Turns the first signal into a flag, and the second into `KeyboardInterrupt`.

    The second raises where nothing is half done, in an `allowed` block, so that a record is
    written, told and counted, or none of the three; a third raises anywhere, as who writes to a
    pipe that nobody reads must be stopped too. Only the main thread gets signals, and a handler
    that somebody else installed is left alone.

    Args:
        on_stop: Called once, in an `allowed` block, after the first signal.

    Attributes:
        stop: Set by the first signal.
        is_patient: Whether there is something to finish; otherwise the first signal raises.
    """

    def __init__(self, on_stop: Callable[[], None] = lambda: None) -> None:
        self.stop = Event()
        self.is_patient = False
        self._on_stop = on_stop
        self._signals = 0
        self._is_allowed = False
        self._is_told = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Take signals over in this block; a second one that came too late is raised after it."""
        former = {}
        if threading.current_thread() is threading.main_thread():
            usual = (signal.default_int_handler, signal.SIG_DFL)
            former = {s: h for s in _SIGNALS if (h := signal.getsignal(s)) in usual}
        for number in former:
            signal.signal(number, self._on_signal)
        try:
            yield
        finally:
            for number, handler in former.items():
                signal.signal(number, handler)
        if self._signals > 1:
            raise KeyboardInterrupt

    @contextmanager
    def allowed(self) -> Iterator[None]:
        """Let a second signal raise in this block, also one that came before."""
        # In this order: from here on the handler acts by itself.
        self._is_allowed = True
        try:
            self._act()
            yield
        finally:
            self._is_allowed = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        self.stop.set()
        if self._is_allowed or self._signals > 2:
            self._act()

    def _act(self) -> None:
        if self._signals > (1 if self.is_patient else 0):
            raise KeyboardInterrupt
        if self._signals and not self._is_told:
            self._is_told = True
            self._on_stop()
