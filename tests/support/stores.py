"""A store in memory, in place of those that need a network."""

from __future__ import annotations

from threading import Barrier
from typing import Any, ClassVar

from fsspec.implementations.memory import MemoryFileSystem


class Store(MemoryFileSystem):  # type: ignore[misc] # fsspec has no types
    """A store in memory, whose reads can fail.

    Attributes:
        errors: Raised by the next reads and listings, one each.
        reads: The ranges that were read.
        fails_each: The number of reads of which one fails; 0 for none.
        failed: The paths of these reads.
        readers: The file system of each read.
        meeting: Where the reads wait for each other; None for no wait.
    """

    protocol = ("s3", "sftp")
    store: ClassVar[dict[str, Any]] = {}
    pseudo_dirs: ClassVar[list[str]] = [""]
    errors: ClassVar[list[BaseException]] = []
    reads: ClassVar[list[tuple[int, int]]] = []
    fails_each: ClassVar[int] = 0
    failed: ClassVar[list[str]] = []
    readers: ClassVar[list[object]] = []
    meeting: ClassVar[Barrier | None] = None

    @classmethod
    def _strip_protocol(cls, path: str) -> str:
        path = path.partition("://")[2] if "://" in path else path
        return "/" + path.rpartition("@")[2].strip("/") if path.strip("/") else ""

    def _fail(self) -> None:
        if self.errors:
            raise self.errors.pop(0)

    def cat_file(self, path: str, start: int = 0, end: int = 0, **more: Any) -> bytes:
        self._fail()
        self.reads.append((start, end))
        self.readers.append(self)
        if self.meeting is not None:
            self.meeting.wait(30)
        if self.fails_each and len(self.reads) % self.fails_each == 0:
            self.failed.append(path)
            raise SlowDownError(503)
        return bytes(super().cat_file(path, start=start, end=end))

    def ls(self, path: str, detail: bool = True, **more: Any) -> Any:
        self._fail()
        return super().ls(path, detail=detail)


class SlowDownError(Exception):
    """An error of a library, which quotes what must stay secret."""

    def __init__(self, status: int) -> None:
        super().__init__("GET https://user:hunter2@store/?X-Amz-Signature=hunter2")
        self.response = {"ResponseMetadata": {"HTTPStatusCode": status}}
