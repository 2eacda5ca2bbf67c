"""The errors of a journal that cannot be read."""

from __future__ import annotations

import errno
from pathlib import Path

from idefics_cli.core.errors import IdeficsError, UsageError

# `--retry-failed` continues a run, so that a run with both options does not begin anew.
BEGIN_ANEW = "let `--overwrite` without `--retry-failed` begin anew"
"""The part of a hint that names the way to leave the former run behind."""


class DamagedJournalError(IdeficsError):
    """A journal with a line that is not valid.

    Args:
        path: The journal.
        line_number: The line, counted from 1.

    Attributes:
        reason: The message, for a run that goes on.
    """

    def __init__(self, path: Path, line_number: int) -> None:
        self.reason = f"line {line_number} of the journal `{path}` is damaged"
        super().__init__(
            f"{self.reason}; nothing was changed",
            hint="put an undamaged copy back; or move the journal away and give `--existing skip`,"
            " which keeps the captions that the output has, and makes the others; or " + BEGIN_ANEW,
        )


class JournalVersionError(UsageError):
    """A journal of a version that cannot be read.

    Args:
        path: The journal.
        version: What it names as its version.

    Attributes:
        reason: The message, for a run that goes on.
    """

    def __init__(self, path: Path, version: object) -> None:
        self.reason = f"`{path}` is from another version of this program ({version})"
        super().__init__(
            self.reason,
            hint=f"continue with that version, name another output, or {BEGIN_ANEW}",
        )


def other_file(path: Path) -> UsageError:
    """Return the error for a file *path* that is not a journal."""
    return UsageError(
        f"`{path}` is not the journal of a captioning run",
        hint="move it away, or name another output",
    )


def failure(path: Path, error: OSError) -> IdeficsError:
    """Return the error for a journal that the system cannot read or write."""
    reason = "it is a link" if error.errno == errno.ELOOP else error.strerror or str(error)
    return IdeficsError(f"cannot keep the journal `{path}`: {reason}")
