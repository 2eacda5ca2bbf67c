"""Where the captions of a run go: the output, and the files beside it."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from idefics_cli.caption.distinct_files import check_distinct
from idefics_cli.caption.job import CaptionJob
from idefics_cli.caption.kind import PICTURES, ItemKind
from idefics_cli.caption.resume.header import run_settings
from idefics_cli.caption.resume.run_files import RunFiles
from idefics_cli.caption.shards.shard import Shard
from idefics_cli.caption.sinks import SINKS
from idefics_cli.caption.sinks.base import ByteStream, Existing, SinkFormat, Target
from idefics_cli.core.errors import UsageError
from idefics_cli.core.files import check_place
from idefics_cli.core.types import LoadSpec


@dataclass(frozen=True, slots=True)
class CaptionOutput:
    """Where the captions of a run go.

    Attributes:
        format: A key of `SINKS`, or the name of *row*.
        path: The file, or the folder of the sidecars (text files, one for each picture). None
            means stdout or, for sidecars, the folders of the pictures.
        existing: What to do with captions that exist already.
        full_names: Whether sidecars keep the extension of the picture in their names. With None,
            the format decides.
        failures: File that lists the pictures that failed; None puts it beside the output.
        report: Page that shows the pictures with their captions; None writes no page.
        stdout: Stream for the captions if there is no *path*; None is the standard output.
        row: The format; None takes it from `SINKS`.
        failures_end: What follows the name of the output in that of the list of failures.
        shard: The shard of the run that this output is of; see `of_shard`.
    """

    format: str
    path: Path | None = None
    existing: Existing = "error"
    full_names: bool | None = None
    failures: Path | None = None
    report: Path | None = None
    stdout: ByteStream | None = None
    row: SinkFormat | None = None
    failures_end: str = RunFiles.ENDS[-1]
    shard: Shard | None = None

    @property
    def sink(self) -> SinkFormat:
        """The format, which makes the sink."""
        return self.row or SINKS[self.format]

    def of_shard(self, shard: Shard) -> Self:
        """Return the output of *shard*, whose files have its number in their names.

        Raises:
            UsageError: If the output does not stay, so that nothing could collect the shards.
        """
        if self.path is None and self.sink.output != "folder":
            raise UsageError(
                f"the shard {shard} needs an output file",
                hint="`-o captions.jsonl`; `idefics collect captions.jsonl` then joins all shards",
            )

        def named(path: Path | None) -> Path | None:
            return None if path is None else shard.path(path)

        path = self.path if self.sink.output == "folder" else named(self.path)
        failures, report = named(self.failures), named(self.report)
        return replace(self, path=path, failures=failures, report=report, shard=shard)

    def target(self, job: CaptionJob) -> Target:
        """Return the target of a sink for *job*."""
        return Target(
            self.stdout or sys.stdout.buffer,
            self.path,
            existing=self.existing,
            columns=job.answer_columns,
            fields=job.fields,
            samples=job.samples,
            pictures=job.pictures,
            full_names=self.full_names,
            text_extension=job.text_extension,
            others=job.others,
            shard=self.shard,
        )

    def check_place(self) -> None:
        """Check what can be checked before the pictures are known; write nothing.

        Raises:
            UsageError: If a file cannot be written, or exists already and must not be changed.
            IdeficsError: If the disk is full or fails.
        """
        target = Target(
            self.stdout or sys.stdout.buffer, self.path, existing=self.existing, shard=self.shard
        )
        run = self.sink(target).run_path
        if run is not None and RunFiles.beside(run).journal.exists():
            target = replace(target, resume_at=0)  # the output may be there, from this run
        self.sink(target).check_place()
        if self.failures is not None:
            check_place(self.failures)

    def settings(self, spec: LoadSpec, job: CaptionJob, kind: ItemKind) -> dict[str, object]:
        """Return the settings on which the captions of *job* in this output depend."""
        full_names = self.sink.other_full_names(self.full_names)
        # A setting with its default value is left out, because runs of earlier versions lack the
        # setting. So a run that an earlier version began can be continued.
        named = {} if full_names is None else {"full names": full_names}
        return run_settings(spec, job, self.format, {**kind.settings, **named})

    def files(self, job: CaptionJob, kind: ItemKind = PICTURES) -> RunFiles | None:
        """Return the files of the run beside this output; None if the output does not stay.

        Raises:
            UsageError: If a file of the run would replace another one, or a picture.
        """
        sink, files = self.sink(self.target(job)), None
        if sink.run_path is not None:
            files = RunFiles.beside(sink.run_path, failures_end=self.failures_end)
        named = {
            "the report": self.report,
            "the list of failures": self.failures,
            **dict(kind.inputs),
        }
        if files is not None:
            is_file = self.sink.output != "folder"
            named["the output"] = self.path if is_file else None
            if sink.rows_path != self.path:
                named["the rows of the run"] = sink.rows_path
            named["the journal"], named["the header of the run"] = files.journal, files.header
            if self.failures is None:
                named["the list of failures"] = files.failures
        check_distinct(dict(reversed(named.items())), [*job.pictures, *job.others])
        return files
