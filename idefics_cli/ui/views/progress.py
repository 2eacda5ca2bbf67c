"""How far a captioning run is, on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Self

from idefics_cli.caption.events import (
    BatchReduced,
    ModelLoading,
    Ready,
    RunEvent,
    Started,
    Stopping,
)
from idefics_cli.caption.sinks.base import ByteStream
from idefics_cli.core.errors import IdeficsError
from idefics_cli.core.sources import describe_source
from idefics_cli.core.types import CaptionRecord, Progress
from idefics_cli.core.units import format_duration
from idefics_cli.ui.terminal.console import Console
from idefics_cli.ui.terminal.noise import Noise

# Without a terminal: the first line, and the least time from one to the next.
_FIRST_LINE_SECONDS = 10.0
_LINE_SECONDS = 30.0
_BAR_WIDTH = 24


class CaptionProgress:
    """Counts the pictures of a run and shows it: a bar on a terminal, else a line now and then.

    Give `handle` to `run_captions`, and `stdout` to the sink, so that the bar and the captions
    do not tear each other on one terminal.

    Args:
        console: The streams of the command; when quiet, only failures are told.
        clock: Seconds.
        model: Name of the model, to show while it loads.
        verbose: Tell in the end what libraries wrote while there was a bar.
    """

    def __init__(
        self,
        console: Console,
        *,
        clock: Callable[[], float],
        model: str = "the model",
        verbose: bool = False,
    ) -> None:
        self._console = console
        self._clock = clock
        self._verbose = verbose
        self._model = model
        self._status = ExitStack()
        self._on_loading: Progress | None = None
        self._noise = Noise(console.err)
        self._counts = _Counts()
        self._started = 0.0
        self._next_line = _FIRST_LINE_SECONDS
        self._hints: set[str] = set()
        self._bar: _Bar | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Take the bar away, and let standard error be what it was."""
        self._status.close()
        if self._bar is None:
            return
        try:
            self._bar.stop()
        finally:
            self._noise.stop()
            self._bar, self._console = None, replace(self._console, err=self._noise.terminal)
        is_bug = kind is not None and not issubclass(kind, (IdeficsError, KeyboardInterrupt))
        self._tell_noise(self._noise.lines(), in_full=self._verbose or is_bug)

    def _tell_noise(self, lines: Sequence[str], *, in_full: bool) -> None:
        if in_full:
            for line in lines:
                self._console.note(line)
        elif lines:
            count = "one line" if len(lines) == 1 else f"{len(lines)} lines"
            self._console.note(f"libraries wrote {count} of their own; `--verbose` shows them")

    @property
    def stdout(self) -> ByteStream:
        """Standard output, for bytes; the bar makes way while they are written."""
        buffer = self._console.out.buffer
        return _Beside(self._line, buffer) if self._console.is_terminal else buffer

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
            if event.total:
                status = self._console.status(f"loading {self._model}")
                self._on_loading = self._status.enter_context(status)
        elif isinstance(event, ModelLoading):
            if self._on_loading is not None:
                self._on_loading(event.phase, event.share)
        elif isinstance(event, Ready):
            self._status.close()
            self._started = self._clock()
            self._draw()
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

    def _draw(self) -> None:
        if _has_bar(self._console):
            self._noise.start()
            self._console = replace(self._console, err=self._noise.terminal)
            self._bar = _Bar(self._console)

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
    return console.draws and not console.quiet


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

    def state(self, width: int | None = None) -> str:
        """Return how far it is, without what matters least where *width* is not enough."""
        parts = self._state()
        for name in ("tokens", "skipped", "rate"):
            if width is None or len(", ".join(parts.values())) <= width:
                break
            parts.pop(name, None)
        return ", ".join(parts.values())

    def _state(self) -> dict[str, str]:
        parts = {"done": f"{self.done} of {self.total}{self._failures()}"}
        if self.skipped:
            parts["skipped"] = f"{self.skipped} skipped"
        if not self.done or self.seconds <= 0:
            return parts
        parts["rate"] = _rate(self.done / self.seconds)
        if self.tokens:
            parts["tokens"] = f"{self.tokens / self.seconds:.0f} tokens/s"
        left = (self.total - self.done) * self.seconds / self.done
        parts["left"] = f"{format_duration(left)} left"
        return parts

    def summary(self) -> str:
        text = f"captioned {self.captioned} of {self.total}"
        if self.captioned and self.seconds > 0:
            text += f" in {format_duration(self.seconds)} ({_rate(self.captioned / self.seconds)})"
        return text + self._failures()

    def _failures(self) -> str:
        return f", {self.failed} failed" if self.failed else ""


class _Bar:
    """A bar at the foot of the terminal, gone when it is stopped."""

    def __init__(self, console: Console) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._console = console
        self._rich = RichConsole(file=console.err)
        spinner, text = SpinnerColumn(), TextColumn("{task.description}", markup=False)
        # Rich's own dark grey looks on a white ground as if all were done.
        bar = BarColumn(_BAR_WIDTH, style="dim")
        self._short, self._long = (spinner, text), (spinner, bar, text)
        self._progress = Progress(
            *self._long,
            console=self._rich,
            transient=True,
        )
        self._task = self._progress.add_task("", total=None)

    def show(self, counts: _Counts) -> None:
        # Rich asks descriptors 0, 1 and 2, none of which is the terminal now in `< in > out`.
        self._rich.width = self._console.err_columns
        room = self._rich.width - len("x ")
        state = counts.state(room)
        has_bar = len(state) + _BAR_WIDTH + 1 <= room
        self._progress.columns = self._long if has_bar else self._short
        self._progress.update(
            self._task, completed=counts.done, total=counts.total, description=state
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
    """Bytes to the terminal that the bar may be on."""

    def __init__(
        self, line: Callable[[], AbstractContextManager[None]], stream: ByteStream
    ) -> None:
        self._line = line
        self._stream = stream

    def write(self, data: bytes, /) -> None:
        with self._line():
            self._stream.write(data)
            self._stream.flush()

    def flush(self) -> None:
        """Do nothing: each write is flushed while the bar is away."""


def _rate(per_second: float) -> str:
    return f"{per_second:.1f}/s" if per_second >= 0.1 else f"{per_second * 60:.1f}/min"
