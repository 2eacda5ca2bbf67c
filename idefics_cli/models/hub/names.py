"""What the name of a model or adapter can be besides an alias: a folder, or a Hub id."""

from __future__ import annotations

import os
import re
from pathlib import Path

_HUB_ID = re.compile(r"[\w][\w.-]*/[\w.-]+")


def local_folder(name: str) -> Path | None:
    """Return the absolute path of the folder *name*; None if there is none."""
    # os.path is used and not Path, because some methods of Path raise errors for some texts.
    path = os.path.expanduser(name)
    return Path(path).absolute() if os.path.isdir(path) else None


def is_hub_id(name: str) -> bool:
    """Return whether *name* has the form `owner/name`."""
    return _HUB_ID.fullmatch(name) is not None
