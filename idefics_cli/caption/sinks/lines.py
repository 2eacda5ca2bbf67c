"""The base class of the formats that write each record as a row of one file."""

from __future__ import annotations

import os
import stat
from abc import ABC, abstractmethod
from collections.abc import Set as AbstractSet
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self

from idefics_cli.caption.sinks.base import ByteStream, FileNameError, Target
from idefics_cli.caption.sinks.dataset import check_dataset, unreadable_part
from idefics_cli.caption.sinks.rows import file_name
from idefics_cli.core.errors import UsageError
from idefics_cli.core.files import cannot_write, check_place
from idefics_cli.core.types import CaptionRecord

_CHUNK = 64 * 1024


class LineSink(ABC):
    """Writes each record as a row, to stdout or to a file; see `Sink`."""

    existing_hint = (
        "`--overwrite` replaces it, `--existing append` adds all captions to it, `--existing skip` "
        "those that it lacks; or name another file"
    )
    """What helps if the file exists already."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._file: _File | None = None
        self._has_begun = False

    @abstractmethod
    def line(self, record: CaptionRecord, file_name: str) -> bytes | None:
        """Return the row of *record* with its line end; None if it gets no row."""

    def written(self, file_name: str) -> str:
        """Return *file_name* as it stands in a row."""
        return file_name

    def header(self) -> bytes:
        """Return the first line of a new output; empty if the format has no header."""
        return b""

    @abstractmethod
    def stored(self, path: Path) -> AbstractSet[str]:
        """Return the names of the pictures that have a caption in the file *path*.

        Raises:
            ValueError: If the file has another format or other columns.
        """

    def check_place(self) -> None:
        """Check that the file can be written; see `Sink.check_place`."""
        if self._target.path is not None:
            self._check_file(self._target.path)

    def __enter__(self) -> Self:
        target = self._target
        if target.path is not None:
            self._check_file(target.path)
            if target.is_dataset:
                keys = (picture.key for picture in target.pictures)
                check_dataset(self.run_path or target.path, keys, target.columns)
                self._check_stored(target.path)
            if target.resume_at is not None:
                self._file = _File.resumed(target.path, target.resume_at)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:  # this opens the file, so that a run without captions empties an older one
            self._write_bytes(b"")
        try:
            if self._file is not None:
                self._file.close()
        except OSError as failure:
            if kind is None:
                raise cannot_write(self._target.path, failure) from failure

    def completed(self) -> AbstractSet[str]:
        """Return the keys with a caption in the file, for `skip`; see `Sink.completed`."""
        path = self._target.path
        is_begun = self._target.resume_at is not None
        if path is None or is_begun or self._target.existing != "skip" or not path.is_file():
            return frozenset()
        names = self._stored(path)
        return {p.key for p in self._target.pictures if file_name(p.key, path) in names}

    @property
    def run_path(self) -> Path | None:
        """See `Sink.run_path`."""
        return self.rows_path

    @property
    def rows_path(self) -> Path | None:
        """See `Sink.rows_path`."""
        path = self._target.path
        return None if path is None or (path.exists() and not path.is_file()) else path

    def position(self) -> int | None:
        """Return the number of bytes that are written; see `Sink.position`."""
        if self._file is not None:
            return self._file.size
        path = self.rows_path
        if path is None:
            return None
        keeps = self._target.existing in ("append", "skip") and path.exists()
        return path.stat().st_size if keeps else 0

    def write(self, record: CaptionRecord) -> None:
        """Write the row of *record*; see `Sink.write`."""
        name = file_name(record.file_name, self._target.path)
        if self._target.is_dataset:
            if record.caption is None:
                return
            if reason := unreadable_part(name, self.written(name)):
                raise FileNameError(
                    f"no row for `{record.file_name}` in `{self.run_path}`: `datasets` cannot "
                    f"read a name {reason}",
                    hint="rename the picture, and run the same command again",
                )
        line = self.line(record, name)
        if line is not None:
            self._write_bytes(line)

    def finish(self) -> None:  # noqa: B027  # only some formats have something to do
        """Do nothing: the rows are the output. See `Sink.finish`."""

    def _check_file(self, path: Path) -> None:
        """Raise a UsageError unless *path* can be written as the target says."""
        target = self._target
        if target.existing == "prepend":
            raise UsageError(
                "`--existing prepend` is for files of one caption each", hint="use it with `-f txt`"
            )
        if path.is_dir():
            raise UsageError(
                f"cannot write `{path}`: it is a folder",
                hint="name a file in it, or take `-f txt` for one file per picture",
            )
        if path.is_file() and target.resume_at is None and target.existing == "error":
            raise UsageError(f"`{path}` exists already", hint=self.existing_hint)
        check_place(path)

    def _check_stored(self, path: Path) -> None:
        """Raise a UsageError if rows are to be added to a data set that cannot be read."""
        adds = self._target.existing in ("append", "skip") and self._target.resume_at is None
        if adds and path.is_file():
            names = (PurePosixPath(name) for name in sorted(self._stored(path)))
            if gone := [name for name in names if not (path.parent / name).is_file()]:
                more = f" and {len(gone) - 1} more" if len(gone) > 1 else ""
                raise UsageError(
                    f"cannot add to `{self.run_path}`: it has a row for `{gone[0]}`{more}, which "
                    "does not exist, and `datasets` cannot read it",
                    hint="remove these rows first; the command that wrote them removes them",
                )

    def _write_bytes(self, data: bytes) -> None:
        try:
            if self._target.path is None:
                self._print(self._target.stdout, data)
                return
            if self._file is None:
                self._file = self._opened(self._target.path)
            header = b"" if self._file.size else self.header()
            self._file.write(header + data)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise cannot_write(self._target.path, error) from error

    def _print(self, stdout: ByteStream, data: bytes) -> None:
        data = data if self._has_begun else self.header() + data
        self._has_begun = True
        if data:
            stdout.write(data)
            stdout.flush()

    def _opened(self, path: Path) -> _File:
        if self._target.existing in ("append", "skip") and path.is_file():
            self._stored(path)  # raises if the file has another format
            return _File.continued(path)
        # Devices and pipes always exist, and lose nothing when they are opened.
        may_exist = self._target.existing == "overwrite" or (path.exists() and not path.is_file())
        return _File.begun(path, may_exist=may_exist)

    def _stored(self, path: Path) -> AbstractSet[str]:
        try:
            return self.stored(path)
        except (ValueError, OSError, RecursionError) as error:
            reason = error.strerror if isinstance(error, OSError) else error
            raise UsageError(
                f"cannot continue `{path}`: {reason}", hint="`--existing overwrite` replaces it"
            ) from error


class _File:
    """An unbuffered file to which rows are appended; a row that fails halfway is cut off again.

    Attributes:
        size: Number of bytes in the file; None for a device or a pipe.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        is_file = stat.S_ISREG(os.fstat(descriptor).st_mode)
        self.size = os.lseek(descriptor, 0, os.SEEK_END) if is_file else None

    @classmethod
    def begun(cls, path: Path, *, may_exist: bool) -> _File:
        how = os.O_TRUNC if may_exist else os.O_EXCL
        return cls(_open(path, os.O_WRONLY | os.O_CREAT | how))

    @classmethod
    def continued(cls, path: Path) -> _File:
        file = cls(_open(path, os.O_RDWR))
        if file.size:
            os.lseek(file._descriptor, -1, os.SEEK_END)
            if os.read(file._descriptor, 1) != b"\n":
                file.write(b"\n")
        return file

    @classmethod
    def resumed(cls, path: Path, size: int) -> _File:
        """Open *path* and cut it to *size* bytes.

        Raises:
            IdeficsError: If the file cannot be opened.
            UsageError: If the file is shorter.
        """
        try:
            file = cls(_open(path, os.O_RDWR | (0 if size else os.O_CREAT)))
            if file.size is None or file.size < size:
                file.close()
                raise UsageError(
                    f"cannot continue `{path}`: rows are missing that the last run wrote",
                    hint="`--overwrite` begins anew",
                )
            file._cut(size)
        except OSError as error:
            raise cannot_write(path, error) from error
        return file

    def write(self, data: bytes) -> None:
        left = memoryview(data)
        try:
            while left:
                left = left[os.write(self._descriptor, left[:_CHUNK]) :]
        except BaseException:
            # If the write fails, for example on a full disk, the file may have a part of the row.
            # This part is removed.
            if self.size is not None:
                self._cut(self.size)
            raise
        if self.size is not None:
            self.size += len(data)

    def close(self) -> None:
        os.close(self._descriptor)

    def _cut(self, size: int) -> None:
        os.ftruncate(self._descriptor, size)
        self.size = os.lseek(self._descriptor, size, os.SEEK_SET)


def _open(path: Path, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0), 0o666)
