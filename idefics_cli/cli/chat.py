"""`idefics chat`."""

from __future__ import annotations

import typer

from idefics_cli.cli.invocation import begin
from idefics_cli.core.errors import UsageError


def chat(context: typer.Context) -> None:
    """Talk about pictures."""
    begin(context)
    raise UsageError("`chat` is not in this version")
