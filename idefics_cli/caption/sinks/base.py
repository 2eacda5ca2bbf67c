"""The protocol of what stores caption records, and what formats of one line each share."""

from __future__ import annotations

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self

from idefics_cli.core.errors import IdeficsError, UsageError
from idefics_cli.core.types import CaptionRecord

# Characters that end a line or a field, move the cursor, start an escape sequence or reorder a
# line: category Cc, the line and paragraph separators, and the bidirectional controls.
UNSAFE = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")


class ByteStream(Protocol):
    """What bytes can be written to, as `sys.stdout.buffer`."""

    def write(self, data: bytes, /) -> object:
        """Take all of *data*."""
        ...

    def flush(self) -> object:
        """Pass on what was written."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """Where a sink writes.

    Attributes:
        stdout: Takes the records when there is no *path*.
        path: The file to write.
        overwrite: Replace the file if it is there.
    """

    stdout: ByteStream
    path: Path | None = None
    overwrite: bool = False


class Sink(Protocol):
    """Where caption records go. One writer, in the driver process; never called from a worker."""

    def __enter__(self) -> Self:
        """Check that the target can be written; it is left alone until the first record.

        Raises:
            UsageError: If it is there already, or cannot be.
        """
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def completed(self) -> AbstractSet[str]:
        """Return the keys already stored without error; none, for a sink that starts anew."""
        ...

    def write(self, record: CaptionRecord) -> None:
        """Store *record* and flush.

        Raises:
            IdeficsError: If the target cannot be written; what was written stays.
            BrokenPipeError: If nobody reads stdout any more.
        """
        ...


class LineSink(ABC):
    """Writes each record as one line, to stdout or to a new file; see `Sink`."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self._file: BinaryIO | None = None

    @abstractmethod
    def line(self, record: CaptionRecord) -> bytes | None:
        """Return the line for *record*, without newlines, or None if it gets none."""

    def __enter__(self) -> Self:
        if self._target.path is not None:
            _check(self._target.path, overwrite=self._target.overwrite)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if kind is None:
            self._stream()  # a run without captions leaves an empty file, not an older one
        try:
            if self._file is not None:
                self._file.close()
        except OSError as failure:  # the disk is still full; told already, if there is an error
            if kind is None:
                raise self._failure(failure) from failure

    def completed(self) -> AbstractSet[str]:
        """Return no key; see `Sink.completed`."""
        return frozenset()

    def write(self, record: CaptionRecord) -> None:
        """Write the line of *record*; see `Sink.write`."""
        line = self.line(record)
        if line is None:
            return
        stream = self._stream()
        try:
            stream.write(line + b"\n")
            stream.flush()
        except BrokenPipeError:
            raise
        except OSError as error:
            raise self._failure(error) from error

    def _stream(self) -> ByteStream:
        path = self._target.path
        if path is None:
            return self._target.stdout
        if self._file is None:
            # A device or pipe is there always; only a file can be lost by opening it.
            may_exist = self._target.overwrite or (path.exists() and not path.is_file())
            try:
                self._file = path.open("wb" if may_exist else "xb")
            except OSError as error:
                raise self._failure(error) from error
        return self._file

    def _failure(self, error: OSError) -> IdeficsError:
        name = f"`{self._target.path}`" if self._target.path else "stdout"
        return IdeficsError(f"cannot write {name}: {error.strerror or error}")


def _check(path: Path, *, overwrite: bool) -> None:
    if path.is_dir():
        raise UsageError(f"cannot write `{path}`: it is a folder", hint="name a file in it")
    if path.is_file() and not overwrite:
        raise UsageError(f"`{path}` exists already", hint="`--overwrite` replaces it")
    if not path.parent.is_dir():
        raise UsageError(f"cannot write `{path}`: no folder `{path.parent}`")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise UsageError(f"cannot write `{path}`: permission denied")
