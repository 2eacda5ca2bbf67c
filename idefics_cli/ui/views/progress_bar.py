"""The bar of a captioning run, and the counts that it shows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import TYPE_CHECKING

from idefics_cli.caption.sinks.base import ByteStream
from idefics_cli.core.units import format_duration
from idefics_cli.ui.terminal.console import Console

if TYPE_CHECKING:
    from rich.table import Table

_BAR_WIDTH = 24
_DRAWINGS_PER_SECOND = 10
# The rate is known when the time is this many times that of the first result: then the results of
# a first batch, which come almost at once, are over.
_SETTLED = 1.5
# A fast model is slow in its first second, in which it reserves memory and fills its batch.
_SLOW_SECONDS = 2.0


class RunCounts:
    """The counts of a run, and the line that tells them."""

    def __init__(self, done_word: str) -> None:
        self._done_word = done_word
        self.total = 0
        self.captioned = 0
        self.failed = 0
        self.skipped = 0
        self.tokens = 0
        self.cut = 0
        self.seconds = 0.0
        self.shares = ""
        # Time and number of the first result, from which the rate is measured.
        self._first: tuple[float, int] | None = None
        self._pace: float | None = None  # seconds for each record

    @property
    def done(self) -> int:
        """Number of records."""
        return self.captioned + self.failed

    def note_time(self, seconds: float) -> None:
        """Note that a record, which is counted already, came after *seconds*.

        The results of a batch come almost at once, and those of the next batch much later. So the
        rate is the mean from the first result to one that came after a pause: between them lie the
        results of whole batches.
        """
        pause, self.seconds = seconds - self.seconds, seconds
        if self._first is None:
            if self.captioned:
                self._first = seconds, self.done
            return
        began, before = self._first
        mean = (seconds - began) / (self.done - before)
        is_settled = seconds >= max(_SETTLED * began, began + _SLOW_SECONDS)
        if is_settled and pause >= mean / 2:
            self._pace = mean

    def state(self, width: int | None = None) -> str:
        """Return the counts on a line of up to *width* columns; the least important are omitted."""
        parts = self._state()
        for name in ("shares", "tokens", "skipped", "rate"):
            if width is None or len(", ".join(parts.values())) <= width:
                break
            parts.pop(name, None)
        return ", ".join(parts.values())

    def _state(self) -> dict[str, str]:
        parts = {"done": f"{self.done} of {self.total}{self._failures()}"}
        if self.skipped:
            parts["skipped"] = f"{self.skipped} skipped"
        if self.done and self.shares:
            parts["shares"] = f"({self.shares})"
        if not self._pace:
            return parts
        parts["rate"] = _rate(1 / self._pace)
        if self.tokens:
            parts["tokens"] = f"{self.tokens / self.seconds:.0f} tokens/s"
        parts["left"] = f"{format_duration((self.total - self.done) * self._pace)} left"
        return parts

    def summary(self) -> str:
        """Return one line about what is done."""
        text = f"{self._done_word} {self.captioned} of {self.total}"
        if self.captioned and self.seconds > 0:
            text += f" in {format_duration(self.seconds)} ({_rate(self.captioned / self.seconds)})"
        return text + self._failures()

    def _failures(self) -> str:
        return f", {self.failed} failed" if self.failed else ""


class ProgressBar:
    """A progress bar in the last line of the terminal, which disappears when it is stopped.

    A thread of rich draws *counts* ten times a second, so that thousands of pictures in a second
    do not cost more than a few.
    """

    def __init__(self, console: Console, counts: RunCounts) -> None:
        from rich.console import Console as RichConsole
        from rich.live import Live
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._console = console
        self._counts = counts
        self._rich = RichConsole(file=console.err)
        spinner, text = SpinnerColumn(), TextColumn("{task.description}", markup=False)
        # rich draws the rest of a bar in dark grey. On a white background, such a bar looks as if
        # it were complete.
        bar = BarColumn(_BAR_WIDTH, style="dim")
        self._short, self._long = (spinner, text), (spinner, bar, text)
        self._progress = Progress(*self._long, console=self._rich)
        self._task = self._progress.add_task("", total=None)
        self._live = Live(
            console=self._rich,
            get_renderable=self._drawing,
            refresh_per_second=_DRAWINGS_PER_SECOND,
            transient=True,
        )

    def show(self) -> None:
        """Show the bar, if it is not shown."""
        if not self._live.is_started:
            self._live.start(refresh=True)

    def _drawing(self) -> Table:
        # rich asks descriptors 0, 1 and 2 for the width of the terminal. With `< in > out` and the
        # redirection by `Noise`, none of them is the terminal.
        self._rich.width = self._console.err_columns
        room = self._rich.width - len("x ")
        counts = self._counts
        state = counts.state(room)
        has_bar = len(state) + _BAR_WIDTH + 1 <= room
        self._progress.columns = self._long if has_bar else self._short
        self._progress.update(
            self._task, completed=counts.done, total=counts.total, description=state
        )
        return self._progress.make_tasks_table(self._progress.tasks)

    def stop(self) -> None:
        """Take the bar away; idempotent."""
        self._live.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Take the bar away while the block writes to the terminal."""
        was_shown = self._live.is_started
        self._live.stop()
        try:
            yield
        finally:
            if was_shown:
                self.show()


class StdoutBesideBar:
    """Standard output that may lead to the terminal of the bar, which is taken away for a write."""

    def __init__(
        self, line: Callable[[], AbstractContextManager[None]], stream: ByteStream
    ) -> None:
        self._line = line
        self._stream = stream

    def write(self, data: bytes, /) -> None:
        """Write and flush *data*."""
        with self._line():
            self._stream.write(data)
            self._stream.flush()

    def flush(self) -> None:
        """Do nothing, because each write is flushed while the bar is away."""


def _rate(per_second: float) -> str:
    return f"{per_second:.1f}/s" if per_second >= 0.1 else f"{per_second * 60:.1f}/min"
