"""The progress of a captioning run, on stderr."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from types import TracebackType
from typing import Self

from idefics_cli.caption.events import (
    BatchLimited,
    BatchReduced,
    BegunAnew,
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
from idefics_cli.ui.terminal.console import Console
from idefics_cli.ui.terminal.noise import Noise
from idefics_cli.ui.views.progress_bar import ProgressBar, RunCounts, StdoutBesideBar

# Where no bar can be drawn, progress is written in lines. The first line comes after
# `_FIRST_LINE_SECONDS`, and at least `_LINE_SECONDS` pass between two lines.
_FIRST_LINE_SECONDS = 10.0
_LINE_SECONDS = 30.0


class CaptionProgress:
    """Shows a captioning run as a bar on a terminal, elsewhere as a line from time to time.

    The run gets `handle` as its `on_event`, and writes its captions to `stdout` of this object.
    The bar is then taken away while a caption is written to the same terminal. The program that
    reads a pipe may write to this terminal at any time, so the first caption for a pipe ends the
    bar, and lines follow.

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
        self._counts = RunCounts(kind.words.done)
        self._started = 0.0
        self._is_ready = False
        self._next_line = _FIRST_LINE_SECONDS
        self._hints: set[str] = set()
        self._bar: ProgressBar | None = None
        self._has_ended = False

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
        """Standard output as a stream of bytes; no write meets the bar on a terminal."""
        buffer = self._console.out.buffer
        if self._console.is_pipe:
            return StdoutBesideBar(self._ended_bar, buffer)
        return StdoutBesideBar(self._line, buffer) if self._console.is_terminal else buffer

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
        self,
        event: Resumed | Kept | Unlocked | BegunAnew | BatchLimited | BatchReduced | Stopping,
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
            case BegunAnew(reason):
                console.warn(f"beginning anew, because {reason}")
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
            self._bar = ProgressBar(self._console, self._counts)

    def _count(self, record: CaptionRecord) -> None:
        counts = self._counts
        seconds = self._clock() - self._started
        counts.tokens += record.new_tokens
        if record.error is None:
            counts.captioned += 1
            counts.cut += record.finish == "length"
        else:
            counts.failed += 1
            with self._line():
                self._console.error(self._failure(record, record.error))
        counts.note_time(seconds)
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
        if self._bar is not None and not self._has_ended:
            self._bar.show()
        elif counts.seconds >= self._next_line and counts.done < counts.total:
            self._console.note(counts.state())
            # The intervals grow by 2 %, so that a run of nine hours prints about 200 lines.
            self._next_line = max(counts.seconds + _LINE_SECONDS, counts.seconds * 1.02)

    @contextmanager
    def _ended_bar(self) -> Iterator[None]:
        if self._bar is not None:
            self._has_ended = True
            self._bar.stop()
        yield

    @contextmanager
    def _line(self) -> Iterator[None]:
        if self._bar is None:
            yield
            return
        with self._bar.paused():
            yield


def _counted(count: int, words: ItemWords) -> str:
    return f"one {words.one}" if count == 1 else f"{count} {words.many}"
