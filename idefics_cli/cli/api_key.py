"""The key of a server, ours or another's: from a variable or a file, never from a flag."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from idefics_cli.cli.invocation import Invocation
from idefics_cli.core.errors import InputError, UsageError

KEY_VARIABLE = "IDEFICS_API_KEY"
# Longest key in bytes. The bound ends the reading of a file without an end.
_MOST_KEY = 4096
_EXAMPLE = "`openssl rand -hex 24` makes one"


def read_key(invocation: Invocation, *, least: int) -> str | None:
    """Return the key from the file or the variable; None if there is none.

    Args:
        invocation: The call, with its settings.
        least: Least number of characters.

    Raises:
        InputError: If it cannot be read.
        UsageError: If it is not a key.
    """
    name = invocation.settings.api_key_file
    # A secret of a container often ends with a line feed.
    text, source = invocation.services.environ.get(KEY_VARIABLE, "").strip(), KEY_VARIABLE
    if name is not None:
        path, source = Path(name).expanduser(), f"`{name}`"
        try:
            with path.open("rb") as file:
                mode = os.fstat(file.fileno()).st_mode
                data = file.read(_MOST_KEY + 1)
            text = data.decode("utf-8-sig").strip()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "not text"
            raise InputError(
                f"cannot read the key in {source}: {reason}", hint="the file holds one line"
            ) from None
        if not text:
            raise InputError(f"the key in {source} is missing: the file is empty", hint=_EXAMPLE)
        if os.name == "posix" and mode & (stat.S_IRWXG | stat.S_IRWXO):
            invocation.console.warn(f"other users can read the key: `chmod 600 {name}`")
    if not text and name is None:
        return None
    is_plain = text.isascii() and text.isprintable() and " " not in text
    if not least <= len(text) <= _MOST_KEY or not is_plain:
        raise UsageError(
            f"the key in {source} is not usable: it must be one word of {least} to {_MOST_KEY} "
            "ASCII characters",
            hint=_EXAMPLE,
        )
    return text
