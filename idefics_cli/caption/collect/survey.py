"""The state of the shards of a run: which are complete, and which cannot be joined."""

from __future__ import annotations

import json
import os
from array import array
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, cast, get_args

from idefics_cli.caption.resume.journal import RunJournal, Settings
from idefics_cli.caption.resume.journal_lines import number, text, texts
from idefics_cli.caption.resume.run_files import RunFiles
from idefics_cli.caption.resume.todo import differences
from idefics_cli.caption.shards.shard import Shard
from idefics_cli.core.errors import IdeficsError, InputError, UsageError
from idefics_cli.core.sources import is_uri
from idefics_cli.engine.schema.form import ColumnKind, ReplyColumn
from idefics_cli.images.folders import sort_key

State = Literal["complete", "missing", "running", "incomplete", "foreign", "unequal", "damaged"]
"""The state of a shard: its run has not begun ("missing"), has its journal open, or has pictures
left. "foreign" means that the journal is of something else, "unequal" that it had other settings.
"""
UNDONE: frozenset[State] = frozenset({"missing", "running", "incomplete"})
"""The states of shards that only need to be run again."""


@dataclass(frozen=True, slots=True)
class Table:
    """The columns of the rows of a run; the attributes are those of `Target`."""

    columns: tuple[str, ...] = ()
    fields: tuple[ReplyColumn, ...] = ()
    samples: int = 1


@dataclass(frozen=True, slots=True)
class ShardState:
    """A shard, and what its journal has.

    Attributes:
        shard: The shard.
        journal: Path of the journal, which may not exist.
        state: The state.
        reason: What is wrong, for people; empty if nothing is.
        offsets: Offsets of the records in the journal, in the order of the rows.
        failed: Number of pictures that failed.
        listed: Number of pictures of all shards that this one saw; 0 if it is not known.
        settings: Settings of its run; None if they are not known.
        commit: Commit of the weights, if it is known.
        table: The columns of its rows.
    """

    shard: Shard
    journal: Path
    state: State
    reason: str = ""
    offsets: Sequence[int] = field(default=(), repr=False)
    failed: int = 0
    listed: int = 0
    settings: Settings | None = field(default=None, repr=False)
    commit: str | None = None
    table: Table = field(default_factory=Table, repr=False)


@dataclass(frozen=True, slots=True)
class Survey:
    """All shards of a run, in order.

    Attributes:
        whole: The output of a run without shards.
        shards: The shards.
        settings: The settings of the run.
        commit: Commit of the weights, if it is known.
        table: The columns of its rows.
    """

    whole: Path
    shards: tuple[ShardState, ...]
    settings: Settings
    commit: str | None
    table: Table

    @property
    def unfit(self) -> tuple[ShardState, ...]:
        """The shards that are not complete."""
        return tuple(each for each in self.shards if each.state != "complete")

    @property
    def wrong(self) -> tuple[ShardState, ...]:
        """The shards that cannot be joined with the others, even if they are run again."""
        return tuple(each for each in self.unfit if each.state not in UNDONE)

    @property
    def pictures(self) -> int:
        """Number of records."""
        return sum(len(each.offsets) for each in self.shards)


def survey_shards(whole: Path) -> Survey:
    """Return the state of the shards of the output *whole*.

    One journal is in memory at a time; after it, 8 bytes for each of its pictures.

    Args:
        whole: The output as it was named for the tasks, such as `captions.jsonl`.

    Raises:
        IdeficsError: If there are no shards, shards of two divisions, or none that can be read.
    """
    count = _count(whole)
    shards = (Shard(index, count) for index in range(count))
    states = [_state(shard, RunFiles.beside(shard.path(whole)).journal) for shard in shards]
    return _compared(whole, states)


def _count(whole: Path) -> int:
    if whole.is_dir():
        raise InputError(
            f"`{whole}` is a folder, and nothing needs to be collected there",
            hint="sidecars of all shards lie where those of one run would; name the FILE of `-o`",
        )
    try:
        names = os.listdir(whole.parent)
    except OSError as error:
        raise InputError(f"cannot list `{whole.parent}`: {error.strerror}") from error
    end = RunFiles.ENDS[0]
    found = (Shard.of_name(name.removesuffix(end), whole) for name in names if name.endswith(end))
    counts = sorted({shard.count for shard in found if shard is not None})
    if not counts:
        raise IdeficsError(
            f"there are no shards of `{whole}`",
            hint="give the name that `-o` had in the tasks, without the number of a shard",
        )
    if len(counts) > 1:
        shown = " and of ".join(map(str, counts))
        raise IdeficsError(
            f"there are shards of two divisions of `{whole}`: of {shown}",
            hint="move the files of one division to another folder",
        )
    return counts[0]


