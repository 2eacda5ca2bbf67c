"""What a journal knows of its pictures."""

from __future__ import annotations

import struct
from collections.abc import Iterator, MutableMapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class JournalEntry:
    """The last record of a picture.

    Attributes:
        offset: Offset of its line in the journal.
        is_failed: Whether the record has an error.
        sha256: Digest of the file, as in `CaptionRecord`.
        stamp: Stamp of the file, as in `CaptionRecord`.
        order: `CaptionItem.order` in the journal of a shard; else 0.
    """

    offset: int
    is_failed: bool
    sha256: str | None
    stamp: str | None
    order: int = 0


# Flags, offset, order, and the number of bytes of the digest. The digest and the stamp follow.
_HEAD = struct.Struct(">BqqI")
_FAILED, _HAS_DIGEST, _IS_HEXADECIMAL, _HAS_STAMP = 1, 2, 4, 8


class EntryTable(MutableMapping[str, JournalEntry]):
    """The entries of a journal by the names of the pictures, in the order of their first lines.

    Each entry is kept as bytes: 120 bytes, and not 310, so that millions of them fit into the
    memory.
    """

    def __init__(self) -> None:
        self._packed: dict[str, bytes] = {}

    def __getitem__(self, key: str) -> JournalEntry:
        return _unpack(self._packed[key])

    def __setitem__(self, key: str, entry: JournalEntry) -> None:
        self._packed[key] = _pack(entry)

    def __delitem__(self, key: str) -> None:
        del self._packed[key]

    def __contains__(self, key: object) -> bool:
        return key in self._packed

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)


def _pack(entry: JournalEntry) -> bytes:
    flags, digest = _FAILED * entry.is_failed, b""
    if entry.sha256 is not None:
        flags |= _HAS_DIGEST
        digest = _bytes_of(entry.sha256)
        if entry.sha256 == (short := _from_hexadecimal(entry.sha256)).hex():
            flags, digest = flags | _IS_HEXADECIMAL, short
    stamp = b""
    if entry.stamp is not None:
        flags, stamp = flags | _HAS_STAMP, _bytes_of(entry.stamp)
    return _HEAD.pack(flags, entry.offset, entry.order, len(digest)) + digest + stamp


def _unpack(data: bytes) -> JournalEntry:
    flags, offset, order, size = _HEAD.unpack_from(data)
    end = _HEAD.size + size
    digest = stamp = None
    if flags & _IS_HEXADECIMAL:
        digest = data[_HEAD.size : end].hex()
    elif flags & _HAS_DIGEST:
        digest = data[_HEAD.size : end].decode("utf-8", "surrogatepass")
    if flags & _HAS_STAMP:
        stamp = data[end:].decode("utf-8", "surrogatepass")
    return JournalEntry(offset, bool(flags & _FAILED), digest, stamp, order)


def _bytes_of(text: str) -> bytes:
    # JSON can have half of a surrogate pair.
    return text.encode("utf-8", "surrogatepass")


def _from_hexadecimal(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        return b""
