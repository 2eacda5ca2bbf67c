"""The table of shells, with the script for each shell and the place where a user installs it."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from idefics_cli.completion.bash import bash_script
from idefics_cli.completion.fish import fish_script
from idefics_cli.completion.powershell import powershell_script
from idefics_cli.completion.spec import ShellCommand
from idefics_cli.completion.zsh import zsh_script
from idefics_cli.core.errors import IdeficsError
from idefics_cli.core.files import write_whole
from idefics_cli.core.paths import data_folder
from idefics_cli.models.hub.registry import MODELS


@dataclass(frozen=True, slots=True)
class Shell:
    """A shell with completion.

    Attributes:
        file: Name of the script in `completions/`.
        render: Returns the text of the script.
        place: Returns the path where a user installs the script; it gets the environment.
        next_step: Tells the user what to do after the installation. `{path}` stands for the path
            of the script, and `{folder}` for its folder.
    """

    file: str
    render: Callable[[ShellCommand], str]
    place: Callable[[Mapping[str, str]], Path]
    next_step: str


def _home(environ: Mapping[str, str]) -> Path:
    home = environ.get("HOME") or environ.get("USERPROFILE")
    if not home:
        raise IdeficsError(
            "no home folder: the variable HOME is not set",
            hint="`idefics completion show SHELL` prints the script",
        )
    return Path(home)


def _xdg(environ: Mapping[str, str], variable: str, default: str) -> Path:
    base = environ.get(variable, "")
    # The XDG base directory specification says that a relative path in these variables is invalid
    # and must be ignored.
    return Path(base) if os.path.isabs(base) else _home(environ) / default


def _bash_place(environ: Mapping[str, str]) -> Path:
    # The script goes to a folder that bash-completion 2 searches.
    own = environ.get("BASH_COMPLETION_USER_DIR", "")
    share = _xdg(environ, "XDG_DATA_HOME", ".local/share") / "bash-completion"
    return (Path(own) if os.path.isabs(own) else share) / "completions" / "idefics"


def _zsh_place(environ: Mapping[str, str]) -> Path:
    return _xdg(environ, "XDG_DATA_HOME", ".local/share") / "zsh" / "site-functions" / "_idefics"


def _fish_place(environ: Mapping[str, str]) -> Path:
    folder = _xdg(environ, "XDG_CONFIG_HOME", ".config") / "fish" / "completions"
    return folder / "idefics.fish"


def _powershell_place(environ: Mapping[str, str]) -> Path:
    _home(environ)
    return data_folder(environ) / "idefics.ps1"


SHELLS: Mapping[str, Shell] = MappingProxyType(
    {
        "bash": Shell(
            "idefics.bash",
            bash_script,
            _bash_place,
            "open a new terminal; without the package bash-completion, first add to ~/.bashrc:\n"
            "  source '{path}'",
        ),
        "zsh": Shell(
            "_idefics",
            zsh_script,
            _zsh_place,
            "add to ~/.zshrc, if it is not there, and open a new terminal:\n"
            "  fpath=('{folder}' $fpath)\n"
            "  autoload -Uz compinit && compinit",
        ),
        "fish": Shell("idefics.fish", fish_script, _fish_place, "open a new terminal"),
        "powershell": Shell(
            "idefics.ps1",
            powershell_script,
            _powershell_place,
            "add to the file $PROFILE, and open a new terminal:\n  . '{path}'",
        ),
    }
)
"""The shells by their names. A new shell needs one more row."""


def install(path: Path, script: str, *, dry_run: bool = False) -> bool:
    """Write *script* to *path* if the file differs, and return whether it did.

    Raises:
        IdeficsError: If the file cannot be written.
    """
    try:
        if path.exists() and path.read_bytes() == script.encode():
            return False
        if not dry_run:
            path.parent.mkdir(parents=True, exist_ok=True)
            # `write_whole` leaves no half-written script, which every new shell would read. If
            # *path* is a link to a file of the user, `realpath` keeps the link.
            write_whole(Path(os.path.realpath(path)), script.encode())
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        raise IdeficsError(
            f"cannot write `{path}`: {reason}",
            hint="`idefics completion show SHELL` prints the script",
        ) from error
    return True


def catalog() -> str:
    """Return the text of `catalog.py`, which holds what `answers.py` needs of each model."""
    rows = "".join(
        f"    (\n        {_literal(m.name)},\n        {_literal(m.repo)},\n"
        f"        {_literal(m.summary)},\n    ),\n"
        for m in MODELS.values()
    )
    return (
        '"""Name, repository and summary of each model; made by `.ci/make_completions.py`."""\n\n'
        f"MODELS = (\n{rows})\n"
    )


def _literal(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
