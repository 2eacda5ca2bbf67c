"""A captioning run from the command line: its files, its progress, and how it ends."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from idefics_cli.cli.commands.caption.outputs import Output
from idefics_cli.cli.invocation import Invocation
from idefics_cli.core.errors import (
    EXIT_DONE,
    EXIT_FAILURE,
    EXIT_INTERRUPTED,
    EXIT_PARTIAL,
    IdeficsError,
    UsageError,
)

if TYPE_CHECKING:
    from idefics_cli.caption.events import RunEvent
    from idefics_cli.caption.job import CaptionJob
    from idefics_cli.caption.resume.journaled_sink import JournaledSink, MakeSink
    from idefics_cli.caption.resume.todo import Todo
    from idefics_cli.caption.runner import RunResult
    from idefics_cli.caption.sinks.base import Sink, Target
    from idefics_cli.core.types import CaptionRecord
    from idefics_cli.models.planning.plan import Plan
    from idefics_cli.ui.views.progress import CaptionProgress

_SIDECAR_RUN = "idefics-caption"


@dataclass(frozen=True, slots=True)
class RunFiles:
    """The files beside an output.

    Attributes:
        journal: By which a run goes on.
        header: What it was made with.
        failures: The pictures that failed, one to a line.
    """

    journal: Path
    header: Path
    failures: Path


def run(invocation: Invocation, plan: Plan, job: CaptionJob, output: Output) -> int:
    """Caption the pictures of *job* and return the exit code."""
    from idefics_cli.ui.views.progress import CaptionProgress

    _check(invocation)
    files = run_files(output, job)
    if files is None and invocation.settings.retry_failed:
        raise UsageError(
            "only a run with an output file knows what failed", hint="give its `-o FILE`"
        )
    captioning = _Captioning(invocation, plan, job, files, reports=output.report is not None)
    console, clock = invocation.console, invocation.services.clock
    model, verbose = plan.spec.name or plan.spec.repo, invocation.settings.verbose
    with CaptionProgress(console, clock=clock, model=model, verbose=verbose) as progress:
        target = output.target(progress.stdout, job)
        captioning.run(output.format, target, progress)
    code = captioning.tell(progress)
    if output.report is not None and not captioning.report(output.report, target.columns):
        return EXIT_INTERRUPTED
    return code


def run_files(output: Output, job: CaptionJob) -> RunFiles | None:
    """Return where the files of a run into *output* are; None if it is no file that stays."""
    path = output.path
    if output.format == "txt":
        base = (path or _common_folder(job)) / _SIDECAR_RUN
    elif path is None or (path.exists() and not path.is_file()):
        return None
    else:
        base = path
    names = (base.with_name(base.name + end) for end in (".journal", ".run.json", ".failures.txt"))
    return RunFiles(*names)


def settings_of(format_: str, plan: Plan, job: CaptionJob) -> dict[str, object]:
    """Return by what a run knows its own journal."""
    from idefics_cli.caption.resume.header import run_settings

    return {"format": format_, **run_settings(plan.spec, job)}


def _common_folder(job: CaptionJob) -> Path:
    folders = {os.path.dirname(os.path.abspath(picture.key)) for picture in job.pictures}
    try:
        return Path(os.path.relpath(os.path.commonpath(folders)))
    except ValueError:  # on several drives
        return Path()


def _check(invocation: Invocation) -> None:
    settings = invocation.settings
    if settings.fail_fast and settings.max_failures:
        raise UsageError("--fail-fast and --max-failures exclude each other")


@dataclass(slots=True)
class _Captioning:
    """One run, and what became of it."""

    invocation: Invocation
    plan: Plan
    job: CaptionJob
    files: RunFiles | None
    reports: bool = False
    outcome: RunResult | None = None
    todo: Todo | None = None
    failures: list[str] = field(default_factory=list)
    header: dict[str, object] = field(default_factory=dict)
    # For the report: all of the run, former ones too; by the journal, if there is one.
    records: Callable[[], Iterable[CaptionRecord]] = tuple

    def run(self, format_: str, target: Target, progress: CaptionProgress) -> None:
        """Caption what is to do; `outcome` stays None if it was stopped in the middle."""
        try:
            if self.files is None:
                self._run_alone(format_, target, progress)
            else:
                self._run_journaled(format_, target, self.files, progress)
        except KeyboardInterrupt:
            pass
        self._write_failures()

    def _run_alone(self, format_: str, target: Target, progress: CaptionProgress) -> None:
        from idefics_cli.caption.sinks import SINKS

        records: list[CaptionRecord] = []
        self.records = lambda: records
        with SINKS[format_](target) as sink:
            self._caption(sink, progress, partial(self._keep, records))

    def _keep(self, records: list[CaptionRecord], event: RunEvent) -> None:
        from idefics_cli.core.types import CaptionRecord

        if isinstance(event, CaptionRecord):
            if event.error:
                self.failures.append(event.file_name)
            if self.reports:
                records.append(event)

    def _run_journaled(
        self, format_: str, target: Target, files: RunFiles, progress: CaptionProgress
    ) -> None:
        from idefics_cli.caption.resume.header import run_header
        from idefics_cli.caption.resume.journaled_sink import JournaledSink

        settings = settings_of(format_, self.plan, self.job)
        if format_ == "txt":
            files.journal.parent.mkdir(parents=True, exist_ok=True)
        sink = JournaledSink(
            *_rows_sink(format_, target),
            files.journal,
            settings=settings,
            retry_failed=self.invocation.settings.retry_failed,
        )
        self.header = {**run_header(self.plan.spec, settings), "started": _now()}
        try:
            with sink:
                self.todo, self.records = sink.todo, sink.records
                if sink.is_resumed:
                    self._tell_todo(sink.todo)
                    self._fit(sink)
                try:
                    self._caption(sink, progress, partial(self._note, sink, files))
                finally:
                    self.failures = sink.failures()
        except (IdeficsError, KeyboardInterrupt) as error:
            # What else cannot be written then is not worth an error of its own.
            with suppress(IdeficsError):
                self._finish(format_, target, files)
            if isinstance(error, IdeficsError) and self.todo is not None and error.hint is None:
                error.hint = "when that is mended, the same command goes on"
            raise
        self._finish(format_, target, files)

    def _finish(self, format_: str, target: Target, files: RunFiles) -> None:
        if self.todo is None:
            return
        if format_ == "parquet":
            _write_parquet(target)
        if "commit" in self.header:  # otherwise it has not begun, and what is there stays
            self._write_header(files.header, is_over=True)

    def _note(self, sink: JournaledSink, files: RunFiles, event: RunEvent) -> None:
        from idefics_cli.caption.events import BatchReduced, Ready

        if isinstance(event, Ready):
            sink.check_commit(event.revision)
            self.header["commit"] = event.revision
            self._write_header(files.header, is_over=False)
        elif isinstance(event, BatchReduced):
            sink.note_fit(event.size, self._where())

    def _caption(
        self, sink: Sink, progress: CaptionProgress, note: Callable[[RunEvent], None]
    ) -> None:
        from idefics_cli.caption.runner import run_captions

        def on_event(event: RunEvent) -> None:
            note(event)
            progress.handle(event)

        settings = self.invocation.settings
        self.outcome = run_captions(
            self.job,
            self.invocation.services.make_factory(self.plan.spec),
            sink,
            on_event=on_event,
            max_failures=0 if settings.fail_fast else settings.max_failures,
        )

    def _tell_todo(self, todo: Todo) -> None:
        parts = [f"{todo.captioned} of {len(self.job.pictures)} are captioned"]
        if todo.failed:
            parts.append(f"{todo.failed} failed before (`--retry-failed` tries them again)")
        if todo.changed:
            parts.append(f"{todo.changed} changed since")
        self.invocation.console.note(f"going on with the run: {', '.join(parts)}")

    def _fit(self, sink: JournaledSink) -> None:
        """Begin with as many pictures at a time as the memory was enough for the last time."""
        size = sink.fit(self._where())
        if size is not None and size * len(self.job.questions) < self.job.batch_size:
            self.job = replace(self.job, batch_size=size * len(self.job.questions))
            pictures = "one picture" if size == 1 else f"{size} pictures"
            self.invocation.console.note(f"{pictures} at a time: more ran out of memory before")

    def _where(self) -> str:
        # Who asks for another number than then wants it tried.
        asked = self.invocation.settings.batch_size or "automatic"
        return f"{self.plan.spec.device}, batch size {asked}"

    def _write_header(self, path: Path, *, is_over: bool) -> None:
        from idefics_cli.caption.resume.header import write_header

        assert self.todo is not None
        captioned = self.todo.captioned + (self.outcome.captioned if self.outcome else 0)
        self.header["end"] = self.outcome.end if self.outcome else "stopped" if is_over else None
        self.header["ended"] = _now() if is_over else None
        self.header["pictures"] = {
            "listed": len(self.job.pictures),
            "captioned": captioned,
            "failed": len(self.failures),
            "skipped": self.todo.skipped,
        }
        write_header(path, self.header)

    def _write_failures(self) -> None:
        from idefics_cli.caption.resume.header import write_beside

        chosen = self.invocation.settings.failures
        path = Path(chosen) if chosen else self.files.failures if self.files else None
        if path is None:
            return
        if self.failures:
            # A name that has a line end needs another separator; then all have it.
            end = "\0" if any("\n" in name for name in self.failures) else "\n"
            text = "".join(name + end for name in self.failures)
            write_beside(path, text.encode("utf-8", "surrogateescape"))
        elif path.is_file():
            path.unlink()

    def tell(self, progress: CaptionProgress) -> int:
        """Tell how it ended, and return the exit code."""
        console, outcome = self.invocation.console, self.outcome
        if outcome is None or outcome.end == "interrupted":
            console.tell(f"interrupted: {progress.summary}")
            self._tell_how_to_go_on()
            return EXIT_INTERRUPTED
        console.tell(progress.summary if progress.total else "nothing is left to caption")
        self._tell_cut(progress.cut)
        if outcome.end == "failures":
            self._tell_how_to_go_on()
        failed = outcome.failed + (self.todo.failed if self.todo else 0)
        captioned = outcome.captioned + (self.todo.captioned if self.todo else 0)
        if not failed:
            return EXIT_DONE
        if self.files is not None:
            console.note(f"`{self.files.failures}` lists what failed")
        return EXIT_PARTIAL if captioned else EXIT_FAILURE

    def report(self, path: Path, columns: tuple[str, ...]) -> bool:
        """Write the page of the run; return False if that was stopped by Ctrl-C."""
        from idefics_cli.caption.gallery.report import write_report

        spec, console = self.plan.spec, self.invocation.console
        total, count = max(1, len(self.job.pictures)), 0
        try:
            with console.status(f"writing {path}") as progress:

                def on_row() -> None:
                    nonlocal count
                    count += 1
                    progress(f"writing {path}", min(1.0, count / total))

                write_report(
                    path,
                    self.records(),
                    columns=columns,
                    title=f"Captions by {spec.name or spec.repo}",
                    limits=spec.limits,
                    on_row=on_row,
                )
        except KeyboardInterrupt:
            console.note(f"`{path}` was not written; the same command makes it")
            return False
        console.note(f"`{path}` shows {'one picture' if count == 1 else f'{count} pictures'}")
        return True

    def _tell_cut(self, cut: int) -> None:
        if cut:
            captions = "one caption was" if cut == 1 else f"{cut} captions were"
            limit = self.job.sampling.max_new_tokens
            self.invocation.console.note(
                f"{captions} cut after {limit} tokens; `--max-new-tokens` sets the limit"
            )

    def _tell_how_to_go_on(self) -> None:
        if self.files is None:
            self.invocation.console.note("with `-o FILE` the same command could go on from here")
        else:
            self.invocation.console.note("the same command goes on from here")


def _rows_sink(format_: str, target: Target) -> tuple[MakeSink, Target]:
    """Return the sink and target of the rows; those of Parquet are JSON lines until the end."""
    from idefics_cli.caption.sinks import SINKS
    from idefics_cli.caption.sinks.parquet import RowsSink, rows_file

    if format_ == "parquet" and target.path is not None:
        return RowsSink, replace(target, path=rows_file(target.path))
    return SINKS[format_], target


def _write_parquet(target: Target) -> None:
    from idefics_cli.caption.sinks.parquet import write_parquet

    assert target.path is not None
    # Rows that were there before this run are not in the journal, from which it goes on.
    keeps = target.existing in ("append", "skip")
    write_parquet(target.path, target.columns, keep_rows=keeps)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
