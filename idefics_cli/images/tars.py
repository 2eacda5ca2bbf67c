"""Tar archives with pictures: the list of their members, and a stream of one of them.

The path of a member leads through the archive, as in `data/00000.tar/000000123.jpg`.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import stat
import tarfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import PurePosixPath
from typing import BinaryIO, cast

from idefics_cli.core.errors import ImageError
from idefics_cli.core.files import stamp_of_status
from idefics_cli.core.sources import MOST_FILE_BYTES, describe_source
from idefics_cli.core.text import abbreviated
from idefics_cli.core.units import counted, format_size

SUFFIX = ".tar"
# The headers before one member, such as PAX records, are at most this long.
_MOST_HEADER_BYTES = 2**20
_NAME_BYTES = 100  # the name field of a header
_END_BYTES = 64 * 1024
_SEPARATORS = re.escape("".join(filter(None, ("/", os.sep, os.altsep))))
_ARCHIVE = re.compile(r"(?i)\.(?:tar(?:\.(?:gz|bz2|xz|zst))?|tgz|tbz2?|txz|tzst)\Z")
_INTO = re.compile(rf"(?i)\{SUFFIX}[{_SEPARATORS}](?=.)", re.DOTALL)
_COMPRESSED = {
    b"\x1f\x8b": "gunzip",
    b"BZh": "bunzip2",
    b"\xfd7zXZ\x00": "unxz",
    b"\x28\xb5\x2f\xfd": "unzstd",
}


@dataclass(frozen=True, slots=True)
class TarMember:
    """A regular file in an archive.

    Attributes:
        name: Tidy POSIX path in the archive; it never leads out of it.
        offset: Offset of its bytes in the archive.
        size: Number of its bytes.
        is_link: Whether it is a link to another member, whose bytes these are.
    """

    name: str
    offset: int
    size: int
    is_link: bool = False


@dataclass(frozen=True, slots=True)
class TarIndex:
    """The members of an archive.

    Attributes:
        members: Members by name, in the order of the archive. If a name occurs several times, the
            last one counts, as for `tar -x`.
        faults: What is wrong with the archive, as ends of sentences that begin with its name.
        unreadable: Names of members whose bytes cannot be read, each with the reason.
        repeated: Number of members that a later one of the same name replaces.
    """

    members: dict[str, TarMember]
    faults: tuple[str, ...] = ()
    unreadable: tuple[tuple[str, str], ...] = ()
    repeated: int = 0


def is_tar(path: str) -> bool:
    """Whether *path* is a regular file with the extension of an archive."""
    return path.lower().endswith(SUFFIX) and os.path.isfile(path)


def without_archive_suffix(name: str) -> str:
    """Return *name* without the extension of an archive, also a compressed one."""
    return _ARCHIVE.sub("", name) or name


def split_member(path: str) -> tuple[str, str] | None:
    """Return the archive and the name of the member that *path* leads to; None if it does not."""
    for match in _INTO.finditer(path):
        tar = path[: match.end() - 1]
        if os.path.isfile(tar):
            return tar, path[match.end() :]
    return None


def tar_part(path: str) -> str | None:
    """Return the part of *path* that names an archive, by its text alone; None without one.

    A folder may have such a name, too.
    """
    match = _INTO.search(path)
    return None if match is None else path[: match.end() - 1]


def sample_key(name: str) -> str:
    """Return what the names of all members of a sample begin with: up to the first dot."""
    folder, slash, base = name.rpartition("/")
    return f"{folder}{slash}{base.partition('.')[0]}"


def index_tar(path: str) -> TarIndex:
    """Return the members of the archive *path*. Only headers are read.

    Raises:
        ImageError: If the file cannot be read, or is no archive.
    """
    with _opened(path) as file:
        _check_plain(file, path)
        return _index(file, path)


def open_member(path: str, span: tuple[int, int] | None = None) -> BinaryIO:
    """Return the bytes of a member as a seekable stream; the caller closes it.

    Args:
        path: Path that leads into an archive.
        span: Offset and size of the member, if the caller knows them; not those of a link.

    Raises:
        ImageError: If there is no such member, or the archive changed since *span* was found.
    """
    found = split_member(path)
    if found is None:
        raise ImageError(
            f"no such archive: `{describe_source(tar_part(path) or path)}`", kind="missing"
        )
    tar, name = found
    file = _opened(tar)
    try:
        return cast(BinaryIO, io.BufferedReader(_Part(file, *_checked_span(file, tar, name, span))))
    except BaseException:
        file.close()
        raise


def _checked_span(
    file: BinaryIO, tar: str, name: str, span: tuple[int, int] | None
) -> tuple[int, int]:
    """Return offset and size of the member *name*; see `open_member`."""
    shown = describe_source(tar)
    if span is None:
        member = _known(os.path.abspath(tar), _stamp(file)).members.get(_tidy(name) or "")
        if member is None:
            raise ImageError(f"`{shown}` has no member `{abbreviated(name)}`", kind="missing")
        span = member.offset, member.size
    elif not _begins(file, span, name):
        raise ImageError(
            f"`{describe_source(f'{tar}/{name}')}` is not where it was: its archive has changed",
            kind="truncated",
            hint="run the same command again when the archive is whole",
        )
    if span[1] > MOST_FILE_BYTES:
        raise ImageError(
            f"`{abbreviated(name)}` in `{shown}` is larger than {format_size(MOST_FILE_BYTES)}",
            kind="too_large",
        )
    if sum(span) > os.fstat(file.fileno()).st_size:
        raise ImageError(
            f"`{shown}` ends in the middle of `{abbreviated(name)}`",
            kind="truncated",
            hint="copy or download the archive again",
        )
    return span


class _Part(io.RawIOBase):
    """A part of an open file, which it closes."""

    def __init__(self, file: BinaryIO, start: int, size: int) -> None:
        super().__init__()
        self._file = file
        self._start = start
        self._size = size
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._size}[whence]
        if base + offset < 0:
            raise ValueError("negative position")
        self._position = base + offset
        return self._position

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override] # any buffer
        count = max(0, min(len(buffer), self._size - self._position))
        data = _read_at(self._file, self._start + self._position, count)
        buffer[: len(data)] = data
        self._position += len(data)
        return len(data)

    def close(self) -> None:
        self._file.close()
        super().close()


def _read_at(file: BinaryIO, offset: int, count: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(file.fileno(), count, offset)
    file.seek(offset)  # Windows
    return file.read(count)


def _opened(path: str) -> BinaryIO:
    # Opening a pipe must not wait for its writer.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    try:
        file = os.fdopen(os.open(path, flags), "rb")
    except (OSError, ValueError) as error:  # ValueError: NUL in the name
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ImageError(
            f"cannot read `{describe_source(path)}`: {(reason or '').lower()}", kind="missing"
        ) from error
    if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        return file
    file.close()
    raise ImageError(f"`{describe_source(path)}` is not a regular file", kind="not_an_image")


def _stamp(file: BinaryIO) -> str:
    return stamp_of_status(os.fstat(file.fileno()))


@lru_cache(maxsize=16)
def _known(path: str, stamp: str) -> TarIndex:
    """Return the index of an archive; *stamp* makes sure that it is of the present file."""
    return index_tar(path)


def _check_plain(file: BinaryIO, path: str) -> None:
    head = _read_at(file, 0, 512)
    for magic, program in _COMPRESSED.items():
        if head.startswith(magic):
            raise ImageError(
                f"`{describe_source(path)}` is compressed: its members cannot be read one by one",
                kind="unsupported",
                # The program itself would refuse the extension `.tar`.
                hint=f"`{program} <{shlex.quote(describe_source(path))} >plain.tar` unpacks it",
            )


class _Headers:
    """The headers of an archive. A damaged or malicious header cannot ask for much memory."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file

    def read(self, size: int) -> bytes:
        if not 0 <= size <= _MOST_HEADER_BYTES:
            raise tarfile.ReadError("a header is too large")
        return self._file.read(size)

    def seek(self, offset: int) -> int:
        return self._file.seek(offset)

    def tell(self) -> int:
        return self._file.tell()


