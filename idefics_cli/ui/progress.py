"""How far a captioning run is, on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Self

from idefics_cli.caption.executors.base import BatchReduced, Ready
from idefics_cli.caption.runner import RunEvent, Started, Stopping
from idefics_cli.caption.sinks.base import ByteStream
from idefics_cli.core.errors import IdeficsError
from idefics_cli.core.types import CaptionRecord
from idefics_cli.models.image_sources import describe_source
from idefics_cli.ui.console import Console

# Without a terminal: the first line, and the least time from one to the next.
_FIRST_LINE_SECONDS = 10.0
_LINE_SECONDS = 30.0


class CaptionProgress:
    """Counts the pictures of a run and shows it: a bar on a terminal, else a line now and then.

    Give `handle` to `run_captions`, and `stdout` to the sink, so that the bar and the captions
    do not tear each other on one terminal.

    Args:
        console: The streams of the command; when quiet, only failures are told.
        clock: Seconds.
    """

    def __init__(self, console: Console, *, clock: Callable[[], float]) -> None:
        self._console = console
        self._clock = clock
        self._counts = _Counts()
        self._started = 0.0
        self._next_line = _FIRST_LINE_SECONDS
        self._hints: set[str] = set()
        self._bar = _Bar(console) if _has_bar(console) else None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()

    @property
    def stdout(self) -> ByteStream:
        """Standard output, for bytes; the bar makes way while they are written."""
        buffer = self._console.out.buffer
        if self._bar is None or not self._console.is_terminal:
            return buffer
        return _Beside(self._bar, buffer)

    @property
    def total(self) -> int:
        """How many pictures the run began with."""
        return self._counts.total

    @property
    def cut(self) -> int:
        """How many captions ended at the limit of tokens."""
        return self._counts.cut

    @property
    def summary(self) -> str:
        """What has been done so far, on one line, as `captioned 198 of 200 in 21 s (9.4/s)`."""
        return self._counts.summary()

    def handle(self, event: RunEvent) -> None:
        """Show *event*; a failure and a smaller batch get a line of their own."""
        if isinstance(event, Started):
            self._counts.total, self._counts.skipped = event.total, event.skipped
        elif isinstance(event, Ready):
            self._started = self._clock()
            self._show()
        elif isinstance(event, Stopping):
            with self._line():
                self._console.note("finishing what is in the works; Ctrl-C again stops at once")
        elif isinstance(event, BatchReduced):
            pictures = "one picture" if event.size == 1 else f"{event.size} pictures"
            with self._line():
                self._console.warn(f"out of memory: going on with {pictures} at a time")
        else:
            self._count(event)

    def _count(self, record: CaptionRecord) -> None:
        counts = self._counts
        counts.seconds = self._clock() - self._started
        counts.tokens += record.new_tokens
        if record.error is None:
            counts.captioned += 1
            counts.cut += record.finish == "length"
        else:
            counts.failed += 1
            with self._line():
                self._console.error(self._failure(record, record.error))
        self._show()

    def _failure(self, record: CaptionRecord, error: str) -> IdeficsError:
        name = record.file_name
        is_named = name in error or describe_source(name) in error
        text = error if is_named else f"{name}: {error}"
        # A thousand pictures of one kind need the hint once.
        hint = None if record.hint in self._hints else record.hint
        if hint:
            self._hints.add(hint)
        return IdeficsError(text, hint=hint)

    def _show(self) -> None:
        counts = self._counts
        if self._bar is not None:
            self._bar.show(counts)
        elif counts.seconds >= self._next_line and counts.done < counts.total:
            self._console.note(counts.state())
            # Nine hours make 200 lines: each waits a little longer than the one before.
            self._next_line = max(counts.seconds + _LINE_SECONDS, counts.seconds * 1.02)

    @contextmanager
    def _line(self) -> Iterator[None]:
        if self._bar is None:
            yield
            return
        with self._bar.paused():
            yield


def _has_bar(console: Console) -> bool:
    environ = console.environ or {}
    return console.err.isatty() and not console.quiet and environ.get("TERM") != "dumb"


class _Counts:
    def __init__(self) -> None:
        self.total = 0
        self.captioned = 0
        self.failed = 0
        self.skipped = 0
        self.tokens = 0
        self.cut = 0
        self.seconds = 0.0

    @property
    def done(self) -> int:
        return self.captioned + self.failed

    def state(self) -> str:
        text = f"{self.done} of {self.total}{self._failures()}"
        if self.skipped:
            text += f", {self.skipped} skipped"
        if not self.done or self.seconds <= 0:
            return text
        text += f", {_rate(self.done / self.seconds)}"
        if self.tokens:
            text += f", {self.tokens / self.seconds:.0f} tokens/s"
        left = (self.total - self.done) * self.seconds / self.done
        return f"{text}, {span(left)} left"

    def summary(self) -> str:
        text = f"captioned {self.captioned} of {self.total}"
        if self.captioned and self.seconds > 0:
            text += f" in {span(self.seconds)} ({_rate(self.captioned / self.seconds)})"
        return text + self._failures()

    def _failures(self) -> str:
        return f", {self.failed} failed" if self.failed else ""


class _Bar:
    """A bar at the foot of the terminal, gone when it is stopped."""

    def __init__(self, console: Console) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._progress = Progress(
            SpinnerColumn(),
            BarColumn(24),
            TextColumn("{task.description}", markup=False),
            console=RichConsole(file=console.err),
            transient=True,
        )
        self._task = self._progress.add_task("", total=None)

    def show(self, counts: _Counts) -> None:
        self._progress.update(
            self._task, completed=counts.done, total=counts.total, description=counts.state()
        )
        self._progress.start()

    def stop(self) -> None:
        self._progress.stop()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Take the bar away while the block writes to the terminal."""
        was_shown = self._progress.live.is_started
        self._progress.stop()
        try:
            yield
        finally:
            if was_shown:
                self._progress.start()


class _Beside:
    """Bytes to the terminal that the bar is on."""

    def __init__(self, bar: _Bar, stream: ByteStream) -> None:
        self._bar = bar
        self._stream = stream

    def write(self, data: bytes, /) -> None:
        with self._bar.paused():
            self._stream.write(data)
            self._stream.flush()

    def flush(self) -> None:
        """Do nothing: each write is flushed while the bar is away."""


def span(seconds: float) -> str:
    """Return a time for people, as `21 s` or `9 h 43 min`."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def _rate(per_second: float) -> str:
    return f"{per_second:.1f}/s" if per_second >= 0.1 else f"{per_second * 60:.1f}/min"
