"""Write the completion scripts and `catalog.py` from the commands and the table of models."""

from __future__ import annotations

from pathlib import Path

from typer.core import TyperGroup
from typer.main import get_command

from idefics_cli.cli.app import make_app
from idefics_cli.completion.scripts import SHELLS, catalog
from idefics_cli.completion.spec import read_commands

TOP = Path(__file__).parent.parent


def generated() -> dict[Path, str]:
    """Return the text of every generated file, by its path."""
    root = get_command(make_app())
    assert isinstance(root, TyperGroup)
    commands = read_commands(root)
    files = {TOP / "completions" / s.file: s.render(commands) for s in SHELLS.values()}
    return {**files, TOP / "idefics_cli" / "completion" / "catalog.py": catalog()}


if __name__ == "__main__":
    for path, text in generated().items():
        path.write_text(text, encoding="utf-8")
        print(path.relative_to(TOP))
