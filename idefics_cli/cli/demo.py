"""`idefics demo`."""

from __future__ import annotations

import typer

from idefics_cli.cli.invocation import begin
from idefics_cli.core.errors import UsageError


def demo(context: typer.Context) -> None:
    """Write sample pictures."""
    begin(context)
    raise UsageError("`demo` is not in this version")
