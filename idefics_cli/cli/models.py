"""`idefics models`."""

from __future__ import annotations

import typer

from idefics_cli.cli.invocation import begin
from idefics_cli.core.errors import UsageError

app = typer.Typer(help="List models, fetch them, tell where they are.", invoke_without_command=True)


@app.callback()
def models(context: typer.Context) -> None:
    """List models, fetch them, tell where they are."""
    begin(context)
    raise UsageError("`models` is not in this version")
