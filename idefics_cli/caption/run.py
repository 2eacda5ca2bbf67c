"""A captioning run as a library call: its output, its events and its outcome.

    outcome = caption_pictures(job, CaptionOutput("jsonl", Path("out.jsonl")), plan.spec)

This module writes nothing to a terminal. The caller shows the events, and describes the outcome.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

from idefics_cli.caption.events import (
    BatchLimited,
    BatchReduced,
    BegunAnew,
    Kept,
    Ready,
    Reporting,
    Resumed,
    RunEnded,
    RunEvent,
    Started,
    Unlocked,
)
from idefics_cli.caption.executors import EXECUTORS, ExecutorKind, NamedFactory
from idefics_cli.caption.job import CaptionJob
from idefics_cli.caption.kind import PICTURES, ItemKind
from idefics_cli.caption.outcome import RunEnd, RunOutcome
from idefics_cli.caption.output import CaptionOutput
from idefics_cli.caption.resume.header import RunHeader
from idefics_cli.caption.resume.journaled_sink import JournaledSink
from idefics_cli.caption.resume.run_files import RunFiles
from idefics_cli.caption.resume.todo import Todo, todo_of
from idefics_cli.caption.runner import run_captions
from idefics_cli.core.errors import IdeficsError, UsageError
from idefics_cli.core.types import CaptionRecord, LoadSpec
from idefics_cli.engine.factory import engine_factory
from idefics_cli.engine.protocol import EngineFactory


def caption_pictures(
    job: CaptionJob,
    output: CaptionOutput,
    spec: LoadSpec,
    *,
    kind: ItemKind = PICTURES,
    factory: EngineFactory | None = None,
    executor: str | ExecutorKind = "local",
    workers: Sequence[NamedFactory] = (),
    retry_failed: bool = False,
    max_failures: int | None = None,
    on_event: Callable[[RunEvent], None] = lambda event: None,
) -> RunOutcome:
    """Caption the pictures of *job* that have no caption in *output* yet.

    With an output file, a later call with the same arguments continues the run, however this call
    ended. After the first Ctrl-C or SIGTERM, the run finishes the current batch. The second ends
    the run at once. Neither raises an error; `RunOutcome.end` tells them apart.

    Args:
        job: What to do.
        output: Where the captions go.
        spec: The model.
        kind: What the items of *job* are.
        factory: Makes the engine; None loads *spec*.
        executor: What makes the executor, or its key in `EXECUTORS`.
        workers: Make the engines of an executor with several of them.
        retry_failed: Caption the pictures that failed before, and no others.
        max_failures: Stop when more pictures than this have failed.
        on_event: Called with every event, as in `run_captions`.

    Raises:
        UsageError: If the output cannot be used, or belongs to a run with other settings.
        IdeficsError: If the model cannot be loaded, or the output cannot be written. A picture
            that fails raises nothing.
    """
    factory = factory or engine_factory(spec)
    executor = EXECUTORS[executor] if isinstance(executor, str) else executor
    run = _RunState(job, output, spec, kind, factory, executor, workers, max_failures, on_event)
    return run.run(retry_failed=retry_failed)


def left_to_do(
    job: CaptionJob,
    output: CaptionOutput,
    spec: LoadSpec,
    *,
    kind: ItemKind = PICTURES,
    retry_failed: bool = False,
) -> Todo:
    """Return the pictures that `caption_pictures` would caption; nothing is written.

    Raises:
        UsageError: If the output belongs to a run with other settings.
    """
    files = output.files(job, kind)
    if files is None or not files.journal.exists():
        return Todo(job.pictures)
    return todo_of(
        job.pictures,
        files.journal,
        settings=output.settings(spec, job, kind),
        existing=output.existing,
        retry_failed=retry_failed,
        rules=kind.rules,
    )


@dataclass(slots=True)
class _RunState:
    """One run, and its state so far."""

    job: CaptionJob
    output: CaptionOutput
    spec: LoadSpec
    kind: ItemKind
    factory: EngineFactory
    executor: ExecutorKind
    workers: Sequence[NamedFactory]
    max_failures: int | None
    on_event: Callable[[RunEvent], None]
    todo: Todo | None = None
    outcome: RunOutcome = field(default_factory=lambda: RunOutcome(end="stopped"))
    failures: list[str] = field(default_factory=list)
    # Returns the records for the report, which include those of earlier calls if there is a
    # journal.
    records: Callable[[], Iterable[CaptionRecord]] = tuple

    def run(self, *, retry_failed: bool) -> RunOutcome:
        """Caption what is left, and write every file of the run."""
        files = self.output.files(self.job, self.kind)
        if files is None and retry_failed:
            raise UsageError(
                "only a run with an output file knows what failed", hint="give its `-o FILE`"
            )
        if self.output.failures is not None:
            keys = {picture.key for picture in self.job.pictures}
            self.kind.check_failures(self.output.failures, keys)
        with suppress(KeyboardInterrupt):
            if files is None:
                self._caption_to_stream()
            else:
                self._caption_to_file(files, retry_failed=retry_failed)
        self._write_failures(files)
        self.on_event(RunEnded(self.outcome))
        if self.output.report is not None:
            self._write_report(self.output.report)
        return self.outcome

    def _caption_to_stream(self) -> None:
        """Write the captions to a stream, which a later call cannot continue."""
        kept: list[CaptionRecord] = []
        self.records = lambda: kept

        def note(event: RunEvent) -> None:
            if isinstance(event, CaptionRecord):
                if event.error:
                    self.failures.append(event.file_name)
                if self.output.report is not None:
                    kept.append(event)

        sink = self.output.sink(self.output.target(self.job))
        with sink:
            self._begin(Todo(self.job.pictures))
            self._caption(sink.write, note)

    def _caption_to_file(self, files: RunFiles, *, retry_failed: bool) -> None:
        """Write the captions to files, and note in the journal what is done."""
        settings = self.output.settings(self.spec, self.job, self.kind)
        header = RunHeader(self.spec, settings, self.kind.words.many)
        self.outcome = replace(self.outcome, is_resumable=True)
        sink = JournaledSink(
            self.output.sink,
            self.output.target(self.job),
            files.journal,
            settings=settings,
            retry_failed=retry_failed,
            rules=self.kind.rules,
        )
        try:
            with sink:
                self._caption_journaled(sink, header, files)
        except (IdeficsError, KeyboardInterrupt) as error:
            # If the header cannot be written either, the first error is the one to report.
            with suppress(IdeficsError):
                self._write_header(header, files, end=self.outcome.end)
            is_begun = self.todo is not None or files.journal.exists()
            if isinstance(error, IdeficsError) and is_begun and error.hint is None:
                error.hint = "once that is fixed, the same command continues the run"
            raise
        self._write_header(header, files, end=self.outcome.end)

    def _caption_journaled(self, sink: JournaledSink, header: RunHeader, files: RunFiles) -> None:
        where = self._where()

        def note(event: RunEvent) -> None:
            if isinstance(event, Ready):
                sink.check_commit(event.revision)
                header.begin_run(event.revision)
                self._write_header(header, files, end=None)
            elif isinstance(event, BatchReduced):
                sink.note_fit(event.requests, where)

        self.records = sink.records
        self._begin(sink.todo)
        if sink.lacks_lock:
            self.on_event(Unlocked(files.journal))
        if sink.replaces is not None:
            self.on_event(BegunAnew(sink.replaces))
        if sink.is_resumed:
            self.on_event(Resumed(sink.todo, len(self.job.pictures)))
            self._limit_batch(sink.fit(where))
        elif self.output.existing == "overwrite" and sink.todo.skipped:
            self.on_event(Kept(sink.todo.skipped))
        try:
            self._caption(sink.write, note, sink.hold)
        finally:
            self.failures = sink.failures()

    def _begin(self, todo: Todo) -> None:
        self.todo = todo
        self.outcome = replace(self.outcome, todo=todo)

    def _caption(
        self,
        write: Callable[[CaptionRecord], object],
        note: Callable[[RunEvent], None],
        hold: Callable[[CaptionRecord], object] = lambda record: None,
    ) -> None:
        assert self.todo is not None
        pictures = self.todo.pictures
        captioned = failed = 0

        def on_event(event: RunEvent) -> None:
            nonlocal captioned, failed
            note(event)
            if isinstance(event, CaptionRecord):
                captioned += event.error is None
                failed += event.error is not None
            self.on_event(event)

        on_event(Started(len(pictures), len(self.job.pictures) - len(pictures)))
        make = partial(self.executor, make_reader=self.kind.make_reader, workers=self.workers)
        try:
            result = run_captions(
                replace(self.job, pictures=pictures),
                self.factory,
                write,
                hold=hold,
                on_event=on_event,
                make_executor=make,
                max_failures=self.max_failures,
                workers=max(1, len(self.workers)),
            )
        finally:
            self.outcome = replace(self.outcome, captioned=captioned, failed=failed)
        self.outcome = replace(self.outcome, end=result.end)

    def _limit_batch(self, requests: int | None) -> None:
        """Limit the batch to *requests*, the number that fitted into the memory the last time."""
        if requests is not None and requests < self.job.batch_size:
            self.job = replace(self.job, batch_size=requests)
            self.on_event(BatchLimited(max(1, requests // len(self.job.asked))))

    def _where(self) -> str:
        """Return a key of what decides how many requests fit into the memory."""
        # The batch size is a part of this key, so that a size that the user gives is tried even if
        # an earlier size did not fit.
        asked = "automatic" if self.job.is_batch_automatic else self.job.batch_size
        return f"{self.spec.device}, batch size {asked}"

    def _write_header(self, header: RunHeader, files: RunFiles, *, end: RunEnd | None) -> None:
        if header.has_begun:
            counts = {
                "listed": len(self.job.pictures),
                self.kind.words.done: self.outcome.todo.captioned + self.outcome.captioned,
                "failed": len(self.failures),
                "skipped": self.outcome.todo.skipped,
            }
            header.write(files.header, end=end, counts=counts)

    def _write_failures(self, files: RunFiles | None) -> None:
        """List the pictures that failed in a file, or remove the list if there are none."""
        path = self.output.failures or (files.failures if files else None)
        if path is not None:
            self.kind.write_failures(path, self.failures)
            self.outcome = replace(self.outcome, failures=path if self.failures else None)

    def _write_report(self, path: Path) -> None:
        """Write the report page. After Ctrl-C, there is no page."""
        from idefics_cli.caption.gallery.report import write_report

        total, shown = len(self.job.pictures), 0

        def on_row() -> None:
            nonlocal shown
            shown += 1
            self.on_event(Reporting(path, shown, total))

        self.on_event(Reporting(path, 0, total))
        with suppress(KeyboardInterrupt):
            write_report(
                path,
                self.records(),
                columns=() if self.job.fields else self.job.answer_columns,
                title=f"Captions by {self.spec.name or self.spec.repo}",
                limits=self.spec.limits,
                on_row=on_row,
            )
            self.outcome = replace(self.outcome, reported=shown)