def _headers(file: BinaryIO, faults: list[str]) -> Iterator[tarfile.TarInfo]:
    """Yield the headers of the members; add to *faults* why there are no more of them."""
    size = os.fstat(file.fileno()).st_size
    end = count = 0
    try:
        archive = tarfile.TarFile(fileobj=cast(BinaryIO, _Headers(file)), mode="r")
        while end < size:
            info = archive.next()
            vars(archive)["members"].clear()  # else all headers stay in memory
            if info is None:
                break
            if archive.offset <= end:
                raise tarfile.ReadError("a header has a wrong size")
            end, count = archive.offset, count + 1
            yield info
    # tarfile lets errors of many types through for damaged headers.
    except (tarfile.TarError, ValueError, OverflowError, RecursionError, IndexError) as error:
        if count == 0:
            reason = "it is empty" if size == 0 else str(error)
            faults.append(f"is not a tar archive ({abbreviated(reason, 60)})")
            return
        faults.append(_damage(file, end, size, count))
        return
    rest = _read_at(file, end, _END_BYTES)
    if not rest and end <= size:
        faults.append("has no mark at its end: perhaps it is not whole")
    elif any(rest[: tarfile.BLOCKSIZE]) or end > size:
        faults.append(_damage(file, end, size, count))
    elif any(rest):
        faults.append(
            "has more after its end mark, which is not read: perhaps it was joined from several"
        )


