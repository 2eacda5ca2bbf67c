"""What a journal knows of one picture."""

from __future__ import annotations

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
