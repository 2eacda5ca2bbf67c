"""The journal of a run: a file with a line for each picture.

The journal holds every record in full. So the output can be cut back to its last whole row, or
written anew, however the run ended. It has JSON lines, each with a checksum as its last field, in
the order of the events:

    {"journal": 2, "settings": {...}, "base": 0, "skipped": []}
                                                    the first line: the settings of the run, the
                                                    size of the output before its first row, and
                                                    the pictures that had a caption before
    {"key": ..., "record": {...}, "end": 482}       a picture, and the output's size after its row
    {"key": ..., "record": {...}, "waits": true}    a picture whose row is not written yet, because
                                                    a picture before it is not done
    {"written": [offset, ...], "end": 963}          the rows of the records at these offsets are
                                                    written, in this order
    {"rewriting": true}                             the rows of the output are uncertain, until
    {"rows": [offset, ...], "end": 963}             it has the records at these offsets, in order
    {"closed": "963-170...", "complete": true}      size and time of the output after the run
    {"commit": "0123abc..."}                        the commit of the weights
    {"fits": 4, "where": "cuda"}                    more requests at a time ran out of memory

The journal of a shard also has "shard" in its first line: its number, and what `idefics collect`
must know to write rows; "order" in the lines of pictures (`CaptionItem.order`); and "listed" in the
line of the end: the number of pictures of all shards.

Each line also has "at", its offset: so a line that was lost as a whole is noticed by the next one.

If a run ends suddenly, only the last line can be torn, and it then has no newline. It is cut off.
Any other line that is not valid means damage. Such a journal is refused and not changed, because
cutting it there would remove finished captions. Version 1 had no checksums.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from pathlib import Path
from typing import Any

from idefics_cli.caption.resume.entry import EntryTable, JournalEntry
from idefics_cli.caption.resume.journal_errors import (
    DamagedJournalError,
    JournalVersionError,
    failure,
    other_file,
)
from idefics_cli.caption.resume.journal_lines import (
    decode_line,
    decode_record,
    encode_line,
    encode_record,
    number,
    optional_number,
    text,
    texts,
)
from idefics_cli.core.append_log import AppendLog, read_lines
from idefics_cli.core.closing import Closing
from idefics_cli.core.errors import UsageError
from idefics_cli.core.sources import without_password
from idefics_cli.core.types import CaptionRecord

_VERSION = 2
_READABLE_VERSIONS = (1, 2)
_FIRST = b'{"journal":'
Settings = Mapping[str, object]


class RunJournal(Closing):
    """The journal of a run. The file is locked until `close`, and a torn last line is cut off.

    Args:
        path: Path of the journal; a missing file is created.
        takes_damaged: Whether a damaged journal, or one of another version, counts as one whose run
            has not begun. Its file stays as it is until `begin_run`.

    Attributes:
        settings: Settings of the run; None before it has begun.
        entries: Key of a picture -> its last record.
        rows: Keys of the records that the output has, in order.
        base: Size of the output before its first row, in bytes.
        skipped: Keys of the pictures that had a caption before the run.
        end: Size of the output after its last row, in bytes; None if its rows are uncertain.
        closed: Size and time of the output after the last run; None if the last run was killed.
        is_complete: Whether the last run left nothing to do.
        commit: Commit of the weights, if it is known.
        fits: Device and batch size -> number of requests at a time that fitted into the memory.
        shard: What the first line says about the shard; None if the run has no shards.
        listed: Number of pictures of all shards when the last run ended; 0 if it is not known.
        damage: What is wrong with a journal that *takes_damaged* let pass; else None.

    Raises:
        UsageError: If another process has the journal open, or the file is another one.
        IdeficsError: If the journal cannot be read or written, or is damaged.
    """

    settings: Settings | None
    entries: EntryTable
    rows: dict[str, None]
    skipped: AbstractSet[str]
    base: int
    end: int | None
    closed: str | None
    is_complete: bool
    commit: str | None
    fits: dict[str, int]
    shard: Mapping[str, object] | None
    listed: int

    def __init__(self, path: Path, *, takes_damaged: bool = False) -> None:
        self.path = path
        self.damage: str | None = None
        self._reset()
        self._log = self._open()
        try:
            self._load()
        except (DamagedJournalError, JournalVersionError) as error:
            if not takes_damaged:
                self._log.close()
                raise
            self._reset()
            self._size = self.path.stat().st_size
            self.damage = error.reason
        except BaseException:
            self._log.close()
            raise

    def begin_run(
        self,
        settings: Settings,
        *,
        base: int = 0,
        skipped: Iterable[str] = (),
        shard: Mapping[str, object] | None = None,
    ) -> None:
        """Empty the journal, and begin a run; the arguments are the attributes of these names."""
        self._reset()
        self._cut(0)
        line = {"journal": _VERSION, "settings": settings, "base": base, "skipped": sorted(skipped)}
        if shard is not None:
            line["shard"] = shard
        self._append(line)
        self._apply_header(line)

    def add(
        self, key: str, record: CaptionRecord, *, end: int | None, order: int | None = None
    ) -> None:
        """Add the record of a picture.

        Args:
            key: The picture.
            record: Its record.
            end: Size of the output after its row.
            order: `CaptionItem.order`; None if the run has no shards.
        """
        self._add(key, record, {"end": end}, order)
        self._add_row(key, end)

    def add_waiting(self, key: str, record: CaptionRecord, *, order: int | None = None) -> int:
        """Add the record of a picture whose row is not written yet; see `add`.

        Returns:
            The offset of the line, for `note_row`.
        """
        offset = self._add(key, record, {"waits": True}, order)
        self._set_end(self.end)
        return offset

    def note_row(self, key: str, offset: int, *, end: int | None) -> None:
        """Note that the row of the record of *key* at *offset* is written; see `add_waiting`.

        The note comes into the journal with its next line. After a sudden end before that line,
        the row is written again from the record.
        """
        self._written.append(offset)
        self._add_row(key, end)

    def begin_rewriting(self) -> None:
        """Note that the rows of the output are uncertain until `end_rewriting` is called."""
        self._append({"rewriting": True})
        self._set_end(None)

    def end_rewriting(self, keys: Sequence[str], *, end: int | None) -> None:
        """Note that the output now has the last records of *keys*, in this order."""
        self._append({"rows": [self.entries[key].offset for key in keys], "end": end})
        self.rows, self.end = dict.fromkeys(keys), end

    def close_output(self, stamp: str | None, *, is_complete: bool, listed: int = 0) -> None:
        """Note *stamp*, the size and time of the output at the end of a run, and the others."""
        more = {"listed": listed} if self.shard is not None else {}
        self._append({"closed": stamp, "complete": is_complete, **more})
        self.closed, self.is_complete, self.listed = stamp, is_complete, listed

    def note_commit(self, commit: str) -> None:
        """Note the commit of the weights."""
        self._append({"commit": commit})
        self.commit = commit

    def note_fit(self, requests: int, where: str) -> None:
        """Note how many requests at a time fit into the memory."""
        self._append({"fits": requests, "where": where})
        self.fits[where] = requests

    def records(self, keys: Iterable[str]) -> Iterator[CaptionRecord]:
        """Yield the last record of each of *keys*."""
        with self.path.open("rb") as file:
            for key in keys:
                file.seek(self.entries[key].offset)
                fields = decode_line(file.readline(), needs_checksum=False)
                yield decode_record(fields["record"])

    def discard(self) -> None:
        """Empty the journal, so that `close` removes the file."""
        self._reset()
        self._cut(0)

    def close(self) -> None:
        """Unlock the journal; idempotent. An empty journal is removed."""
        if self._log.is_closed:
            return
        if self._size == 0:
            with contextlib.suppress(OSError):  # Windows does not remove an open file
                self.path.unlink()
        self._log.close()

    def _reset(self) -> None:
        self.settings = self.commit = self.shard = None
        self.entries, self.rows, self.fits = EntryTable(), {}, {}
        self.skipped = frozenset()
        # Offset of a record without a row, when the journal was read -> its picture.
        self._waiting: dict[int, str] = {}
        # Offsets of the records whose rows are written since the last line of the journal.
        self._written: list[int] = []
        self.base, self.listed, self._size, self._version = 0, 0, 0, _VERSION
        self._set_end(None)

    @property
    def is_of_first_version(self) -> bool:
        """Whether version 0.1.0 began the run; it wrote failures into data sets."""
        return self._version == 1

    @property
    def lacks_lock(self) -> bool:
        """Whether the journal is not locked, because its file system has no locks."""
        return self._log.lacks_lock

    def _open(self) -> AppendLog:
        is_new = not self.path.exists()
        try:
            return AppendLog(self.path, creates=True, is_locked=True, is_synced=False)
        except BlockingIOError as error:
            raise UsageError(
                f"another run is writing this output: it holds `{self.path}`",
                hint="wait until it is done, end it, or name another output",
            ) from error
        except OSError as error:
            with contextlib.suppress(OSError):
                if is_new and self.path.stat().st_size == 0:
                    self.path.unlink()
            raise failure(self.path, error) from error

    def _load(self) -> None:
        try:
            for index, (offset, line) in enumerate(read_lines(self.path)):
                try:
                    self._apply(offset, line)
                except (KeyError, TypeError, ValueError) as error:
                    if index == 0 and not line.startswith(_FIRST):
                        raise other_file(self.path) from error
                    raise DamagedJournalError(self.path, index + 1) from error
                self._size = offset + len(line)
            if self._size == 0 and not self._is_torn_first():
                raise other_file(self.path)
            self._cut(self._size)
        except OSError as error:
            raise failure(self.path, error) from error

    def _is_torn_first(self) -> bool:
        """Whether the file is empty, or has only the start of a journal's first line."""
        with self.path.open("rb") as file:
            first = file.readline(len(_FIRST) + 1)
        return _FIRST.startswith(first[: len(_FIRST)]) and not first.endswith(b"\n")

    def _apply(self, offset: int, line: bytes) -> None:
        """Apply one line.

        Raises:
            KeyError: If the line lacks a field, or refers to a line that does not exist.
            TypeError: If the line has a single value in place of a list.
            ValueError: If it is not a line of a journal.
            UsageError: If the journal has a version that cannot be read.
        """
        fields = self._fields(offset, line)
        if "journal" in fields:
            self._check_version(fields["journal"])
            decode_line(line, needs_checksum=fields["journal"] > 1)
            self._apply_header(fields)
        elif "record" in fields:
            self._apply_record(offset, fields)
        elif "written" in fields or "row" in fields:  # clones before 0.2.0 wrote "row"
            for at in fields.get("written") or [fields["row"]]:
                self._add_row(self._waiting.pop(number(at)), optional_number(fields["end"]))
        elif "rows" in fields:
            keys = {entry.offset: key for key, entry in self.entries.items()}
            self.rows = dict.fromkeys(keys[number(at)] for at in fields["rows"])
            self.end = optional_number(fields["end"])
        elif "rewriting" in fields:
            self._set_end(None)
        elif "closed" in fields:
            stamp = fields["closed"]
            self.closed = None if stamp is None else text(stamp)
            self.is_complete = fields["complete"] is True
            self.listed = number(fields.get("listed", 0))
        elif "commit" in fields:
            self.commit = text(fields["commit"])
        elif "fits" in fields:
            # With 0 requests at a time, the run would never end.
            self.fits[text(fields["where"])] = max(1, number(fields["fits"]))
        else:
            raise ValueError("it has none of the known fields")

    # Any: JSON has values of many types.
    def _fields(self, offset: int, line: bytes) -> dict[str, Any]:
        """Return the fields of a line that stands where it was written, or raise a ValueError."""
        fields = decode_line(line, needs_checksum=offset > 0 and self._version > 1)
        if self._version > 1 and fields.get("at", offset) != offset:
            raise ValueError("a line before it is missing")
        if (offset == 0) != ("journal" in fields):
            raise ValueError("the header is the first line")
        return fields

    # Any: JSON has values of many types.
    def _apply_record(self, offset: int, fields: Mapping[str, Any]) -> None:
        record = decode_record(fields["record"])
        # A journal of version 1 can have passwords in its addresses, so they are removed here.
        key = without_password(text(fields["key"]))
        self._set_entry(key, record, offset, number(fields.get("order", 0)))
        if fields.get("waits") is True:
            self._waiting[offset] = key
            self._set_end(self.end)
        else:
            self._add_row(key, optional_number(fields["end"]))

    # Any: JSON has values of many types.
    def _apply_header(self, fields: Mapping[str, Any]) -> None:
        if not isinstance(fields["settings"], dict):
            raise ValueError("it has no settings")
        self.skipped = frozenset(map(without_password, texts(fields["skipped"])))
        self.base = self.end = number(fields["base"])
        self.settings, self._version = fields["settings"], fields["journal"]
        self.shard = fields.get("shard")

    def _check_version(self, version: object) -> None:
        if type(version) is not int or version not in _READABLE_VERSIONS:
            raise JournalVersionError(self.path, version)

    def _add(
        self, key: str, record: CaptionRecord, more: Mapping[str, object], order: int | None
    ) -> int:
        line = {"key": key, "record": encode_record(record), **more}
        if order is not None:
            line["order"] = order
        offset = self._append(line)
        self._set_entry(key, record, offset, order or 0)
        return offset

    def _add_row(self, key: str, end: int | None) -> None:
        self.rows.pop(key, None)
        self.rows[key] = None
        self._set_end(end)

    def _set_entry(self, key: str, record: CaptionRecord, offset: int, order: int) -> None:
        is_failed = record.error is not None
        self.entries[key] = JournalEntry(offset, is_failed, record.sha256, record.stamp, order)

    def _set_end(self, end: int | None) -> None:
        self.end, self.closed, self.is_complete = end, None, False

    def _append(self, fields: Mapping[str, object]) -> int:
        """Write one line, whole or not at all; return its offset."""
        before = b""
        if self._written:
            before = encode_line({"written": self._written, "end": self.end, "at": self._size})
        offset = self._size + len(before)
        line = encode_line({**fields, "at": offset})
        try:
            self._size = self._log.append(before + line, at=self._size)
        except OSError as error:
            raise failure(self.path, error) from error
        self._written = []
        return offset

    def _cut(self, size: int) -> None:
        self._log.cut(size)
        self._size = size
