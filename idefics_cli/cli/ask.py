"""`idefics ask`."""

from __future__ import annotations

import typer

from idefics_cli.cli.invocation import begin
from idefics_cli.core.errors import UsageError


def ask(context: typer.Context) -> None:
    """Ask one question about pictures."""
    begin(context)
    raise UsageError("`ask` is not in this version")
