"""The list of the requests of a file. The rows stay in the file, however many there are."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from threading import Lock
from types import TracebackType
from typing import BinaryIO, Self, overload

from idefics_cli.caption.inputs.lists import where
from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.requests.row import decode_row, is_line
from idefics_cli.core.errors import InputError, PromptError, UsageError
from idefics_cli.core.sources import STDIN, is_address
from idefics_cli.core.types import Attachment

_BOM = b"\xef\xbb\xbf"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
_BLOCK = 1 << 20
# Maximum length of a row. A row may hold several pictures as data: URIs, each of up to 100 MB.
_MOST_ROW_BYTES = 2**28
_DIGEST_BYTES = 16
_NO_PICTURE = Attachment("")


class RequestList(Sequence[CaptionItem]):
    """The rows of a file of requests, in order; blank lines are left out. Safe in any thread.

    It is a context manager, which closes the file.

    The key of a row is the number of its line. A row takes 48 bytes of memory here.

    Args:
        source: Path of the file, or `-`.
        stdin: Stream that `-` reads. It is copied into a temporary file until it ends.
        folder: Folder to which the paths of pictures are relative; None is that of the file.

    Attributes:
        source: The argument of this name.

    Raises:
        InputError: If the file is missing or cannot be read.
        UsageError: If it is no file of JSON lines.
    """

    def __init__(
        self, source: str, stdin: BinaryIO | None = None, *, folder: str | None = None
    ) -> None:
        self.source = source
        self._folder = os.path.dirname(source) if folder is None else folder
        self._lock = Lock()
        self._numbers, self._offsets = array("Q"), array("Q")
        self._lengths, self._repeats = array("Q"), array("Q")
        self._digests = bytearray()
        self._same_ids: dict[int, int] = {}
        self._known: set[bytes] | None = None
        try:
            self._file = self._opened(stdin)
            with ExitStack() as stack:
                stack.callback(self._file.close)
                self._scan()
                stack.pop_all()
        except OSError as error:
            raise InputError(
                f"cannot read {self.name}: {error.strerror or error}",
                hint=self._hint(error),
            ) from error

    @property
    def name(self) -> str:
        """The words by which messages name the file."""
        return "the requests on stdin" if self.source == STDIN else f"`{self.source}`"

    @property
    def path(self) -> str | None:
        """Path of the file; None for stdin."""
        return None if self.source == STDIN else self.source

    def place(self, key: str) -> str:
        """Return the words by which messages name the row *key*."""
        return where(self.source, int(key))

    def same_id(self, key: str) -> str | None:
        """Return the key of the first row with the `custom_id` of the row *key*.

        None if the row *key* is the first one, or has no such field.
        """
        number = self._same_ids.get(int(key))
        return None if number is None else str(number)

    def identity(self, key: str) -> str:
        """Return what the row *key* is known by in a journal: the digest of its text.

        So a row is known again when others are added or removed before it. Of equal rows, all but
        the first also have a number.
        """
        index = self._index(key)
        repeat = self._repeats[index]
        return self._digest(index).hex() + (f"-{repeat + 1}" if repeat else "")

    def has_row(self, text: bytes) -> bool:
        """Return whether a row has *text*; white space around it does not count."""
        if self._known is None:
            size = _DIGEST_BYTES
            starts = range(0, len(self._digests), size)
            self._known = {bytes(self._digests[at : at + size]) for at in starts}
        return _digest_of(text.strip()) in self._known

    def text(self, key: str) -> bytes:
        """Return the text of the row *key*, without white space around it.

        Raises:
            PromptError: If the row is too long, or the file has changed since it was listed.
        """
        index = self._index(key)
        length = self._lengths[index]
        if length > _MOST_ROW_BYTES:
            raise PromptError(
                f"the row is longer than {_MOST_ROW_BYTES >> 20} MiB",
                hint="name pictures by their paths instead of `data:` URIs",
            )
        with self._lock:
            self._file.seek(self._offsets[index])
            text = self._file.read(length).strip()
        if _digest_of(text) != self._digest(index):
            raise PromptError(
                f"{self.name} has changed during the run", hint="run the same command again"
            )
        return text

    def resolve(self, path: str) -> str:
        """Return *path*, which a row names, from the current folder."""
        joined = os.path.join(self._folder, path)
        if path.startswith("~") and not os.path.lexists(joined):
            return os.path.expanduser(path)
        # The image loader would expand `~`, which is a part of the name here.
        return os.path.join(os.curdir, joined) if joined.startswith("~") else joined

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def __len__(self) -> int:
        return len(self._numbers)

    @overload
    def __getitem__(self, index: int) -> CaptionItem: ...
    @overload
    def __getitem__(self, index: slice) -> tuple[CaptionItem, ...]: ...
    def __getitem__(self, index: int | slice) -> CaptionItem | tuple[CaptionItem, ...]:
        if isinstance(index, slice):
            return tuple(CaptionItem(str(n), _NO_PICTURE) for n in self._numbers[index])
        return CaptionItem(str(self._numbers[index]), _NO_PICTURE)

    def __iter__(self) -> Iterator[CaptionItem]:
        return (CaptionItem(str(number), _NO_PICTURE) for number in self._numbers)

    def _hint(self, error: OSError) -> str | None:
        if is_address(self.source):
            return f"`curl {self.source} | idefics batch - -o answers.jsonl`"
        return "`-` reads requests from stdin" if isinstance(error, FileNotFoundError) else None

    def _index(self, key: str) -> int:
        return bisect_left(self._numbers, int(key))

    def _digest(self, index: int) -> bytes:
        return bytes(self._digests[index * _DIGEST_BYTES : (index + 1) * _DIGEST_BYTES])

    def _opened(self, stdin: BinaryIO | None) -> BinaryIO:
        if self.source == STDIN and stdin is not None:
            return _spooled(stdin, self.name)
        try:
            file = open(os.path.expanduser(self.source), "rb")  # noqa: SIM115 (closed by `close`)
        except ValueError as error:  # NUL in the name
            raise InputError(f"cannot read {self.name}: {error}") from error
        if stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            return file
        with file:  # a pipe, as from `<(command)`
            return _spooled(file, self.name)

    def _scan(self) -> None:
        """Find the rows, reading the file once, a block at a time."""
        seen: dict[bytes, int] = {}
        ids: dict[bytes, int] = {}
        for number, offset, length, text in _lines(self._file):
            if number == 1:
                self._check_first(offset)
            if not text:
                continue
            if (name := _custom_id(text)) and (first := ids.setdefault(name, number)) != number:
                self._same_ids[number] = first
            digest = _digest_of(text)
            self._numbers.append(number)
            self._offsets.append(offset)
            self._lengths.append(length)
            self._repeats.append(seen.get(digest, 0))
            self._digests += digest
            seen[digest] = seen.get(digest, 0) + 1

    def _check_first(self, offset: int) -> None:
        position = self._file.tell()
        self._file.seek(0)
        head = self._file.read(64)
        self._file.seek(position)
        if head.startswith(_UTF16) or b"\0" in head:
            raise InputError(
                f"{self.name} is not UTF-8 text",
                hint="requests are JSON lines, one object a line, in UTF-8",
            )
        if head[offset:].lstrip().startswith(b"["):
            raise UsageError(
                f"{self.name} holds a JSON array, not a request a line",
                hint="`jq -c '.[]' data.json >requests.jsonl` makes it JSON lines",
            )


def _digest_of(text: bytes) -> bytes:
    return hashlib.sha256(text).digest()[:_DIGEST_BYTES]


def _custom_id(text: bytes) -> bytes | None:
    """Return a digest of the `custom_id` of a row; None if the row has none, or is no request."""
    if b'"custom_id"' not in text:
        return None
    try:
        row = decode_row(text)
    except PromptError:
        return None
    name = row.get("custom_id")
    if not is_line(row) or not isinstance(name, str):
        return None
    return _digest_of(name.encode("utf-8", "surrogatepass"))


def _lines(file: BinaryIO) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield number, offset, length and text of each line of *file*, without white space around it.

    Of a line that is too long to be a row, the text is only the start.
    """
    number, offset = 0, 0
    while line := file.readline(_MOST_ROW_BYTES + 1):
        number += 1
        length = len(line)
        skipped = 0 if number > 1 or not line.startswith(_BOM) else len(_BOM)
        text = line[skipped:].strip()
        while not line.endswith(b"\n") and (line := file.readline(_BLOCK)):
            length += len(line)
        yield number, offset + skipped, length - skipped, text
        offset += length


def _spooled(stream: BinaryIO, name: str) -> BinaryIO:
    """Return a temporary file with all that comes from *stream*."""
    with ExitStack() as stack:
        file = stack.enter_context(tempfile.TemporaryFile())
        length = 0
        while block := stream.read(_BLOCK):
            # A device such as /dev/zero has no end and no line ends, so the length of a line is
            # limited.
            length = length + len(block) if b"\n" not in block else 0
            if length > _MOST_ROW_BYTES:
                raise UsageError(f"a line of {name} is longer than {_MOST_ROW_BYTES >> 20} MiB")
            file.write(block)
        file.seek(0)
        stack.pop_all()
    return file
