"""Where the captions of a run go, and in what format, by what the user said."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from idefics_cli.cli.invocation import Invocation
from idefics_cli.core.errors import UsageError

if TYPE_CHECKING:
    from idefics_cli.caption.job import CaptionJob
    from idefics_cli.caption.sinks.base import ByteStream, Existing, Target
    from idefics_cli.caption.wording import OnTruncate, Wording
    from idefics_cli.config.settings import Settings

_STDOUT = "-"
_FORMATS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".csv": "csv",
    ".tsv": "tsv",
    ".parquet": "parquet",
}
_TABLE = "`-o captions.csv` is what a spreadsheet opens"
# What a name promises that would not be in the file.
_OTHERS = {
    ".json": "`-o captions.jsonl` has one JSON object per line",
    **dict.fromkeys((".xlsx", ".xls", ".ods"), _TABLE),
    **dict.fromkeys((".html", ".htm"), "`--report gallery.html` writes a page"),
    **dict.fromkeys((".jpg", ".jpeg", ".png", ".webp"), "`-o` names where captions go"),
}


@dataclass(frozen=True, slots=True)
class Output:
    """Where the captions go.

    Attributes:
        format: A key of `SINKS`.
        path: The file, or the folder for sidecars; None for stdout, or beside the pictures.
        existing: What becomes of captions that are there already.
        full_names: Sidecars keep the extension of the picture.
        report: The page that shows them; None for none.
    """

    format: str
    path: Path | None
    existing: Existing
    full_names: bool = False
    report: Path | None = None

    def target(
        self, stdout: ByteStream, job: CaptionJob, *, resume_at: int | None = None
    ) -> Target:
        """Return the target of a sink for *job*; see `Target`."""
        from idefics_cli.caption.sinks.base import Target

        return Target(
            stdout,
            self.path,
            existing=self.existing,
            resume_at=resume_at,
            columns=tuple(question.name for question in job.questions if question.name),
            pictures=job.pictures,
            full_names=self.full_names,
        )


def chosen_output(invocation: Invocation) -> Output:
    """Return the output that the settings name; a doubtful one is told.

    Raises:
        UsageError: If the settings contradict each other.
    """
    settings = invocation.settings
    if settings.output == "":
        raise UsageError("the name of the output file is empty", hint="`-` is stdout")
    path = None if settings.output in (None, _STDOUT) else Path(settings.output)
    format_ = settings.format or _guessed(path)
    if settings.format and path and _FORMATS.get(path.suffix.lower(), format_) != format_:
        invocation.console.warn(f"`{path}` will hold {format_}, as `--format` says")
    if format_ == "txt" and settings.output == _STDOUT:
        raise UsageError("`--format txt` writes a file for each picture, not stdout")
    if format_ == "parquet" and path is None:
        raise UsageError("parquet needs a file", hint="`-o captions.parquet`")
    existing = _existing(invocation)
    report = _report(settings.report, path, overwrite=settings.overwrite)
    return Output(format_, path, existing, settings.full_names, report)


def _report(name: str | None, output: Path | None, *, overwrite: bool) -> Path | None:
    from idefics_cli.caption.gallery.report import check_report

    if name is None:
        return None
    if name in ("", _STDOUT):
        raise UsageError("the report needs a file", hint="`--report gallery.html`")
    path = Path(name)
    if output is not None and os.path.abspath(path) == os.path.abspath(output):
        raise UsageError(f"`{path}` cannot be both the output and the report")
    check_report(path, overwrite=overwrite)
    return path


def chosen_wording(settings: Settings) -> Wording:
    """Return what becomes of a reply by *settings*."""
    from idefics_cli.caption.wording import Wording

    return Wording(
        prefix=settings.prefix or "",
        suffix=settings.suffix or "",
        trigger=(settings.trigger or "").strip(),
        strip_preamble=settings.strip_preamble,
        on_truncate=cast("OnTruncate", settings.on_truncate),
    )


def _guessed(path: Path | None) -> str:
    suffix = "" if path is None else path.suffix.lower()
    if suffix in _OTHERS:
        raise UsageError(f"no format for `{path}`", hint=_OTHERS[suffix])
    return _FORMATS.get(suffix, "tsv")


def _existing(invocation: Invocation) -> Existing:
    settings, resolved = invocation.settings, invocation.resolved
    if settings.existing is None:
        return "overwrite" if settings.overwrite else "error"
    if settings.overwrite and settings.existing != "overwrite":
        if resolved.origins["existing"].source == "flag":
            raise UsageError(f"--overwrite and --existing {settings.existing} exclude each other")
        return "overwrite"
    return cast("Existing", settings.existing)
