"""The output of a captioning run, which the settings of the user choose."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, cast

from idefics_cli.cli.invocation import Invocation
from idefics_cli.core.errors import UsageError
from idefics_cli.core.sources import has_scheme, without_password

if TYPE_CHECKING:
    from idefics_cli.caption.job import CaptionJob
    from idefics_cli.caption.output import CaptionOutput
    from idefics_cli.caption.sinks.base import Existing, SinkFormat
    from idefics_cli.caption.wording import OnTruncate, Wording
    from idefics_cli.config.settings import Settings

STDOUT = "-"
"""The name of standard output."""


def chosen_output(invocation: Invocation) -> CaptionOutput:
    """Return the output that the settings name; warn if the name of the file is misleading.

    Raises:
        UsageError: If the settings contradict each other.
    """
    from idefics_cli.caption.output import CaptionOutput

    settings = invocation.settings
    if settings.output == "":
        raise UsageError("the name of the output file is empty", hint="`-` is stdout")
    path = None if settings.output in (None, STDOUT) else output_path(settings.output)
    format_, row = _embedding(invocation) if settings.embed else _format(invocation, path)
    failures = output_path(settings.failures) if settings.failures else None
    report = _report(settings.report, path, overwrite=settings.overwrite)
    for other, name in ((path, "output"), (report, "report")):
        if failures and other and os.path.abspath(failures) == os.path.abspath(other):
            raise UsageError(f"`{failures}` cannot be both the {name} and the list of failures")
    return CaptionOutput(
        format_,
        path,
        existing=_existing(invocation),
        full_names=settings.full_names,
        failures=failures,
        report=report,
        row=row,
    )


def _format(invocation: Invocation, path: Path | None) -> tuple[str, SinkFormat]:
    from idefics_cli.caption.sinks import SINKS, format_for, is_misleading

    settings = invocation.settings
    format_ = settings.format or format_for(path)
    row = SINKS[format_]
    if settings.format and path and is_misleading(path, format_):
        invocation.console.warn(f"`{path}` will hold {format_}, as `--format` says")
    if row.output == "folder" and settings.output == STDOUT:
        raise UsageError(f"`--format {format_}` writes a file for each picture, not stdout")
    if row.output == "file" and path is None:
        raise UsageError(f"{format_} needs a file", hint=f"`-o captions{row.extensions[0]}`")
    return format_, row


def _embedding(invocation: Invocation) -> tuple[str, SinkFormat]:
    from idefics_cli.caption.sinks import EMBEDDING

    settings, origins = invocation.settings, invocation.resolved.origins
    is_flag = settings.format is not None and origins["format"].source == "flag"
    if is_flag or settings.output is not None:
        raise UsageError(
            f"--embed and {'--format' if is_flag else '--output'} exclude each other",
            hint="`--embed` writes captions into the pictures, and nowhere else",
        )
    return "embed", EMBEDDING


def output_path(name: str) -> Path:
    """Return the path *name*, if the system can look for it and for the files of a run beside it.

    Raises:
        UsageError: If the name is too long or an address, or a folder of it cannot be entered.
    """
    from idefics_cli.caption.resume.run_files import RunFiles

    if has_scheme(name):
        raise UsageError(
            f"cannot write `{without_password(name)}`: captions go to files of this machine",
            hint="name a local file, and copy it when the run is done",
        )
    for end in ("", *RunFiles.ENDS):
        try:
            os.stat(name + end)
        except (FileNotFoundError, NotADirectoryError):
            continue
        except (OSError, ValueError) as error:  # ValueError: NUL in the name
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise UsageError(f"cannot write `{name}`: {reason}") from error
    return Path(name)


def _report(name: str | None, output: Path | None, *, overwrite: bool) -> Path | None:
    from idefics_cli.caption.gallery.report import check_report

    if name is None:
        return None
    if name in ("", STDOUT):
        raise UsageError("the report needs a file", hint="`--report gallery.html`")
    path = output_path(name)
    if output is not None and os.path.abspath(path) == os.path.abspath(output):
        raise UsageError(f"`{path}` cannot be both the output and the report")
    check_report(path, overwrite=overwrite)
    return path


def show_output_notes(invocation: Invocation, output: CaptionOutput, job: CaptionJob) -> None:
    """Tell what the user may not expect of the output."""
    from idefics_cli.caption.sinks.dataset import is_dataset, split_note

    if output.path is not None and is_dataset(output.path):
        note = split_note(output.path, (picture.key for picture in job.pictures))
        if note is not None:
            invocation.console.note(note)


def chosen_wording(settings: Settings) -> Wording:
    """Return how a reply becomes a caption under *settings*."""
    from idefics_cli.caption.wording import Wording

    return Wording(
        prefix=settings.prefix or "",
        suffix=settings.suffix or "",
        trigger=(settings.trigger or "").strip(),
        strip_preamble=settings.strip_preamble,
        on_truncate=cast("OnTruncate", settings.on_truncate),
    )


def _existing(invocation: Invocation) -> Existing:
    settings, resolved = invocation.settings, invocation.resolved
    if settings.existing is None:
        return "overwrite" if settings.overwrite else "error"
    if settings.overwrite and settings.existing != "overwrite":
        if resolved.origins["existing"].source == "flag":
            raise UsageError(f"--overwrite and --existing {settings.existing} exclude each other")
        return "overwrite"
    return cast("Existing", settings.existing)