def _damage(file: BinaryIO, end: int, size: int, count: int) -> str:
    after = f"after {counted(count, 'member')}"
    if size - end < tarfile.BLOCKSIZE:
        return f"ends in the middle of a member, {after}"
    return f"is damaged at byte {end}, {after}: what follows cannot be read"


def _index(file: BinaryIO, path: str) -> TarIndex:
    size = os.fstat(file.fileno()).st_size
    members: dict[str, TarMember] = {}
    links: dict[str, str] = {}
    unreadable: dict[str, str] = {}
    faults: list[str] = []
    repeated = 0
    for info in _headers(file, faults):
        name = _tidy(info.name)
        if name is None or info.isdir():
            continue
        repeated += members.pop(name, None) is not None
        unreadable.pop(name, None)
        links.pop(name, None)
        if info.issym() or info.islnk():
            folder = PurePosixPath(name).parent if info.issym() else PurePosixPath()
            links[name] = _tidy(str(folder / info.linkname)) or ""
        elif not info.isreg():
            unreadable[name] = "it is no file"
        elif info.issparse():
            unreadable[name] = "it is stored as a sparse file"
        elif info.offset_data + info.size > size:
            unreadable[name] = "the archive ends in the middle of it"
        else:
            members[name] = TarMember(name, info.offset_data, info.size)
    if not members and faults and faults[0].startswith("is not"):
        raise ImageError(f"`{describe_source(path)}` {faults[0]}", kind="not_an_image")
    for name, target in links.items():
        if (found := members.get(target)) is not None:
            members[name] = TarMember(name, found.offset, found.size, is_link=True)
        else:
            unreadable[name] = "it is a link to what is not in the archive"
    return TarIndex(members, tuple(faults), tuple(unreadable.items()), repeated)


def _tidy(name: str) -> str | None:
    """Return the name of a member as a path that stays in the archive; None if it has none."""
    parts = [part for part in name.split("/") if part not in ("", ".", "..")]
    return "/".join(parts) if parts and "\0" not in name else None


def _begins(file: BinaryIO, span: tuple[int, int], name: str) -> bool:
    """Whether the member *name* begins at *span*: its header stands in the block before it."""
    offset, size = span
    block = _read_at(file, offset - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE)
    try:
        info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.TarError:
        return False
    # A longer name, or one with other letters, stands in a header before this one.
    is_short = name.isascii() and len(name) < _NAME_BYTES
    return info.size == size and (not is_short or _tidy(info.name) == name)
