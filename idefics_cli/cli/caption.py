"""`idefics caption`."""

from __future__ import annotations

import typer

from idefics_cli.cli.invocation import begin
from idefics_cli.core.errors import UsageError


def caption(context: typer.Context) -> None:
    """Caption pictures."""
    begin(context)
    raise UsageError("`caption` is not in this version")
