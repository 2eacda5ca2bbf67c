"""What the user named, as pictures: files, folders, globs, URLs and URIs, in a stable order."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePath

from idefics_cli.core.errors import IdeficsError, ImageError
from idefics_cli.core.types import Attachment
from idefics_cli.models.image_formats import HEAD_BYTES, identify
from idefics_cli.models.image_sources import no_such_file

_PICTURE = re.compile(
    r"\.(avif|bmp|dib|gif|hei[cf]|ic[bo]|j2k|jfif|jp[2ex]|jpe?g|jxl|p[bgnp]m|pcx|png|qoi|sgi|tga"
    r"|tiff?|vda|vst|webp)",
    re.IGNORECASE,
)
# Camera files begin as TIFF does, and hold a thumbnail as one; their JPEG often lies beside them.
_CAMERA_RAW = re.compile(r"\.(arw|cr2|dng|nef|nrw|orf|pef|rw2|sr2|srw)", re.IGNORECASE)
_WILD = re.compile(r"[*?[]")
# What the image loader takes besides paths; `C:` is none of them.
_SCHEME = re.compile(r"(https?|file|data|clipboard):", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture to caption.

    Attributes:
        key: Its POSIX path as the user reaches it, or its URL: the `file_name` of its record.
        attachment: Where the engine finds it.
        relative: Its POSIX path under the folder that was named, for an output that keeps the
            tree; the bare name of a file that was named itself, empty for what is no file.
        columns: Names and values that its row in a list gave, for the prompt.
    """

    key: str
    attachment: Attachment
    relative: str = ""
    columns: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class Listing:
    """The pictures of a run, each once, and the arguments that gave none.

    Attributes:
        pictures: In the order of the arguments; sorted by path inside each.
        problems: What is wrong with an argument as a whole: a folder without pictures or that
            cannot be listed, a glob without match.
    """

    pictures: tuple[Picture, ...]
    problems: tuple[IdeficsError, ...] = ()


def discover(arguments: Sequence[str], *, recursive: bool = False) -> Listing:
    """List the pictures that *arguments* name.

    A file that is named is always taken. Of a folder, files with a known extension or with the
    first bytes of an image are; hidden files and folders are not. A glob means what a shell
    makes of it, and `**` any depth. A picture that is reached twice is listed once.

    Args:
        arguments: As typed: paths, globs that no shell expanded, URLs, URIs and `-`.
        recursive: Also list the sub-folders of folders.

    Raises:
        ImageError: If there is nothing to caption, or no path that is named exists.
    """
    lister = _Lister(recursive=recursive)
    for argument in arguments:
        lister.add(argument)
    listing = Listing(tuple(lister.pictures.values()), tuple(lister.problems))
    if not any(_may_exist(picture.attachment.source) for picture in listing.pictures):
        raise _nothing(listing)
    return listing


class _Lister:
    def __init__(self, *, recursive: bool) -> None:
        self._recursive = recursive
        self.pictures: dict[str, Picture] = {}
        self.problems: list[IdeficsError] = []

    def add(self, argument: str) -> None:
        if _is_uri(argument):
            self.pictures.setdefault(argument, Picture(_uri_key(argument), Attachment(argument)))
            return
        path = os.path.expanduser(argument) if argument.startswith("~") else argument
        # A file may have a name that looks like a glob.
        if not _WILD.search(path) or os.path.lexists(path):
            self._add_path(path)
        elif matches := sorted(_glob(path), key=_sort_key):
            for match in matches:
                self._add_path(match)
        else:
            hint = None if "**" in path else "`**` matches any depth; `-r FOLDER` takes all of it"
            self._problem(f"no picture matches `{path}`", hint)

    def _add_path(self, path: str) -> None:
        if os.path.isdir(path):
            self._add_folder(path)
        else:
            self._add_file(path)

    def _add_folder(self, folder: str) -> None:
        walk = _Walk(folder, recursive=self._recursive)
        for path, reason in walk.unlisted:
            self._problem(f"cannot list folder `{path}`: {reason}")
        pictures = walk.pictures()
        for path in pictures:
            self._add_file(path)
        if not pictures and not walk.unlisted:
            hint = None if self._recursive else "`-r` also looks into its sub-folders"
            self._problem(f"no pictures in folder `{folder}`", hint)

    def _add_file(self, path: str) -> None:
        # Links are kept apart: each has a name that somebody looks for in the output.
        identity = os.path.normcase(os.path.abspath(path))
        source = os.path.join(os.curdir, path) if _is_uri(path) else path
        key = PurePath(path).as_posix()
        # A file may be named as a URI or `-`: its key then says that it is none.
        key = f"./{key}" if _is_uri(key) else key
        self.pictures.setdefault(identity, Picture(key, Attachment(source)))

    def _problem(self, message: str, hint: str | None = None) -> None:
        self.problems.append(ImageError(message, kind="missing", hint=hint))


