"""The key of a server, ours or another's: from a variable or a file, never from a flag."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from idefics_cli.cli.invocation import Invocation
from idefics_cli.core.errors import UsageError

KEY_VARIABLE = "IDEFICS_API_KEY"


def read_key(invocation: Invocation, *, least: int) -> str | None:
    """Return the key from the file or the variable; None if there is none.

    Args:
        invocation: The call, with its settings.
        least: Least number of characters.

    Raises:
        UsageError: If it cannot be read, or is no key.
    """
    name = invocation.settings.api_key_file
    text, source = invocation.services.environ.get(KEY_VARIABLE, ""), KEY_VARIABLE
    if name is not None:
        path, source = Path(name).expanduser(), f"`{name}`"
        try:
            mode = path.stat().st_mode
            text = path.read_text(encoding="utf-8").strip()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not text"
            raise UsageError(
                f"cannot read the key in {source}: {reason}", hint="the file holds one line"
            ) from None
        if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
            invocation.console.warn(f"other users can read the key: `chmod 600 {name}`")
    if not text and name is None:
        return None
    if len(text) < least or not text.isascii() or not text.isprintable() or " " in text:
        raise UsageError(
            f"the key in {source} is no key: it needs {least} letters and digits or more",
            hint="`openssl rand -hex 24` makes one",
        )
    return text
