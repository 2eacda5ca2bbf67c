"""Tar archives with pictures."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Mapping
from pathlib import Path


def make_tar(
    path: Path | str,
    members: Mapping[str, bytes],
    *,
    form: int = tarfile.PAX_FORMAT,
    links: Mapping[str, tuple[bytes, str]] = {},
) -> Path:
    """Write the archive *path* with *members*, then *links*: name -> type and target."""
    with tarfile.open(path, "w", format=form) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        for name, (kind, target) in links.items():
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, target
            archive.addfile(info)
    return Path(path)


def members_of(path: Path | str) -> dict[str, bytes]:
    """Return the members of an archive, in their order; no name may occur twice."""
    with tarfile.open(path) as archive:
        infos = archive.getmembers()
        assert len({info.name for info in infos}) == len(infos)
        files = ((info.name, archive.extractfile(info)) for info in infos)
        return {name: file.read() for name, file in files if file is not None}
