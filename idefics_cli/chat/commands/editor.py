"""A text that is written in the user's editor."""

from __future__ import annotations

import os
import shlex
import subprocess
import tempfile
from pathlib import Path

from idefics_cli.core.errors import IdeficsError

_EDITORS = ("VISUAL", "EDITOR")


def written_in_editor() -> str:
    """Let the user write a text in `$VISUAL`, else `$EDITOR`, else vi; return it.

    Raises:
        IdeficsError: If there is no such editor, or it fails.
    """
    named = [os.environ[name] for name in _EDITORS if os.environ.get(name)]
    command = (named or ["notepad" if os.name == "nt" else "vi"])[0]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "question.md"
        file.touch()
        try:
            subprocess.run([*shlex.split(command), str(file)], check=True)
            return file.read_text(encoding="utf-8").strip("\n")
        except (OSError, ValueError, subprocess.CalledProcessError) as error:
            raise IdeficsError(
                f"cannot write in the editor `{command}`: {error}",
                hint="set VISUAL to the command of your editor",
            ) from error
