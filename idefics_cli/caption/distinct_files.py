"""The check that no file of a run replaces another one, or a picture."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from idefics_cli.caption.item import CaptionItem
from idefics_cli.core.errors import UsageError
from idefics_cli.images.tars import tar_part

# Prefix of the keys for files that have several hard links. No path begins with NUL, so no key
# equals a path.
_INODE = "\0inode "


def check_distinct(files: Mapping[str, Path | None], pictures: Sequence[CaptionItem]) -> None:
    """Check that *files* are different files, and none of them is one of *pictures*.

    Devices and pipes may be named several times.

    Args:
        files: What a file is for, such as "the output" -> its path; None for no file.
        pictures: The pictures of the run.

    Raises:
        UsageError: If a file would replace another one.
    """
    taken: dict[str, str] = {}
    for purpose, path in files.items():
        if path is None or (path.exists() and not path.is_file()):
            continue
        names = {_identity(path), _identity(os.path.realpath(path)), _hard_link(path)}
        for name in names - {""}:
            other = taken.setdefault(name, purpose)
            if other != purpose:
                raise UsageError(f"`{path}` cannot be both {other} and {purpose}")
    # Base names are compared first, because making 200,000 absolute paths takes time. Only a few
    # pictures have the base name of another file of the run.
    bases = {os.path.basename(name) for name in taken}
    has_links = any(name.startswith(_INODE) for name in taken)
    for picture in pictures:
        source = picture.attachment.source
        name, what, found = picture.key, "a picture", None
        if _base(source) in bases:
            found = taken.get(_identity(source))
        if found is None and has_links:
            found = taken.get(_hard_link(source))
        if found is None and (tar := tar_part(source)) is not None and _base(tar) in bases:
            name, what, found = tar, "an archive", taken.get(_identity(tar))
        if found is not None:
            raise UsageError(
                f"`{name}` is {what} of this run, and cannot be {found}", hint="name another file"
            )


def _hard_link(path: str | os.PathLike[str]) -> str:
    """Return what all hard links of a file have in common; empty if it has one name."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):  # ValueError: a URL can hold what no file name can
        return ""
    return f"{_INODE}{status.st_dev}:{status.st_ino}" if status.st_nlink > 1 else ""


def _base(path: str) -> str:
    return os.path.normcase(os.path.basename(path))


def _identity(path: str | os.PathLike[str]) -> str:
    return os.path.normcase(os.path.abspath(path))
