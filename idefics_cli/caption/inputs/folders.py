"""The files in folders and globs, and the form of their paths."""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections import deque
from collections.abc import Callable
from pathlib import PurePath

from idefics_cli.images.formats import HEAD_BYTES, RAW_PLUGIN, identify

_PICTURE = re.compile(
    r"\.(avif|bmp|dib|gif|hei[cf]|ic[bo]|j2k|jfif|jp[2ex]|jpe?g|jxl|p[bgnp]m|pcx|png|qoi|sgi|tga"
    r"|tiff?|vda|vst|webp)",
    re.IGNORECASE,
)
# Camera files begin like TIFF files, and their first image is a thumbnail. Often, a JPEG of the
# same picture lies beside them.
_CAMERA_RAW = re.compile(r"\.(arw|cr2|dng|nef|nrw|orf|pef|rw2|sr2|srw)", re.IGNORECASE)
_WILD = re.compile(r"[*?[]")


class Walk:
    """The files and folders below a folder; links lead into no folder a second time.

    Args:
        root: The folder.
        recursive: Also enter the folders below it.
        follow_links: Also enter folders outside of *root* that links lead to.

    Attributes:
        folders: Paths of the folders, *root* first.
        files: Paths of the files that are not hidden, unsorted.
        unlisted: Folders that could not be listed, each with the reason.
        outside: Links to folders outside of *root* that were not followed.
    """

    def __init__(self, root: str, *, recursive: bool, follow_links: bool = False) -> None:
        self.folders: list[str] = []
        self.files: list[str] = []
        self.unlisted: list[tuple[str, str]] = []
        self.outside: list[str] = []
        self._root = None if follow_links else os.path.realpath(root or os.curdir)
        self._seen: set[tuple[int, int]] = set()
        self._real, self._links = [root], deque[str]()
        # Links come last, so that a folder with a link to it keeps its real path.
        while self._real or self._links:
            if self._real:
                self._list(self._real.pop())
            elif self._is_inside(link := self._links.popleft()):
                self._list(link)
            else:
                self.outside.append(link)
            if not recursive:
                break

    def pictures(self) -> list[str]:
        """Return the files that may be images, sorted."""
        return sorted(filter(_looks_like_a_picture, self.files), key=sort_key)

    def _is_inside(self, link: str) -> bool:
        if self._root is None:
            return True
        target = os.path.realpath(link)
        return target == self._root or target.startswith(os.path.join(self._root, ""))

    def _list(self, folder: str) -> None:
        try:
            status = os.stat(folder or os.curdir)
            if (status.st_dev, status.st_ino) in self._seen:
                return
            self._seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder or os.curdir) as scanned:
                entries = sorted(
                    (e for e in scanned if not e.name.startswith(".")), key=lambda e: e.name
                )
        except OSError as error:
            self.unlisted.append((folder, error.strerror or str(error)))
            return
        self.folders.append(folder)
        prefix = os.path.join(folder, "")
        for entry in entries:
            self._add(entry, prefix + entry.name)

    def _add(self, entry: os.DirEntry[str], path: str) -> None:
        # On most systems, the listing has the kind of each entry: no disk access is needed.
        if _is(entry.is_dir):
            (self._links if entry.is_symlink() else self._real).append(path)
        # No pipes and devices, which could block for ever. A broken link becomes a failure.
        elif _is(entry.is_file) or (entry.is_symlink() and not _exists(path)):
            self.files.append(path)


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a loop of links, or a server that is gone
        return False


def _exists(path: str) -> bool:
    try:
        return os.path.exists(path)
    except OSError:
        return False


def has_picture_name(path: str) -> bool:
    """Whether *path* has the extension of a picture."""
    return _PICTURE.fullmatch(os.path.splitext(path)[1]) is not None


def has_wildcard(path: str) -> bool:
    """Whether *path* may be a glob."""
    return _WILD.search(path) is not None


def posix(path: str) -> str:
    """Return *path* as `PurePath.as_posix` would."""
    # For a long list, `PurePath` takes most of the time, and few paths need it.
    return PurePath(path).as_posix() if not is_tidy(path) else path


def is_tidy(path: str) -> bool:
    """Whether *path* has no other form for sure: no `//`, `.`, `..` and no backslash."""
    return not (
        path.startswith(".") or "/." in path or "//" in path or "\\" in path or path.endswith("/")
    )


def _looks_like_a_picture(path: str) -> bool:
    """Whether *path* may be an image, by its extension or else by its first bytes."""
    if has_picture_name(path):
        return True
    if _CAMERA_RAW.fullmatch(os.path.splitext(path)[1]):
        return False
    try:
        plugin = identify(_read_head(path)).plugin
    except OSError:
        return False
    # Targa has no signature: other files may match by chance. The JPEG of a camera raw file often
    # lies beside it.
    return plugin not in (None, "TGA", RAW_PLUGIN)


def _read_head(path: str) -> bytes:
    """Return the first bytes of a regular file; nothing of what has no end or may block."""
    # Opening a pipe must not wait for its writer; a file of the kernel may have no data yet.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return os.read(descriptor, HEAD_BYTES) if is_regular else b""
    finally:
        os.close(descriptor)


def sort_key(path: str) -> str:
    """Return the key by which paths are sorted."""
    # By parts, so that the files of a folder stay together: "a/b" before "a-c/b".
    return posix(path).replace("/", "\0")


def fixed_part(pattern: str) -> str:
    """Return the folder before the first wildcard of *pattern*."""
    match = _WILD.search(pattern)
    # In the same form as in the results of `glob_paths`.
    return str(PurePath(os.path.dirname(pattern[: match.start()] if match else pattern)))


def glob_paths(pattern: str, *, follow_links: bool = False) -> list[str]:
    """Return the paths that *pattern* matches, unsorted; a final `**` matches every picture below.

    `glob.glob` would follow a loop of links 40 times, and double its work at each fork.
    """
    anchor = PurePath(pattern).anchor
    names = PurePath(pattern).parts[1 if anchor else 0 :]
    found = [anchor]
    for index, name in enumerate(names):
        if name == "**":
            walks = [Walk(base, recursive=True, follow_links=follow_links) for base in found]
            is_last = index == len(names) - 1
            found = [path for w in walks for path in (w.pictures() if is_last else w.folders)]
        elif _WILD.search(name):
            found = [match for base in found for match in _matching(base, name)]
        else:
            found = [path for base in found if os.path.lexists(path := os.path.join(base, name))]
    return found


def _matching(folder: str, pattern: str) -> list[str]:
    try:
        names = os.listdir(folder or os.curdir)
    except OSError:
        return []
    hidden = pattern.startswith(".")
    return [
        os.path.join(folder, name)
        for name in names
        if fnmatch.fnmatch(name, pattern) and (hidden or not name.startswith("."))
    ]
