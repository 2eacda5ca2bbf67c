"""The sink with a journal: it writes rows to an output, and records in the journal what is done."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from idefics_cli.caption.resume.items import PICTURES, Identities, ItemRules
from idefics_cli.caption.resume.journal import RunJournal, Settings
from idefics_cli.caption.resume.journal_errors import BEGIN_ANEW
from idefics_cli.caption.resume.names import reachable
from idefics_cli.caption.resume.row_files import copy_head, has_line, reaches
from idefics_cli.caption.resume.split import count_units
from idefics_cli.caption.resume.todo import Todo, find_todo, is_continued
from idefics_cli.caption.sinks.base import RecordError, Sink, Target
from idefics_cli.core.errors import IdeficsError, UsageError
from idefics_cli.core.files import (
    cannot_write,
    remove_unfinished,
    stamp_of_file,
    unfinished_path,
)
from idefics_cli.core.types import CaptionRecord

MakeSink = Callable[[Target], Sink]
"""Makes a sink of one format."""


class JournaledSink:
    """A sink with a journal.

    A run with the same settings continues the last one, however that one ended. A run with other
    settings is refused, unless the target says what to do with existing captions. At the end there
    is one row for each picture, in the order of the pictures. A picture that was captioned again
    has only its last row. A data set has no row for a picture whose file is gone. The journal keeps
    the record of such a picture, and its row comes back with the file.

    Args:
        make_sink: Makes the sink of the format.
        target: Where the sink writes; `target.pictures` are the pictures of the run.
        journal: Path of the journal.
        settings: The settings on which the captions depend, by names that are shown to users.
        retry_failed: Whether to caption the pictures that failed, and no others.
        rules: How the journal knows the pictures again.

    Attributes:
        todo: The pictures that are left to caption, once the sink is entered.
        is_resumed: Whether the run continues an earlier one, once the sink is entered.
        replaces: Why the run, which may overwrite, does not continue an earlier one that it would
            continue otherwise; None if there is no such run.
    """

    def __init__(
        self,
        make_sink: MakeSink,
        target: Target,
        journal: Path,
        *,
        settings: Settings,
        retry_failed: bool = False,
        rules: ItemRules = PICTURES,
    ) -> None:
        self._make_sink = make_sink
        self._target = target
        self._path = journal
        self._settings = settings
        self._retry_failed = retry_failed
        self._may_begin_anew = target.existing == "overwrite" and not retry_failed
        self._rules = rules
        self._keys = Identities(target.pictures, rules, journal.parent)
        self._orders = None
        if target.shard is not None:
            self._orders = {picture.key: picture.order for picture in target.pictures}
        self._listed = None if rules.keeps_unlisted else frozenset(self._keys.values())
        self._journal: RunJournal
        self._sink: Sink
        self._rows = make_sink(target).rows_path
        self._was_there = False
        self._waiting: dict[str, _Waiting] = {}
        self.todo = Todo(())
        self.is_resumed = False
        self.replaces: str | None = None

    def __enter__(self) -> Self:
        """Lock the journal, and prepare the output.

        Raises:
            UsageError: If another run has locked the journal; if the run in the journal had other
                settings; if another program changed the output; or if the output exists already
                and must not be changed.
        """
        self._was_there = self._rows is not None and self._rows.exists()
        # The sink is entered before the journal is created, so that a run whose output cannot be
        # written leaves no journal.
        new = None if self._path.exists() else self._make_sink(self._target).__enter__()
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._journal = RunJournal(self._path, takes_damaged=self._may_begin_anew)
        remove_unfinished(self._path.parent)
        try:
            self.replaces = self._journal.damage
            self.is_resumed = self._is_the_same_run()
            if self.is_resumed and self._may_begin_anew and self._has_changed():
                self.is_resumed, self.replaces = False, _changed(self._rows)
            if self.is_resumed:
                self._resume()
            else:
                self._begin(new or self._make_sink(self._target).__enter__())
        except BaseException:
            self._journal.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Finish the output. If the run ended without an error, its rows are brought into order."""
        with self._journal:
            self._sink.__exit__(kind, error, traceback)
            if kind is None:
                self._sort_rows()
                self._note_output()
                self._sink.finish()
                return
            with contextlib.suppress(OSError, IdeficsError):
                self._cut_torn_row()
                if self._journal.entries or self.is_resumed:
                    self._note_output()
                else:
                    self._journal.discard()
                    self._remove_empty_output()
                self._sink.finish()

    def write(self, record: CaptionRecord) -> None:
        """Write the row of *record*, then its line in the journal; see `Sink.write`."""
        waiting = self._waiting.pop(record.file_name, None)
        written = self._sink.write(record) or record
        if waiting is not None and waiting.record is written:
            self._journal.note_row(waiting.key, waiting.offset, end=self._sink.position())
        else:
            key, order = self._place(written)
            self._journal.add(key, written, end=self._sink.position(), order=order)

    def hold(self, record: CaptionRecord) -> None:
        """Note *record* in the journal, whose row must wait for the pictures before it.

        If the run is killed now, the next one does not caption the picture again. A sidecar is not
        written anew from the journal, so its record is not noted before it is written.
        """
        if self._rows is not None:
            key, order = self._place(record)
            offset = self._journal.add_waiting(key, record, order=order)
            self._waiting[record.file_name] = _Waiting(record, key, offset)

    def _place(self, record: CaptionRecord) -> tuple[str, int | None]:
        name = record.file_name
        return self._keys[name], None if self._orders is None else self._orders[name]

    def check_commit(self, commit: str | None) -> None:
        """Note the commit of the weights, or check that a continued run has the same weights.

        Args:
            commit: The commit of the loaded weights; None if it is not known.

        Raises:
            UsageError: If the run began with another commit.
        """
        former = self._journal.commit
        if commit is None or commit == former:
            return
        if former is not None:
            raise UsageError(
                f"the run in `{self._path}` began with commit {former[:12]} of the model, "
                f"which is at {commit[:12]} now",
                hint=f"`--revision {former}` continues it; another `-o` begins a new run",
            )
        self._journal.note_commit(commit)

    def fit(self, where: str) -> int | None:
        """Return how many requests at a time fitted into the memory; None if it never ran out.

        Args:
            where: A key of the device and the chosen batch size, on which this number depends.
        """
        return self._journal.fits.get(where)

    def note_fit(self, requests: int, where: str) -> None:
        """Note in the journal that *requests* at a time fit into the memory; see `fit`."""
        self._journal.note_fit(requests, where)

    @property
    def lacks_lock(self) -> bool:
        """Whether another run could write this output, because its file system has no locks."""
        return self._journal.lacks_lock

    def failures(self) -> list[str]:
        """Return the keys of the failed pictures of this run, in order."""
        entries = self._journal.entries
        return [k for k, i in self._keys.items() if i in entries and entries[i].is_failed]

    def records(self) -> Iterator[CaptionRecord]:
        """Yield the records of this run in the order of its pictures, even after it was closed."""
        keys = {key: i for key, i in self._keys.items() if i in self._journal.entries}
        if not keys:  # a run that did not begin leaves no journal
            return
        records = self._journal.records(keys.values())
        for key, record in zip(keys, records, strict=True):
            yield replace(record, file_name=key)

    def _is_the_same_run(self) -> bool:
        return is_continued(
            self._journal,
            self._settings,
            self._target.existing,
            retry_failed=self._retry_failed,
            words=self._rules.words,
        )

    def _begin(self, sink: Sink) -> None:
        self._sink = sink
        done = sink.completed()
        skipped = [self._keys[key] for key in done]
        self._journal.begin_run(
            self._settings,
            base=sink.position() or 0,
            skipped=skipped,
            shard=self._target.shard_fields,
        )
        pictures = tuple(p for p in self._target.pictures if p.key not in done)
        self.todo = Todo(pictures, skipped=len(done))

    def _resume(self) -> None:
        journal = self._journal
        self.todo = find_todo(
            self._target.pictures,
            self._keys,
            journal,
            retry_failed=self._retry_failed,
            rules=self._rules,
        )
        again = {self._keys[picture.key] for picture in self.todo.pictures}
        target = self._target
        if target.existing in ("error", "skip"):
            # An earlier call of this run has checked the output, so all captions in it are from
            # this run and may be overwritten.
            target = replace(target, existing="overwrite")
        if self._rows is not None:
            self._check_unchanged(self._rows)
            kept = [key for key in journal.rows if key not in again and self._has_row(key)]
            missing = set(filter(self._has_row, journal.entries.keys() - journal.rows - again))
            is_old = self._target.is_dataset and journal.is_of_first_version
            if is_old or missing or len(kept) < len(journal.rows) or self._lacks_rows(self._rows):
                self._rewrite(self._rows, self._in_order([*kept, *missing]))
            target = replace(target, resume_at=journal.end)
            if journal.closed is not None:
                # The journal holds the size and time of the output, which change from here on. Both
                # are removed now, because a full disk could prevent writing the new values at the
                # end.
                journal.close_output(None, is_complete=journal.is_complete)
        self._sink = self._make_sink(target).__enter__()

    def _lacks_rows(self, path: Path) -> bool:
        """Whether the file may lack rows that it has according to the journal."""
        end = self._journal.end
        return end is None or not reaches(path, end)

    def _check_unchanged(self, path: Path) -> None:
        if self._has_changed():
            raise UsageError(
                _changed(path),
                hint=f"name another output, or {BEGIN_ANEW}",
            )
        end = self._journal.end
        if (
            self._retry_failed
            and self._journal.closed is None
            and end is not None
            and has_line(path, end)
        ):
            # After a power failure, the output may have rows that the journal lacks.
            # `--retry-failed` would cut these rows off and not caption their pictures again.
            raise UsageError(
                f"`{path}` has rows that are missing in its journal",
                hint="give the same command without `--retry-failed` first: "
                f"it {self._rules.words.do}s them again",
            )

    def _has_changed(self) -> bool:
        """Whether another program changed the output after the last run."""
        # *closed* is None after a run that was killed, because it could not write the size and time
        # of its output to the journal.
        closed = self._journal.closed
        if self._rows is None or closed is None:
            return False
        now = stamp_of_file(self._rows)
        return now is not None and now != closed

    def _sort_rows(self) -> None:
        """Write all rows anew if a row is missing, or if they are not in the order of pictures."""
        if self._rows is None:
            return
        journal = self._journal
        expected = (k for k in self._keys.values() if k in journal.entries and self._has_row(k))
        in_order = all(row == key for row, key in zip_longest(journal.rows, expected))
        if in_order and not self._lacks_rows(self._rows):
            return  # as usual; the lists below would take much memory
        wanted = self._in_order([key for key in journal.entries if self._has_row(key)])
        if wanted != list(journal.rows) or self._lacks_rows(self._rows):
            self._rewrite(self._rows, wanted)

    def _has_row(self, key: str) -> bool:
        """Whether the output has a row for the picture *key* of the journal."""
        if self._listed is not None:
            return key in self._listed
        if not self._target.is_dataset:
            return True
        return os.path.isfile(reachable(key, self._path.parent))

    def _in_order(self, keys: Sequence[str]) -> list[str]:
        """Return *keys* in the order of the pictures; keys of other pictures come first."""
        order = {key: index for index, key in enumerate(self._keys.values())}
        return sorted(keys, key=lambda key: order.get(key, -1))

    def _rewrite(self, path: Path, keys: list[str]) -> None:
        """Replace the rows in *path* by those of *keys*; there is a complete file at any moment."""
        base, output = self._journal.base, self._target.path
        assert output is not None
        target = replace(self._target, path=unfinished_path(output), resume_at=base)
        sink = self._make_sink(target)
        temporary = sink.rows_path
        assert temporary is not None
        self._journal.begin_rewriting()
        try:
            copy_head(path, temporary, base)
            with sink:
                for record in self._records(keys):
                    with contextlib.suppress(RecordError):  # a picture of an earlier run
                        sink.write(record)
            os.replace(temporary, path)
        except OSError as error:
            raise cannot_write(path, error) from error
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink()
        self._journal.end_rewriting(keys, end=sink.position())

    def _records(self, keys: Sequence[str]) -> Iterator[CaptionRecord]:
        """Yield the records of *keys*, with names relative to the current folder."""
        names = {identity: key for key, identity in self._keys.items()}
        for key, record in zip(keys, self._journal.records(keys), strict=True):
            name = names.get(key) or self._rules.name(key, self._path.parent)
            yield replace(record, file_name=name)

    def _cut_torn_row(self) -> None:
        path, end = self._rows, self._journal.end
        if path is None or end is None or not path.exists():
            return
        if path.stat().st_size > end:
            os.truncate(path, end)

    def _remove_empty_output(self) -> None:
        """Remove an output that this run created and left without a row.

        The next run would refuse to write to it.
        """
        path = self._rows
        if path is None or self._was_there or not path.exists():
            return
        if path.stat().st_size == 0:
            path.unlink()

    def _note_output(self) -> None:
        stamp = None if self._rows is None else stamp_of_file(self._rows)
        entries, skipped = self._journal.entries, self._journal.skipped
        is_complete = all(key in entries or key in skipped for key in self._keys.values())
        listed = count_units(self._target.pictures) + count_units(self._target.others)
        self._journal.close_output(stamp, is_complete=is_complete, listed=listed)


class _Waiting(NamedTuple):
    """A record without a row, with its key and its offset in the journal."""

    record: CaptionRecord
    key: str
    offset: int


def _changed(path: Path | None) -> str:
    return f"`{path}` was changed by something else since the last run"
