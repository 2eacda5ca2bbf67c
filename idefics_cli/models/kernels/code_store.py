"""Machine code of kernels that an earlier start compiled, kept in the cache folder of the user."""

from __future__ import annotations

import hashlib
import logging
import os
from contextlib import suppress
from pathlib import Path

from idefics_cli.core.errors import IdeficsError
from idefics_cli.core.files import read_regular_file, write_whole
from idefics_cli.core.paths import cache_folder

_log = logging.getLogger(__name__)
_ENDING = ".o"
# The code of one kernel takes 5 to 200 kB.
_LARGEST_BYTES = 2**24
# Older files are those of earlier versions, or of models that are not used any more.
_MOST_FILES = 64
_DIGEST_BYTES = hashlib.sha256().digest_size


def find_code(key: str) -> bytes | None:
    """Return the code that `keep_code` wrote for *key*; None if there is none, or it is damaged."""
    path = _path(key)
    try:
        if not _is_own(path.stat()):
            return None
        data = read_regular_file(path, limit_bytes=_LARGEST_BYTES)
    except (OSError, IdeficsError):
        return None
    digest, code = data[:_DIGEST_BYTES], data[_DIGEST_BYTES:]
    # A processor that runs damaged code, or that of another kernel, may do anything.
    return code if _digest(key, code) == digest else None


def keep_code(key: str, code: bytes) -> None:
    """Write *code* for later starts, if the folder can be written.

    Args:
        key: All that the code depends on, in any form.
        code: An object file.
    """
    path = _path(key)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_whole(path, _digest(key, code) + code, private=True, durable=False)
        _remove_oldest(path.parent)
    except (OSError, IdeficsError) as error:
        _log.debug("the next start compiles again: %s", error)


def _path(key: str) -> Path:
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    return cache_folder(os.environ) / "code" / f"{name}{_ENDING}"


def _digest(key: str, code: bytes) -> bytes:
    return hashlib.sha256(key.encode() + b"\0" + code).digest()


def _is_own(status: os.stat_result) -> bool:
    """Whether nobody but this user can have written a file with this *status*."""
    return status.st_uid == os.getuid() and not status.st_mode & 0o022


def _remove_oldest(folder: Path) -> None:
    found = sorted(folder.glob(f"*{_ENDING}"), key=lambda path: path.stat().st_mtime)
    for path in found[:-_MOST_FILES]:
        with suppress(OSError):
            path.unlink()
