"""What the user named, as pictures: files, folders, globs, URLs and URIs, in a stable order."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import re
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePath

from idefics_cli.caption.lists import Columns, FileList, all_columns, shown, where
from idefics_cli.core.errors import IdeficsError, ImageError, UsageError
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
_SEPARATORS = ("/", os.sep)
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
    columns: Columns = ()


@dataclass(frozen=True, slots=True)
class Listing:
    """The pictures of a run, each once, and the arguments that gave none.

    Attributes:
        pictures: In the order of the arguments; sorted by path inside each.
        problems: What is wrong with an argument as a whole: a folder without pictures or that
            cannot be listed, a glob without match.
        columns: Names of the columns of lists, for the prompt.
    """

    pictures: tuple[Picture, ...]
    problems: tuple[IdeficsError, ...] = ()
    columns: tuple[str, ...] = ()


def discover(
    arguments: Sequence[str], *, recursive: bool = False, lists: Sequence[FileList] = ()
) -> Listing:
    """List the pictures that *arguments* name, then those of *lists*.

    A file that is named is always taken. Of a folder, files with a known extension or with the
    first bytes of an image are; hidden files and folders are not. A glob means what a shell
    makes of it, and `**` any depth; in a list, a name is only a name. A picture that is reached
    twice is listed once, with the columns of its row in a list.

    Paths of a table are relative to its folder, as in `metadata.jsonl` of a data set, those of
    a list of paths to the current folder. Where the first that can be found at all is found
    only the other way round, all of the list is.

    Args:
        arguments: As typed: paths, globs that no shell expanded, URLs, URIs and `-`.
        recursive: Also list the sub-folders of folders.
        lists: In their order.

    Raises:
        ImageError: If there is nothing to caption, or no path that is named exists.
        UsageError: If two rows give one picture different columns.
    """
    lister = _Lister(recursive=recursive)
    for argument in arguments:
        lister.add(argument)
    for file_list in lists:
        lister.add_list(file_list)
    listing = Listing(tuple(lister.pictures.values()), tuple(lister.problems), all_columns(lists))
    if not any(_may_exist(picture.attachment.source) for picture in listing.pictures):
        raise _nothing(listing)
    return listing


class _Lister:
    def __init__(self, *, recursive: bool) -> None:
        self._recursive = recursive
        self._here = os.getcwd()
        self._lines: dict[str, tuple[str, int]] = {}
        self.pictures: dict[str, Picture] = {}
        self.problems: list[IdeficsError] = []

    def add(self, argument: str) -> None:
        if _is_uri(argument):
            self.pictures.setdefault(argument, Picture(_uri_key(argument), Attachment(argument)))
            return
        path = os.path.expanduser(argument) if argument.startswith("~") else argument
        # A file may have a name that looks like a glob.
        if not _WILD.search(path) or os.path.lexists(path):
            self._add_path(path, None)
        elif matches := sorted(_glob(path), key=_sort_key):
            root = _fixed_part(path)
            for match in matches:
                self._add_path(match, root)
        else:
            hint = None if "**" in path else "`**` matches any depth; `-r FOLDER` takes all of it"
            self._problem(f"no picture matches `{path}`", hint)

    def add_list(self, file_list: FileList) -> None:
        base = _base(file_list)
        for entry in file_list.entries:
            if _is_uri(entry.path):
                picture = Picture(_uri_key(entry.path), Attachment(entry.path), "", entry.columns)
                self._add_row(entry.path, picture, (file_list.source, entry.line))
                continue
            path = os.path.join(base, entry.path)
            if entry.path.startswith("~") and not os.path.lexists(path):
                path = os.path.expanduser(entry.path)
            # Only what has not the name of a picture is looked at: a disk may be slow.
            if not _PICTURE.fullmatch(os.path.splitext(path)[1]) and os.path.isdir(path):
                self._add_folder(path, base)
                continue
            picture = self._picture(path, tree_path(entry.path), entry.columns)
            self._add_row(self._identity(path), picture, (file_list.source, entry.line))
        if not file_list.entries:
            self._problem(f"no pictures in {shown(file_list.source)}")

    def _add_row(self, identity: str, picture: Picture, line: tuple[str, int]) -> None:
        known = self.pictures.get(identity)
        if known is None or not known.columns:
            # The columns of a row are also for a picture that was named before.
            row = picture if known is None else replace(known, columns=picture.columns)
            self.pictures[identity] = row
            self._lines[identity] = line
        elif picture.columns and picture.columns != known.columns:
            raise UsageError(
                f"{where(*line)}: other columns for `{picture.key}` "
                f"than in {where(*self._lines[identity])}",
                hint="a picture is captioned once; `--ask` puts several questions",
            )

    def _add_path(self, path: str, root: str | None) -> None:
        if os.path.isdir(path):
            self._add_folder(path, path if root is None else root)
        else:
            self._add_file(path, root)

    def _add_folder(self, folder: str, root: str) -> None:
        walk = _Walk(folder, recursive=self._recursive)
        for path, reason in walk.unlisted:
            self._problem(f"cannot list folder `{path}`: {reason}")
        pictures = walk.pictures()
        for path in pictures:
            self._add_file(path, root)
        if not pictures and not walk.unlisted:
            hint = None if self._recursive else "`-r` also looks into its sub-folders"
            self._problem(f"no pictures in folder `{folder}`", hint)

    def _add_file(self, path: str, root: str | None) -> None:
        identity = self._identity(path)
        if identity not in self.pictures:
            relative = os.path.basename(path) if root is None else _below(path, root)
            self.pictures[identity] = self._picture(path, relative)

    def _picture(self, path: str, relative: str, columns: Columns = ()) -> Picture:
        # The image loader takes a `~` for the home folder; here it is done with, or a name.
        is_special = _is_uri(path) or path.startswith("~")
        source = os.path.join(os.curdir, path) if is_special else path
        key = _posix(path)
        # A file may be named as a URI or `-`: its key then says that it is none.
        key = f"./{key}" if _is_uri(key) else key
        return Picture(key, Attachment(source), relative, columns)

    def _identity(self, path: str) -> str:
        # Links are kept apart: each has a name that somebody looks for in the output.
        if not _is_tidy(path):
            return os.path.normcase(os.path.abspath(path))
        return os.path.normcase(os.path.join(self._here, path))

    def _problem(self, message: str, hint: str | None = None) -> None:
        self.problems.append(ImageError(message, kind="missing", hint=hint))


def tree_path(path: str) -> str:
    """Return the POSIX path of *path* in an output that keeps the tree; never out of it.

    A root and a drive are left off, and a `..` goes no further up than the beginning.
    """
    if _is_tidy(path) and not os.path.isabs(path) and not os.path.splitdrive(path)[0]:
        return path
    return inner_path(PurePath(path))


def inner_path(path: PurePath) -> str:
    """As `tree_path`, of a path of any system."""
    parts: list[str] = []
    for part in path.parts[1 if path.anchor else 0 :]:
        if part != "..":
            parts.append(part)
        elif parts:
            parts.pop()
    return "/".join(parts)


def _below(path: str, root: str) -> str:
    """Return the POSIX path of *path* below *root*, by which it was reached."""
    prefix = root if not root or root.endswith(_SEPARATORS) else root + os.sep
    if not path.startswith(prefix):  # "." and a glob that begins with "./"
        return tree_path(path)
    rest = path[len(prefix) :]
    return inner_path(PurePath(rest)) if not _is_tidy(rest) else rest


def _posix(path: str) -> str:
    # Making a `PurePath` takes most of the time of a long list; few need it.
    return PurePath(path).as_posix() if not _is_tidy(path) else path


def _is_tidy(path: str) -> bool:
    """Tell whether a path surely has no shorter or other form: no `//`, `.`, `..`, backslash."""
    return not (
        path.startswith(".") or "/." in path or "//" in path or "\\" in path or path.endswith("/")
    )


def _base(file_list: FileList) -> str:
    """Return the folder that the paths of *file_list* are relative to."""
    folders = [file_list.folder, ""] if file_list.is_table else ["", file_list.folder]
    if folders[0] == folders[1]:
        return folders[0]
    for entry in file_list.entries:
        if not _is_uri(entry.path):
            for folder in folders:
                if os.path.lexists(os.path.join(folder, entry.path)):
                    return folder
    return folders[0]


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
            self._sort_in(entry, prefix + entry.name)

    def _sort_in(self, entry: os.DirEntry[str], path: str) -> None:
        # Most systems tell the kind with the name: no further look at the disk.
        if _is(entry.is_dir):
            (self._links if entry.is_symlink() else self._real).append(path)
        # Not fifos and devices, which could block for ever; a broken link is a failure to tell.
        elif _is(entry.is_file) or entry.is_symlink():
            self.files.append(path)


def _is(kind: Callable[[], bool]) -> bool:
    try:
        return kind()
    except OSError:  # a loop of links, or a server that is gone
        return False


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


def _sort_key(path: str) -> str:
    # By parts, so that the files of a folder stay together: "a/b" before "a-c/b".
    return _posix(path).replace("/", "\0")


def _fixed_part(pattern: str) -> str:
    """Return the folder before the first wildcard of *pattern*."""
    match = _WILD.search(pattern)
    # As `_glob` has it in what matches.
    return str(PurePath(os.path.dirname(pattern[: match.start()] if match else pattern)))


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
