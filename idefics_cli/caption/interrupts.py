"""The handling of Ctrl-C and SIGTERM: the first signal lets a run finish, the second ends it."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Event
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupts:
    """Turns the first signal into a flag, and the second one into `KeyboardInterrupt`.

    The second signal raises only in an `allowed` block. Outside of such a block, a record may be
    written, but not yet shown and counted. A third signal raises anywhere, because a user must be
    able to stop a run that is blocked by a pipe which nobody reads. Only the main thread gets
    signals. A handler that another part of the program has installed stays.

    Args:
        on_stop: Called once, in an `allowed` block, after the first signal.

    Attributes:
        stop: Set by the first signal.
        is_patient: Whether there may be a batch to finish. If not, the first signal raises.
    """

    def __init__(self, on_stop: Callable[[], None] = lambda: None) -> None:
        self.stop = Event()
        self.is_patient = False
        self._on_stop = on_stop
        self._signals = 0
        self._is_allowed = False
        self._has_called = False

    @contextmanager
    def handled(self) -> Iterator[None]:
        """Handle signals in the `with` block.

        If a second signal came but did not raise in the block, it raises at the end of the block.
        """
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
        """Let a second signal raise in the `with` block, even if it came before the block."""
        # The attribute is set before `_react` runs, so that a second signal between these two lines
        # raises KeyboardInterrupt, too.
        self._is_allowed = True
        try:
            self._react()
            yield
        finally:
            self._is_allowed = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        self._signals += 1
        self.stop.set()
        if self._is_allowed or self._signals > 2:
            self._react()

    def _react(self) -> None:
        if self._signals > (1 if self.is_patient else 0):
            raise KeyboardInterrupt
        if self._signals and not self._has_called:
            self._has_called = True
            self._on_stop()
