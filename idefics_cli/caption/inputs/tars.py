"""The pictures in tar archives, in the layouts of WebDataset and img2dataset.

The members of a sample have one name up to the first dot: `000123.jpg`, `000123.txt` with a
caption, and `000123.json` with an object.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

from idefics_cli.caption.inputs.lists import value_text
from idefics_cli.caption.item import Columns
from idefics_cli.caption.sinks.base import TEXT_EXTENSION
from idefics_cli.core.errors import ImageError, UsageError
from idefics_cli.core.json_text import parse_json
from idefics_cli.core.text import abbreviated
from idefics_cli.core.units import counted
from idefics_cli.images.folders import (
    TakesVideos,
    Walk,
    glob_paths,
    has_picture_name,
    has_video_name,
    has_wildcard,
    sort_key,
)
from idefics_cli.images.tars import (
    SUFFIX,
    TarIndex,
    TarMember,
    index_tar,
    is_tar,
    open_member,
    sample_key,
)

_RANGE = re.compile(r"\{(\d{1,9})\.\.(\d{1,9})\}")
_MOST_EXPANDED = 1_000_000
_MOST_TEXT_BYTES = 2**20
CAPTION = "caption"
"""The column with the text of `.txt` members."""


@dataclass(frozen=True, slots=True)
class TarPicture:
    """A picture in an archive.

    Attributes:
        name: Its name in the archive.
        columns: The values of its sample, for the prompt.
        span: Offset and size of its bytes; None for a link.
    """

    name: str
    columns: Columns
    span: tuple[int, int] | None


class TarLister:
    """Lists the pictures of archives.

    Args:
        fields: The columns that prompts use; others are not read. None reads all.
        takes_videos: See `TakesVideos`.
        on_problem: Called with each fault of an archive, and with its hint.
        notes: Receives what the user may not expect.
    """

    def __init__(
        self,
        fields: Collection[str] | None,
        takes_videos: TakesVideos,
        on_problem: Callable[[str, str | None], object],
        notes: list[str],
    ) -> None:
        self._fields = fields
        self._takes_videos = takes_videos
        self._on_problem = on_problem
        self._notes = notes

    def pictures(self, path: str) -> list[TarPicture]:
        """Return the pictures in the archive *path*, sorted by name; none if it cannot be read."""
        try:
            index = index_tar(path)
        except ImageError as error:
            self._on_problem(str(error), error.hint)
            return []
        names = sorted(filter(self._is_for_model, index.members), key=sort_key)
        self._tell(path, index)
        if not names and not index.faults:
            self._on_problem(f"no pictures in the archive `{path}`", None)
        sidecars = {} if self._fields == frozenset() else _sidecars(index)
        return [self._picture(path, index.members[name], sidecars) for name in names]

    def _picture(
        self, path: str, member: TarMember, sidecars: Mapping[str, Sequence[TarMember]]
    ) -> TarPicture:
        columns: dict[str, str] = {}
        for each in sidecars.get(sample_key(member.name), ()):
            columns |= _columns(path, each)
        kept = ((n, v) for n, v in columns.items() if self._fields is None or n in self._fields)
        span = None if member.is_link else (member.offset, member.size)
        return TarPicture(member.name, tuple(kept), span)

    def _is_for_model(self, name: str) -> bool:
        if name.startswith(".") or "/." in name:  # `._a.jpg` of macOS has no picture
            return False
        return has_picture_name(name) or (has_video_name(name) and self._takes_videos())

    def _tell(self, path: str, index: TarIndex) -> None:
        for fault in index.faults:
            self._on_problem(f"`{path}` {fault}", "copy or download the archive again")
        lost = [(name, reason) for name, reason in index.unreadable if self._is_for_model(name)]
        if lost:
            name, reason = lost[0]
            more = ""
            if len(lost) > 1:
                more = f"; {counted(len(lost) - 1, 'other picture')} in it cannot be read either"
            self._on_problem(f"cannot read `{abbreviated(name)}` in `{path}`: {reason}{more}", None)
        if unnamed := list(filter(_has_only_extension, index.members)):
            self._notes.append(
                f"left out `{abbreviated(unnamed[0])}` in `{path}`: it has no name before the dot, "
                f"by which a sample is known{_and_others(len(unnamed) - 1)}"
            )
        if index.repeated:
            self._notes.append(
                f"{counted(index.repeated, 'name')} in `{path}` "
                f"{'is' if index.repeated == 1 else 'are'} there again; the last member counts"
            )
        stem = path[: -len(SUFFIX)]
        if os.path.exists(f"{stem}.parquet") and not os.path.exists(f"{stem}_stats.json"):
            self._notes.append(
                f"`{path}` has no `{os.path.basename(stem)}_stats.json`: img2dataset may not be "
                "done with it"
            )


def _has_only_extension(name: str) -> bool:
    """Whether a member is named like `.png`: it has the extension of a picture, and no name."""
    base = name.rpartition("/")[2]
    return base.rfind(".") == 0 and has_picture_name(f"a{base}")


def _and_others(count: int) -> str:
    return f" (and {counted(count, 'other member')} like it)" if count else ""


def expanded(argument: str) -> Iterator[str]:
    """Yield the names for which *argument* stands: `{000..002}.tar` for three archives.

    Raises:
        UsageError: If there are more than a million.
    """
    match = _RANGE.search(argument)
    if match is None:
        yield argument
        return
    first, last = int(match[1]), int(match[2])
    if abs(last - first) >= _MOST_EXPANDED:
        raise UsageError(f"`{argument}` stands for more than {_MOST_EXPANDED:,} names")
    width = max(map(len, match.groups())) if "0" in (match[1][0], match[2][0]) else 0
    step = 1 if last >= first else -1
    for number in range(first, last + step, step):
        name = f"{argument[: match.start()]}{number:0{width}}{argument[match.end() :]}"
        yield from expanded(name)


def sample_columns(arguments: Sequence[str], *, recursive: bool) -> tuple[str, ...]:
    """Return the names of the columns of the first sample in the archives that are named."""
    names: dict[str, None] = {}
    for argument in arguments:
        path = _first_tar(os.path.expanduser(argument), recursive=recursive)
        if path is None:
            continue
        try:
            sidecars = _sidecars(index_tar(path))
        except ImageError:  # the lister says why
            continue
        for member in next(iter(sidecars.values()), ()):
            names |= dict.fromkeys(_columns(path, member, keeps_null=True))
    return tuple(names)


def _first_tar(argument: str, *, recursive: bool) -> str | None:
    if os.path.isdir(argument):
        files = Walk(argument, recursive=recursive).files
    elif has_wildcard(argument) and not os.path.lexists(argument):
        files = glob_paths(argument, takes_videos=lambda: False)
    else:
        files = [next(expanded(argument))]
    return next(filter(is_tar, sorted(files, key=sort_key)), None)


def _sidecars(index: TarIndex) -> dict[str, list[TarMember]]:
    """Return the members with columns of each sample; `.txt` comes last, so that it counts."""
    found: dict[str, list[TarMember]] = {}
    for end in (".json", TEXT_EXTENSION):
        for name, member in index.members.items():
            if name.endswith(end) and name == f"{sample_key(name)}{end}":
                found.setdefault(sample_key(name), []).append(member)
    return found


def _columns(path: str, member: TarMember, *, keeps_null: bool = False) -> dict[str, str]:
    """Return the columns in a member; none if it is too large, or not what its name says."""
    if member.size > _MOST_TEXT_BYTES:
        return {}
    span = None if member.is_link else (member.offset, member.size)
    try:
        with open_member(f"{path}/{member.name}", span) as file:
            text = file.read().decode("utf-8-sig")
        if member.name.endswith(TEXT_EXTENSION):
            return {CAPTION: text.strip()}
        fields = parse_json(text.encode())
    except (ImageError, OSError, ValueError, RecursionError):
        return {}
    if not isinstance(fields, dict):
        return {}
    return {
        name: "" if value is None else value_text(value)
        for name, value in fields.items()
        if value is not None or keeps_null
    }
