"""`idefics doctor`."""

from __future__ import annotations

import typer

from idefics_cli.cli.invocation import begin
from idefics_cli.core.errors import UsageError


def doctor(context: typer.Context) -> None:
    """Show what would run, and why."""
    begin(context)
    raise UsageError("`doctor` is not in this version")
