"""The maker of the work list: pictures of files, folders, globs and URLs, in a stable order.

The pictures in a tar archive are listed as if it were a folder, sorted by name. An archive in a
folder counts only if the folder has no pictures beside it.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import PurePath

from idefics_cli.caption.inputs.lists import FileList, all_columns, shown, where
from idefics_cli.caption.inputs.remote import remote_pictures
from idefics_cli.caption.inputs.tars import TarLister, expanded
from idefics_cli.caption.item import CaptionItem, Columns
from idefics_cli.core.errors import IdeficsError, ImageError, UsageError
from idefics_cli.core.escapes import plain_name
from idefics_cli.core.sources import as_path, is_remote, is_uri, source_of, without_password
from idefics_cli.core.types import Attachment
from idefics_cli.core.units import counted
from idefics_cli.images.folders import (
    TakesVideos,
    Walk,
    fixed_part,
    glob_paths,
    has_picture_name,
    has_pictures_below,
    has_wildcard,
    is_tidy,
    posix,
    sort_key,
)
from idefics_cli.images.sources import no_such_file
from idefics_cli.images.tars import is_tar, split_member

_SEPARATORS = ("/", os.sep)
# The orders of two arguments are at least this far apart. A list is one argument, and has fewer
# lines.
_ARGUMENT = 2**32


@dataclass(frozen=True, slots=True)
class Listing:
    """The pictures of a run, and the problems that were found.

    Attributes:
        pictures: Pictures in the order of the arguments, sorted by path inside each argument; no
            picture occurs twice.
        problems: Errors about whole arguments: a folder without pictures, a folder that cannot
            be listed, a glob without a match.
        columns: Names of the columns of lists, for the prompt.
        notes: Texts about what was left out on purpose.
    """

    pictures: tuple[CaptionItem, ...]
    problems: tuple[IdeficsError, ...] = ()
    columns: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def discover(
    arguments: Sequence[str],
    *,
    recursive: bool = False,
    follow_links: bool = False,
    lists: Sequence[FileList] = (),
    fields: Collection[str] | None = None,
    takes_videos: TakesVideos = lambda: False,
    columns: tuple[str, ...] = (),
    has_tar: Callable[[str], bool] = lambda path: True,
) -> Listing:
    """List the pictures that *arguments* name, then those of *lists*.

    A named file is always listed. In a folder, only files with a known extension or the first bytes
    of an image are listed, videos if the model takes them, and nothing hidden. A glob means what it
    means in a shell. Names in a list have no wildcards. A picture that is named twice is listed
    once, with the columns of its row in a list.

    Paths in a table are relative to its folder, as in `metadata.jsonl` of a data set. Paths in a
    list of paths are relative to the current folder. But if the first path that exists by either
    rule exists only by the other one, that rule applies to the whole list.

    Args:
        arguments: Arguments as typed: paths, globs that no shell expanded, URLs, URIs and `-`.
        recursive: Whether to list the sub-folders of folders, too.
        follow_links: Whether to follow links that lead out of a folder.
        lists: The lists, in their order.
        fields: The columns that prompts use; other columns are dropped. None keeps all.
        takes_videos: See `TakesVideos`.
        columns: Names of the columns of samples in archives.
        has_tar: Whether to list the pictures of an archive; else the archive itself is listed.

    Raises:
        ImageError: If there is nothing to caption, or no named path exists.
        UsageError: If two rows give one picture different values in the columns of *fields*.
    """
    lister = _Lister(fields, takes_videos, has_tar, recursive=recursive, follow_links=follow_links)
    return _checked(lister.listing(arguments, lists, (*all_columns(lists), *columns)))


def _checked(listing: Listing) -> Listing:
    if not any(_may_exist(picture.attachment.source) for picture in listing.pictures):
        raise _nothing(listing)
    return listing


class _Lister:
    def __init__(
        self,
        fields: Collection[str] | None,
        takes_videos: TakesVideos,
        has_tar: Callable[[str], bool],
        *,
        recursive: bool,
        follow_links: bool,
    ) -> None:
        self._takes_videos = cache(takes_videos)
        self._recursive = recursive
        self._follow_links = follow_links
        self._fields = fields
        self._has_tar = has_tar
        self._here = os.getcwd()
        # `CaptionItem.order` of the pictures that are being added. `_last_file` is the file that
        # was given before them.
        self._order = 0
        self._last_file: str | None = None
        self._lines: dict[str, tuple[str, int]] = {}
        self.pictures: dict[str, CaptionItem] = {}
        self.problems: list[IdeficsError] = []
        self.notes: list[str] = []
        self._tars = TarLister(fields, self._takes_videos, self._problem, self.notes)

    def listing(
        self, arguments: Sequence[str], lists: Sequence[FileList], columns: tuple[str, ...]
    ) -> Listing:
        for argument in arguments:
            self.add(argument)
        for file_list in lists:
            self.add_list(file_list)
        pictures, problems = tuple(self.pictures.values()), tuple(self.problems)
        return Listing(pictures, problems, columns, tuple(self.notes))

    def add(self, argument: str) -> None:
        if is_remote(argument):
            self._add_remote(argument)
            return
        if is_uri(argument):
            self._begin_argument()
            key = _uri_key(argument)
            picture = CaptionItem(key, Attachment(argument), order=self._order)
            self.pictures.setdefault(key, picture)
            return
        path = os.path.expanduser(argument) if argument.startswith("~") else argument
        if not os.path.lexists(path) and (names := list(expanded(path))) != [path]:
            for name in names:
                self.add(name)
            return
        # A path that exists is no glob, even if its name looks like one.
        if not has_wildcard(path) or os.path.lexists(path):
            self._begin_argument(path)
            self._add_path(path, None)
        elif matches := sorted(self._glob(path), key=sort_key):
            root = fixed_part(path)
            self._begin_argument()
            for match in matches:
                self._add_path(match, root)
        else:
            hint = None if "**" in path else "`**` matches any depth; `-r FOLDER` takes all of it"
            self._problem(f"no picture matches `{path}`", hint)

    def _add_remote(self, argument: str) -> None:
        self._begin_argument()
        found = remote_pictures(
            argument, self.problems, recursive=self._recursive, takes_videos=self._takes_videos
        )
        for picture in found:
            self.pictures.setdefault(picture.key, replace(picture, order=self._order))

    def _glob(self, path: str) -> list[str]:
        return glob_paths(path, takes_videos=self._takes_videos, follow_links=self._follow_links)

    def add_list(self, file_list: FileList) -> None:
        base = base_folder(file_list)
        self._begin_argument()
        for entry in file_list.entries:
            self._order += 1
            columns = self._kept(entry.columns)
            if is_uri(entry.path):
                key = _uri_key(entry.path)
                picture = CaptionItem(key, Attachment(entry.path), "", columns, self._order)
                self._add_row(key, picture, (file_list.source, entry.line))
                continue
            name, path = place_of(entry.path, base, file_list)
            # A disk may be slow, so a path with the extension of a picture counts as a file, and
            # the disk is not asked.
            if not has_picture_name(path) and os.path.isdir(path):
                self._add_folder(path, base)
                continue
            if is_tar(path):
                self._add_tar(path, base)
                continue
            picture = self._picture(path, tree_path(name), columns)
            self._add_row(self._identity(path), picture, (file_list.source, entry.line))
        if not file_list.entries:
            self._problem(f"no pictures in {shown(file_list.source)}")

    def _begin_argument(self, path: str | None = None) -> None:
        """Set the order of the pictures of the next argument, which may be the file *path*.

        A shell makes a glob many arguments, in the order of their names. They have one number, so
        that a new file does not change the numbers of the files after it.
        """
        name = None if path is None or os.path.isdir(path) else sort_key(os.path.abspath(path))
        if name is None or self._last_file is None or name <= self._last_file:
            self._order = (self._order // _ARGUMENT + 1) * _ARGUMENT
        self._last_file = name

    def _kept(self, columns: Columns) -> Columns:
        if self._fields is None:
            return columns
        return tuple(column for column in columns if column[0] in self._fields)

    def _add_row(self, identity: str, picture: CaptionItem, line: tuple[str, int]) -> None:
        known = self.pictures.get(identity)
        if known is None or not known.columns:
            # If the picture was given before, but without columns, it gets the columns of this row.
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
        elif is_tar(path):
            self._add_tar(path, root)
        else:
            self._add_file(path, root)

    def _add_folder(self, folder: str, root: str) -> None:
        walk = Walk(folder, recursive=self._recursive, follow_links=self._follow_links)
        if walk.outside:
            more = f" and {len(walk.outside) - 1} more" if len(walk.outside) > 1 else ""
            self.notes.append(
                f"left out the link `{walk.outside[0]}`{more} to folders outside of `{folder}`;"
                " `--follow-links` includes them"
            )
        for path, reason in walk.unlisted:
            self._problem(f"cannot list folder `{path}`: {reason}")
        pictures = walk.pictures(self._takes_videos)
        for path in pictures:
            self._add_file(path, root)
        tars = sorted(filter(is_tar, walk.files), key=sort_key)
        if pictures and tars:
            self.notes.append(
                f"left out {counted(len(tars), 'archive')} in `{folder}`, such as `{tars[0]}`; "
                "name them to caption the pictures in them"
            )
            return
        for path in tars:
            self._add_tar(path, root)
        if not pictures and not tars and not walk.unlisted:
            helps = not self._recursive
            helps = helps and has_pictures_below(folder, self._takes_videos, is_other=is_tar)
            hint = "`-r` also looks into its sub-folders" if helps else None
            self._problem(f"no pictures in folder `{folder}`", hint)

    def _add_file(self, path: str, root: str | None) -> None:
        identity = self._identity(path)
        if identity not in self.pictures:
            relative = os.path.basename(path) if root is None else _below(path, root)
            self.pictures[identity] = self._picture(path, relative)

    def _add_tar(self, path: str, root: str | None) -> None:
        relative = os.path.basename(path) if root is None else _below(path, root)
        if not self._has_tar(path):
            self.pictures.setdefault(self._identity(path), self._picture(path, relative))
            return
        for each in self._tars.pictures(path):
            inner = f"{path}/{each.name}"
            picture = self._picture(inner, f"{relative}/{each.name}", each.columns)
            self.pictures.setdefault(self._identity(inner), replace(picture, span=each.span))

    def _picture(self, path: str, relative: str, columns: Columns = ()) -> CaptionItem:
        # The name of a file may look like a URI or be `-`: its key then starts with `./`.
        key = as_path(posix(path))
        return CaptionItem(key, Attachment(source_of(path)), relative, columns, self._order)

    def _identity(self, path: str) -> str:
        # Links are not resolved: a link is a separate picture, because the user looks for its name
        # in the output.
        if not is_tidy(path):
            return os.path.normcase(os.path.abspath(path))
        return os.path.normcase(os.path.join(self._here, path))

    def _problem(self, message: str, hint: str | None = None) -> None:
        self.problems.append(ImageError(message, kind="missing", hint=hint))


def tree_path(path: str) -> str:
    """Return the POSIX path of *path* in an output that keeps the tree of folders.

    The path cannot lead out of the tree: a root and a drive are removed, and `..` never leads above
    the start of the path.
    """
    if is_tidy(path) and not os.path.isabs(path) and not os.path.splitdrive(path)[0]:
        return path
    return inner_path(PurePath(path))


def inner_path(path: PurePath) -> str:
    """Return the result of `tree_path` for a path of any operating system."""
    parts: list[str] = []
    for part in path.parts[1 if path.anchor else 0 :]:
        if part != "..":
            parts.append(part)
        elif parts:
            parts.pop()
    return "/".join(parts)


def _below(path: str, root: str) -> str:
    """Return the POSIX path of *path* relative to *root*, the folder in which it was found."""
    prefix = root if not root or root.endswith(_SEPARATORS) else root + os.sep
    if not path.startswith(prefix):  # for ".", and for a glob that begins with "./"
        return tree_path(path)
    rest = path[len(prefix) :]
    return inner_path(PurePath(rest)) if not is_tidy(rest) else rest


def _file_name(text: str, base: str, file_list: FileList) -> str:
    """Return the file name that the entry *text* of a list stands for.

    The output of an earlier run can be the list. There, `escaped_name` may have written the name.
    """
    name = plain_name(text) if file_list.is_table else text
    return name if name == text or _exists(os.path.join(base, name)) else text


def place_of(text: str, base: str, file_list: FileList) -> tuple[str, str]:
    """Return the file name that the entry *text* of a list stands for, and its path.

    Args:
        text: The entry as written; no URI.
        base: The result of `base_folder`.
        file_list: The list.
    """
    name = _file_name(text, base, file_list)
    path = os.path.join(base, name)
    if name.startswith("~") and not os.path.lexists(path):
        path = os.path.expanduser(name)
    return name, path


def base_folder(file_list: FileList) -> str:
    """Return the folder to which the paths in *file_list* are relative; see `discover`."""
    folders = [file_list.folder, ""] if file_list.is_table else ["", file_list.folder]
    if folders[0] == folders[1]:
        return folders[0]
    for entry in file_list.entries:
        if not is_uri(entry.path):
            for folder in folders:
                if _exists(os.path.join(folder, _file_name(entry.path, folder, file_list))):
                    return folder
    return folders[0]


def _nothing(listing: Listing) -> ImageError:
    problems = [*listing.problems, *(no_such_file(p.attachment.source) for p in listing.pictures)]
    if not problems:
        return ImageError("nothing to caption", kind="missing", hint="name files or folders")
    more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
    return ImageError(f"{problems[0]}{more}", kind="missing", hint=problems[0].hint)


def _may_exist(source: str) -> bool:
    return is_uri(source) or _exists(source)


def _exists(path: str) -> bool:
    """Whether there is a file *path*, which may lie in an archive."""
    return os.path.lexists(path) or split_member(path) is not None


def _uri_key(uri: str) -> str:
    """Return the name of a picture in the output, which people share: it has no password."""
    # A data: URI contains the whole picture, so the key has its digest instead.
    if not uri.lower().startswith("data:"):
        return without_password(uri)
    digest = hashlib.sha256(uri.encode("utf-8", "surrogateescape")).hexdigest()
    return f"{uri.partition(',')[0][:64]},sha256-{digest[:16]}"
