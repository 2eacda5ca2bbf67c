"""`idefics config`."""

from __future__ import annotations

import typer

from idefics_cli.cli.invocation import begin
from idefics_cli.core.errors import UsageError

app = typer.Typer(help="Show the settings and where each comes from.", invoke_without_command=True)


@app.callback()
def config(context: typer.Context) -> None:
    """Show the settings and where each comes from."""
    begin(context)
    raise UsageError("`config` is not in this version")
