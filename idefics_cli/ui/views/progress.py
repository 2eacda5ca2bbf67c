"""The progress of a captioning run, on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Self

from idefics_cli.caption.events import (
    BatchLimited,
    BatchReduced,
    Kept,
    ModelLoading,
    Ready,
    Reporting,
    Resumed,
    RunEnded,
    RunEvent,
    Started,
    Stopping,
    Unlocked,
    WorkerGone,
    WorkerLost,
    WorkerShares,
)
from idefics_cli.caption.item import ItemWords
from idefics_cli.caption.kind import PICTURES, ItemKind
from idefics_cli.caption.sinks.base import ByteStream
from idefics_cli.core.errors import IdeficsError
from idefics_cli.core.sources import describe_source
from idefics_cli.core.types import CaptionRecord, Progress
from idefics_cli.core.units import format_duration
from idefics_cli.ui.terminal.console import Console
from idefics_cli.ui.terminal.noise import Noise

# Where no bar can be drawn, progress is written in lines. The first line comes after
# `_FIRST_LINE_SECONDS`, and at least `_LINE_SECONDS` pass between two lines.
_FIRST_LINE_SECONDS = 10.0
_LINE_SECONDS = 30.0
_BAR_WIDTH = 24


class CaptionProgress:
    """Shows a captioning run as a bar on a terminal, elsewhere as a line from time to time.

    The run gets `handle` as its `on_event`, and writes its captions to `stdout` of this object.
    The bar is then taken away while a caption is written to the same terminal.

    Args:
        console: The streams of the command. A quiet console gets the failures only.
        clock: Returns seconds.
        model: Name of the model, which is shown while the model loads.
        verbose: Whether messages that libraries wrote during the bar are printed at the end;
            otherwise they are only counted.
        kind: What the items of the run are.
    """

    def __init__(
        self,
        console: Console,
        *,
        clock: Callable[[], float],
        model: str = "the model",
        verbose: bool = False,
        kind: ItemKind = PICTURES,
    ) -> None:
        self._console = console
        self._kind = kind
        self._clock = clock
        self._verbose = verbose
        self._model = model
        self._status = ExitStack()
        self._show_phase: Progress = lambda phase, share: None
        self._noise = Noise(console.err)
        self._counts = _Counts(kind.words.done)
        self._started = 0.0
        self._is_ready = False
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
        """Remove the bar, and restore standard error."""
        is_bug = kind is not None and not issubclass(kind, (IdeficsError, KeyboardInterrupt))
        self._stop(prints_noise=self._verbose or is_bug)

    def _stop(self, *, prints_noise: bool) -> None:
        self._status.close()
        if self._bar is None:
            return
        try:
            self._bar.stop()
        finally:
            self._noise.stop()
            self._bar, self._console = None, replace(self._console, err=self._noise.terminal)
        lines = self._noise.lines()
        if prints_noise:
            for line in lines:
                self._console.note(line)
        elif lines:
            count = "one line" if len(lines) == 1 else f"{len(lines)} lines"
            self._console.note(f"libraries wrote {count} of their own; `--verbose` shows them")

    @property
    def stdout(self) -> ByteStream:
        """Standard output as a stream of bytes; the bar is taken away during every write."""
        buffer = self._console.out.buffer
        return _StdoutBesideBar(self._line, buffer) if self._console.is_terminal else buffer

    @property
    def total(self) -> int:
        """Number of pictures that the run had to caption."""
        return self._counts.total

    @property
    def cut(self) -> int:
        """Number of captions that ended at the limit of tokens."""
        return self._counts.cut

    @property
    def shares(self) -> str:
        """How many pictures each worker has done; empty with one worker."""
        return self._counts.shares

    @property
    def summary(self) -> str:
        """One line about what is done, such as `captioned 198 of 200 in 21 s (9.4/s)`."""
        return self._counts.summary()

    def handle(self, event: RunEvent) -> None:
        """Show *event*."""
        match event:
            case CaptionRecord():
                self._count(event)
            case Started():
                self._counts.total, self._counts.skipped = event.total, event.skipped
                if event.total:
                    self._show_status(f"loading {self._model}")
            case ModelLoading():
                self._show_loading(event)
            case Ready():
                self._status.close()
                self._is_ready = True
                self._started = self._clock()
                self._begin_bar()
                self._show_counts()
            case RunEnded():
                self._stop(prints_noise=self._verbose)
            case WorkerLost() | WorkerGone() | WorkerShares():
                self._show_workers(event)
            case Reporting():
                if not event.done:
                    self._show_status(f"writing {event.path}")
                share = min(1.0, event.done / max(1, event.total))
                self._show_phase(f"writing {event.path}", share)
            case _:
                with self._line():
                    self._print(event)

    def _print(
        self, event: Resumed | Kept | Unlocked | BatchLimited | BatchReduced | Stopping
    ) -> None:
        console, words = self._console, self._kind.words
        match event:
            case Resumed(todo, total):
                parts = [f"{todo.captioned} of {total} are {words.done}"]
                if todo.failed:
                    parts.append(f"{todo.failed} failed before (`--retry-failed` tries them again)")
                if todo.changed:
                    parts.append(f"{todo.changed} changed since")
                console.note(f"continuing the run: {', '.join(parts)}")
            case Kept(count):
                have = "has" if count == 1 else "have"
                console.note(
                    f"{_counted(count, words)} {have} a description by a person, which stays"
                )
            case Unlocked(path):
                console.note(
                    f"the file system of `{path}` has no locks: start no other run with this output"
                )
            case BatchLimited(size):
                console.note(f"{_counted(size, words)} at a time: more ran out of memory before")
            case BatchReduced(size):
                console.warn(f"out of memory: continuing with {_counted(size, words)} at a time")
            case Stopping():
                console.note("finishing the current batch; Ctrl-C again stops at once")

    def _show_workers(self, event: WorkerLost | WorkerGone | WorkerShares) -> None:
        if isinstance(event, WorkerShares):
            if len(event.done) > 1:
                self._counts.shares = ", ".join(f"{name} {count}" for name, count in event.done)
            self._show_counts()
            return
        with self._line():
            if isinstance(event, WorkerGone):
                self._console.warn(
                    f"the others go on without the worker {event.name}: {event.reason}"
                )
                return
            again = ""
            if event.count:
                again = f"; {_counted(event.count, self._kind.words)} are tried again"
                again = again.replace(" are ", " is ") if event.count == 1 else again
            self._console.warn(f"the worker {event.name} died: {event.reason}{again}")

    def _show_loading(self, event: ModelLoading) -> None:
        if not self._is_ready:
            self._show_phase(event.phase, event.share)
            return
        with self._line():  # a server makes the run wait
            self._console.note(event.phase)

    def _show_status(self, text: str) -> None:
        self._show_phase = self._status.enter_context(self._console.status(text))

    def _begin_bar(self) -> None:
        if self._console.draws and not self._console.quiet:
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
        self._show_counts()

    def _failure(self, record: CaptionRecord, error: str) -> IdeficsError:
        name = self._kind.place(record.file_name)
        is_named = name in error or describe_source(name) in error
        text = error if is_named else f"{name}: {error}"
        # Many pictures may fail in the same way. The hint is then shown once for all of them.
        hint = None if record.hint in self._hints else record.hint
        if hint:
            self._hints.add(hint)
        return IdeficsError(text, hint=hint)

    def _show_counts(self) -> None:
        counts = self._counts
        if self._bar is not None:
            self._bar.show(counts)
        elif counts.seconds >= self._next_line and counts.done < counts.total:
            self._console.note(counts.state())
            # The intervals grow by 2 %, so that a run of nine hours prints about 200 lines.
            self._next_line = max(counts.seconds + _LINE_SECONDS, counts.seconds * 1.02)

    @contextmanager
    def _line(self) -> Iterator[None]:
        if self._bar is None:
            yield
            return
        with self._bar.paused():
            yield


def _counted(count: int, words: ItemWords) -> str:
    return f"one {words.one}" if count == 1 else f"{count} {words.many}"


class _Counts:
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

    @property
    def done(self) -> int:
        return self.captioned + self.failed

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
        if not self.done or self.seconds <= 0:
            return parts
        if self.shares:
            parts["shares"] = f"({self.shares})"
        parts["rate"] = _rate(self.done / self.seconds)
        if self.tokens:
            parts["tokens"] = f"{self.tokens / self.seconds:.0f} tokens/s"
        left = (self.total - self.done) * self.seconds / self.done
        parts["left"] = f"{format_duration(left)} left"
        return parts

    def summary(self) -> str:
        text = f"{self._done_word} {self.captioned} of {self.total}"
        if self.captioned and self.seconds > 0:
            text += f" in {format_duration(self.seconds)} ({_rate(self.captioned / self.seconds)})"
        return text + self._failures()

    def _failures(self) -> str:
        return f", {self.failed} failed" if self.failed else ""


class _Bar:
    """A progress bar in the last line of the terminal, which disappears when it is stopped."""

    def __init__(self, console: Console) -> None:
        from rich.console import Console as RichConsole
        from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn

        self._console = console
        self._rich = RichConsole(file=console.err)
        spinner, text = SpinnerColumn(), TextColumn("{task.description}", markup=False)
        # rich draws the rest of a bar in dark grey. On a white background, such a bar looks as if
        # it were complete.
        bar = BarColumn(_BAR_WIDTH, style="dim")
        self._short, self._long = (spinner, text), (spinner, bar, text)
        self._progress = Progress(
            *self._long,
            console=self._rich,
            transient=True,
        )
        self._task = self._progress.add_task("", total=None)

    def show(self, counts: _Counts) -> None:
        # rich asks descriptors 0, 1 and 2 for the width of the terminal. With `< in > out` and the
        # redirection by `Noise`, none of them is the terminal.
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


class _StdoutBesideBar:
    """Standard output on a terminal that may show the bar, which is taken away for each write."""

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
        """Do nothing, because each write is flushed while the bar is away."""


def _rate(per_second: float) -> str:
    return f"{per_second:.1f}/s" if per_second >= 0.1 else f"{per_second * 60:.1f}/min"