def _state(shard: Shard, path: Path) -> ShardState:
    if not path.exists():
        return ShardState(shard, path, "missing", "it has not begun")
    try:
        with RunJournal(path) as journal:
            return _state_of(shard, journal)
    except UsageError as error:
        is_open = isinstance(error.__cause__, BlockingIOError)
        return ShardState(shard, path, "running" if is_open else "foreign", str(error))
    except IdeficsError as error:
        return ShardState(shard, path, "damaged", str(error))


def _state_of(shard: Shard, journal: RunJournal) -> ShardState:
    path, folder = journal.path, journal.path.parent
    if journal.settings is None:
        return ShardState(shard, path, "incomplete", "it ended before its first picture")
    try:
        named, table = _named(journal.shard)
    except (KeyError, TypeError, ValueError):
        return ShardState(shard, path, "foreign", "it is the journal of a run without shards")
    if named != shard:
        return ShardState(shard, path, "foreign", f"it is the journal of the shard {named}")
    if journal.base or journal.skipped:
        reason = "its output has rows from before the run"
        return ShardState(shard, path, "foreign", reason)
    if strange := next((key for key in journal.entries if not shard.has(key)), None):
        return ShardState(shard, path, "foreign", f"`{strange}` is a picture of another shard")
    known = ShardState(
        shard,
        path,
        "complete",
        offsets=_in_order(journal, folder),
        failed=sum(entry.is_failed for entry in journal.entries.values()),
        listed=journal.listed,
        settings=journal.settings,
        commit=journal.commit,
        table=table,
    )
    if journal.is_complete:
        return known
    return replace(known, state="incomplete", reason="its run has not ended")


def _named(fields: Mapping[str, object] | None) -> tuple[Shard, Table]:
    """Return the shard and the columns in the first line of a journal.

    Raises:
        KeyError, TypeError or ValueError: If they are not there.
    """
    if fields is None:
        raise ValueError("there is no shard")
    shard = Shard(number(fields["index"]), number(fields["count"]))
    columns = tuple(texts(fields["columns"]))
    found = [texts(pair) for pair in cast("list[object]", fields["fields"])]
    kinds = get_args(ColumnKind)
    if any(kind not in kinds for _, kind in found):
        raise ValueError("there is another kind of column")
    replies = tuple(ReplyColumn(text(name), cast(ColumnKind, kind)) for name, kind in found)
    return shard, Table(columns, replies, max(1, number(fields["samples"])))


def order_of(order: int, identity: str, folder: Path) -> tuple[int, str]:
    """Return the key by which the rows of all shards are sorted; see `CaptionItem.order`.

    Args:
        order: The number of the picture.
        identity: Its key in the journal.
        folder: Folder of the output.
    """
    path = identity if is_uri(identity) else os.path.abspath(folder / identity)
    return order, sort_key(path)


def _in_order(journal: RunJournal, folder: Path) -> Sequence[int]:
    entries = sorted(
        journal.entries.items(), key=lambda each: order_of(each[1].order, each[0], folder)
    )
    return array("Q", (entry.offset for _, entry in entries))


def _compared(whole: Path, states: Sequence[ShardState]) -> Survey:
    """Return the survey, with the shards marked that have other settings than most of them."""
    known = [each for each in states if each.settings is not None]
    told = [json.dumps([each.settings, repr(each.table)]) for each in known]
    if not told:
        raise IdeficsError(
            f"no shard of `{whole}` can be read: {states[0].reason or states[0].state}",
            hint="run the tasks again",
        )
    usual = Counter(told).most_common(1)[0][0]
    first = known[told.index(usual)]
    commits = Counter(each.commit for each in known if each.commit is not None)
    commit = commits.most_common(1)[0][0] if commits else None
    assert first.settings is not None
    checked = tuple(_checked(each, first, commit) for each in states)
    return Survey(whole, checked, first.settings, commit, first.table)


def _checked(state: ShardState, first: ShardState, commit: str | None) -> ShardState:
    if state.settings is None or first.settings is None:
        return state
    changes = differences(first.settings, state.settings)
    if state.table != first.table and not changes:
        changes = ["other columns"]
    if state.commit is not None and state.commit != commit:
        changes.append(f"commit: `{(commit or '')[:12]}`, now `{state.commit[:12]}`")
    if not changes:
        return state
    return replace(state, state="unequal", reason="; ".join(changes).replace(", now ", ", here "))
