"""Text that the user writes in their own editor, such as vi or nano."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path

from idefics_cli.core.errors import IdeficsError
from idefics_cli.ui.terminal.keyboard import echoing_keyboard

_VARIABLES = ("VISUAL", "EDITOR")


def write_in_editor(environ: Mapping[str, str]) -> str:
    """Open an editor with an empty file, and return the text that the user has saved.

    The variable `VISUAL` names the editor, or `EDITOR` if it is not set. Without both, the editor
    is vi, and notepad on Windows.

    Args:
        environ: The environment.

    Raises:
        IdeficsError: If there is no such editor, or it fails.
    """
    named = [environ[name] for name in _VARIABLES if environ.get(name)]
    command = (named or ["notepad" if os.name == "nt" else "vi"])[0]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "question.md"
        file.touch()
        try:
            with echoing_keyboard():
                subprocess.run([*shlex.split(command), str(file)], check=True)
            return file.read_text(encoding="utf-8").strip("\n")
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            raise IdeficsError(
                f"cannot write in the editor `{command}`: {error}",
                hint="set VISUAL to the command of your editor",
            ) from error
