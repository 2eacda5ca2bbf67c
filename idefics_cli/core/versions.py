"""Versions of installed packages."""

from __future__ import annotations

from functools import cache
from importlib import metadata


@cache
def installed_version(distribution: str) -> str | None:
    """Return the version of *distribution*; None if it is not installed.

    The file with the version is long, and reading it takes some milliseconds.
    """
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None
