"""The search for files in folders and by globs, and the form of their paths."""

from __future__ import annotations

import fnmatch
import os
import re
import stat
from collections import deque
from collections.abc import Callable
from pathlib import PurePath
from typing import TypeAlias

from idefics_cli.images.formats import HEAD_BYTES, RAW_PLUGIN, identify

_PICTURE = re.compile(
    r"\.(avif|bmp|dib|gif|hei[cf]|ic[bo]|j2k|jfif|jp[2ex]|jpe?g|jxl|p[bgnp]m|pcx|png|qoi|sgi|tga"
    r"|tiff?|vda|vst|webp)",
    re.IGNORECASE,
)
# Raw files of cameras are left out of folders: they begin like TIFF files, but their first image is
# a thumbnail, and often a JPEG of the same picture lies beside them.
_CAMERA_RAW = re.compile(r"\.(arw|cr2|dng|nef|nrw|orf|pef|rw2|sr2|srw)", re.IGNORECASE)
_VIDEO = re.compile(r"\.(3gp|avi|flv|m2ts|m4v|mkv|mov|mp4|mpe?g|mts|webm|wmv)", re.IGNORECASE)
_MOST_SEARCHED = 3000
_WILD = re.compile(r"[*?[]")


TakesVideos: TypeAlias = Callable[[], bool]
"""Returns whether the model takes videos; only called when there is one, because it reads files."""


class Walk:
    """The files and folders below a folder. Each folder is entered once, even if links lead to it.

    Args:
        root: The folder.
        recursive: Whether to enter the folders below *root*, too.
        follow_links: Whether to follow links that lead out of *root*.
        most_folders: Largest number of folders to list; None is no limit.

    Attributes:
        folders: Paths of the folders, *root* first.
        files: Paths of the files that are not hidden, unsorted.
        unlisted: Folders that could not be listed, each with the reason.
        outside: Links to folders outside of *root* that were not followed.
        is_cut: Whether there are more folders than *most_folders*.
    """

    def __init__(
        self,
        root: str,
        *,
        recursive: bool,
        follow_links: bool = False,
        most_folders: int | None = None,
    ) -> None:
        self.folders: list[str] = []
        self.files: list[str] = []
        self.unlisted: list[tuple[str, str]] = []
        self.outside: list[str] = []
        self.is_cut = False
        self._root = None if follow_links else os.path.realpath(root or os.curdir)
        self._seen: set[tuple[int, int]] = set()
        self._real, self._links = [root], deque[str]()
        # Links come last, so that a folder to which a link leads is listed by its real path.
        while self._real or self._links:
            if self._real:
                self._list(self._real.pop())
            elif self._is_inside(link := self._links.popleft()):
                self._list(link)
            else:
                self.outside.append(link)
            self.is_cut = most_folders is not None and len(self.folders) > most_folders
            if self.is_cut or not recursive:
                break

    def pictures(self, takes_videos: TakesVideos) -> list[str]:
        """Return the files that may be images, sorted; and videos, if the model takes them."""
        return sorted((f for f in self.files if _is_for_model(f, takes_videos)), key=sort_key)

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
        # On most systems, a listing states the kind of each entry, so the disk is not asked again.
        if _is(entry.is_dir):
            (self._links if entry.is_symlink() else self._real).append(path)
        # Pipes and devices are left out, because reading them could block for ever. A broken link
        # is listed, and its picture becomes a failure.
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


def has_pictures_below(
    folder: str, takes_videos: TakesVideos, *, is_other: Callable[[str], bool]
) -> bool:
    """Whether a file in a sub-folder of *folder* may be an image, or *is_other* is true of it.

    The answer is True if there are more than a few thousand folders or files: to search all would
    take long.
    """
    walk = Walk(folder, recursive=True, most_folders=_MOST_SEARCHED)
    first = len(os.path.join(folder, ""))
    below = [path for path in walk.files if os.sep in path[first:]]
    if walk.is_cut or len(below) > _MOST_SEARCHED:
        return True
    return any(is_other(path) or _is_for_model(path, takes_videos) for path in below)


def has_picture_name(path: str) -> bool:
    """Whether *path* has the extension of a picture."""
    return _PICTURE.fullmatch(os.path.splitext(path)[1]) is not None


def has_video_name(path: str) -> bool:
    """Whether *path* has the extension of a video."""
    return _VIDEO.fullmatch(os.path.splitext(path)[1]) is not None


def has_wildcard(path: str) -> bool:
    """Whether *path* may be a glob."""
    return _WILD.search(path) is not None


def posix(path: str) -> str:
    """Return *path* as `PurePath.as_posix` would."""
    # Only few paths need `PurePath`, which would take most of the time for a long list.
    return PurePath(path).as_posix() if not is_tidy(path) else path


def is_tidy(path: str) -> bool:
    """Whether *path* is certainly in its shortest form: without `//`, `.`, `..` and backslashes."""
    return not (
        path.startswith(".") or "/." in path or "//" in path or "\\" in path or path.endswith("/")
    )


def _is_for_model(path: str, takes_videos: TakesVideos) -> bool:
    """Whether *path* may be an image, or a video, by its extension or else by its first bytes."""
    if has_picture_name(path):
        return True
    extension = os.path.splitext(path)[1]
    if _CAMERA_RAW.fullmatch(extension):
        return False
    if _VIDEO.fullmatch(extension):
        return takes_videos()
    try:
        content = identify(_read_head(path))
    except OSError:
        return False
    if content.is_video:
        return takes_videos()
    plugin = content.plugin
    # Targa has no signature, so other files may match by chance. Raw files of cameras are left out;
    # `_CAMERA_RAW` says why.
    return plugin not in (None, "TGA", RAW_PLUGIN)


def _read_head(path: str) -> bytes:
    """Return the first bytes of a regular file; no bytes of a pipe or device, which may block."""
    # O_NONBLOCK: opening a pipe must not wait for its writer, and reading a file such as those in
    # /proc must not wait for data.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(path, flags)
    try:
        is_regular = stat.S_ISREG(os.fstat(descriptor).st_mode)
        return os.read(descriptor, HEAD_BYTES) if is_regular else b""
    finally:
        os.close(descriptor)


def sort_key(path: str) -> str:
    """Return the key by which paths are sorted."""
    # Paths are compared part by part, so that the files of a folder stay together: "a/b" comes
    # before "a-c/b".
    return posix(path).replace("/", "\0")


def fixed_part(pattern: str) -> str:
    """Return the folder before the first wildcard of *pattern*."""
    match = _WILD.search(pattern)
    # `PurePath` writes the folder in the same form as the results of `glob_paths`, so that each
    # result begins with this folder.
    return str(PurePath(os.path.dirname(pattern[: match.start()] if match else pattern)))


def glob_paths(pattern: str, *, takes_videos: TakesVideos, follow_links: bool = False) -> list[str]:
    """Return the paths that *pattern* matches, unsorted.

    A final `**` matches what `Walk.pictures` lists.

    `glob.glob` is not used, because it follows a loop of links 40 times, and doubles its work if
    there are two such links in a folder.
    """
    anchor = PurePath(pattern).anchor
    names = PurePath(pattern).parts[1 if anchor else 0 :]
    found = [anchor]
    for index, name in enumerate(names):
        if name == "**":
            walks = [Walk(base, recursive=True, follow_links=follow_links) for base in found]
            is_last = index == len(names) - 1
            found = [
                path
                for walk in walks
                for path in (walk.pictures(takes_videos) if is_last else walk.folders)
            ]
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