def _nothing(listing: Listing) -> ImageError:
    problems = [*listing.problems, *(no_such_file(p.attachment.source) for p in listing.pictures)]
    if not problems:
        return ImageError("nothing to caption", kind="missing", hint="name files or folders")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return ImageError(f"{problems[0]}{more}", kind="missing", hint=problems[0].hint)


def _may_exist(source: str) -> bool:
    return _is_uri(source) or os.path.lexists(source)


def _is_uri(source: str) -> bool:
    return source == "-" or _SCHEME.match(source) is not None


def _uri_key(uri: str) -> str:
    # A data: URI holds the whole picture; its digest names it as well, on a short line.
    if not uri.lower().startswith("data:"):
        return uri
    digest = hashlib.sha256(uri.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{uri.partition(',')[0][:64]},sha256-{digest[:16]}"


class _Walk:
    """The files and folders below a folder; no folder is entered twice, by whatever link.

    Attributes:
        folders: Paths of the folders, *root* first.
        files: Paths of the files that are not hidden, unsorted.
        unlisted: Folders that could not be listed, each with the reason.
    """

    def __init__(self, root: str, *, recursive: bool) -> None:
        self.folders: list[str] = []
        self.files: list[str] = []
        self.unlisted: list[tuple[str, str]] = []
        self._seen: set[tuple[int, int]] = set()
        self._real, self._links = [root], deque[str]()
        # A folder that a link reaches too keeps its real path: links come last.
        while self._real or self._links:
            self._list(self._real.pop() if self._real else self._links.popleft())
            if not recursive:
                break

    def pictures(self) -> list[str]:
        """Return the files that may be images, sorted."""
        return sorted(filter(_looks_like_a_picture, self.files), key=_sort_key)

    def _list(self, folder: str) -> None:
        try:
            status = os.stat(folder or os.curdir)
            if (status.st_dev, status.st_ino) in self._seen:
                return
            self._seen.add((status.st_dev, status.st_ino))
            with os.scandir(folder or os.curdir) as entries:
                names = sorted(e.name for e in entries if not e.name.startswith("."))
        except OSError as error:
            self.unlisted.append((folder, error.strerror or str(error)))
            return
        self.folders.append(folder)
        for name in names:
            self._sort_in(os.path.join(folder, name))

    def _sort_in(self, path: str) -> None:
        if os.path.isdir(path):
            (self._links if os.path.islink(path) else self._real).append(path)
        # Not fifos and devices, which could block for ever; a broken link is a failure to tell.
        elif os.path.isfile(path) or os.path.islink(path):
            self.files.append(path)


def _looks_like_a_picture(path: str) -> bool:
    """Tell by the extension, or else by the first bytes, whether *path* may be an image."""
    extension = os.path.splitext(path)[1]
    if _PICTURE.fullmatch(extension):
        return True
    if _CAMERA_RAW.fullmatch(extension):
        return False
    try:
        with open(path, "rb") as file:
            plugin = identify(file.read(HEAD_BYTES)).plugin
    except OSError:
        return False
    # Targa is told by a few small numbers, which other files have by chance too.
    return plugin is not None and plugin != "TGA"


def _sort_key(path: str) -> tuple[str, ...]:
    # By parts, so that the files of a folder stay together: "a/b" before "a-c/b".
    return PurePath(path).parts


def _glob(pattern: str) -> list[str]:
    """Return what *pattern* matches, unsorted; a `**` at its end is every picture below.

    Not `glob.glob`, which goes round a loop of links 40 times, and doubles at each fork.
    """
    anchor = PurePath(pattern).anchor
    names = PurePath(pattern).parts[1 if anchor else 0 :]
    found = [anchor]
    for index, name in enumerate(names):
        if name == "**":
            walks = [_Walk(base, recursive=True) for base in found]
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
