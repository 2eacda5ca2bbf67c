"""Decisions about resuming: what is left to do, and whether a run continues an earlier one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from idefics_cli.caption.item import CaptionItem, ItemWords
from idefics_cli.caption.resume.items import PICTURES, ItemRules
from idefics_cli.caption.resume.journal import RunJournal, Settings
from idefics_cli.caption.sinks.base import Existing
from idefics_cli.core.errors import UsageError
from idefics_cli.core.units import counted


@dataclass(frozen=True, slots=True)
class Todo:
    """The pictures of a run that are left to caption, and the state of the others.

    Attributes:
        pictures: Pictures to caption, in order.
        captioned: Number of pictures that are done.
        failed: Number of pictures that failed before, and are not tried again.
        changed: Number of *pictures* that were done, but have changed since.
        skipped: Number of pictures that had a caption before the run.
    """

    pictures: Sequence[CaptionItem]
    captioned: int = 0
    failed: int = 0
    changed: int = 0
    skipped: int = 0


def find_todo(
    pictures: Sequence[CaptionItem],
    keys: Mapping[str, str],
    journal: RunJournal,
    *,
    retry_failed: bool,
    rules: ItemRules = PICTURES,
) -> Todo:
    """Return which of *pictures* are left to do.

    Args:
        pictures: The pictures of the run.
        keys: `CaptionItem.key` -> key in the journal.
        journal: The journal of the run.
        retry_failed: Whether the pictures that failed are left to do, and no others.
        rules: How the journal knows the pictures again.
    """
    todo: list[CaptionItem] = []
    captioned = failed = changed = skipped = 0
    for picture in pictures:
        if keys[picture.key] in journal.skipped:
            skipped += 1
            continue
        entry = journal.entries.get(keys[picture.key])
        has_changed = entry is not None and rules.has_changed(picture, entry)
        if entry is None:
            is_left = not retry_failed
        elif retry_failed:
            is_left = entry.is_failed
        else:
            is_left = has_changed
            changed += has_changed
        if is_left:
            todo.append(picture)
        elif entry is not None:
            captioned += not entry.is_failed
            failed += entry.is_failed
    return Todo(tuple(todo), captioned, failed, changed, skipped)


def todo_of(
    pictures: Sequence[CaptionItem],
    path: Path,
    *,
    settings: Settings,
    existing: Existing,
    retry_failed: bool,
    rules: ItemRules = PICTURES,
) -> Todo:
    """Return what a run with the journal *path* has left to do; see `JournaledSink`.

    Raises:
        UsageError: See `JournaledSink.__enter__`.
    """
    may_begin_anew = existing == "overwrite" and not retry_failed
    with RunJournal(path, takes_damaged=may_begin_anew) as journal:
        is_same = is_continued(
            journal, settings, existing, retry_failed=retry_failed, words=rules.words
        )
        if not is_same:
            return Todo(pictures)
        keys = {picture.key: rules.identity(picture.key, path.parent) for picture in pictures}
        return find_todo(pictures, keys, journal, retry_failed=retry_failed, rules=rules)


def is_continued(
    journal: RunJournal,
    settings: Settings,
    existing: Existing,
    *,
    retry_failed: bool,
    words: ItemWords,
) -> bool:
    """Return whether a run with *settings* continues the run in *journal*; if not, it begins anew.

    Raises:
        UsageError: If it may neither continue nor begin anew.
    """
    if journal.settings is None:
        if retry_failed:
            raise UsageError(
                f"there is nothing to try again: no run has its journal at `{journal.path}`",
                hint="give the same `-o` as then, from the same folder",
            )
        return False
    former = journal.settings
    if journal.commit is not None and settings.get("revision") == journal.commit:
        # The user names the commit with which the run began. So the weights are the same, and the
        # setting "revision" does not count as changed.
        former = {**former, "revision": journal.commit}
    if changes := differences(former, settings):
        # A run without any record, for example because the model was missing, has no captions that
        # could be lost.
        if existing == "error" and (journal.entries or journal.skipped or retry_failed):
            raise _other_settings(journal, changes, words)
        return False
    # Even `overwrite` continues an unfinished run, because the output already belongs to this run.
    return not (existing == "overwrite" and journal.is_complete and not retry_failed)


# The settings contain these switches only if they differ from their default. So if only one of two
# runs has the switch, the other run has the opposite value.
_NOTED_UNLESS_DEFAULT = frozenset({"full names"})


def _other_settings(journal: RunJournal, changes: Sequence[str], words: ItemWords) -> UsageError:
    results = sum(not entry.is_failed for entry in journal.entries.values())
    return UsageError(
        f"the run in `{journal.path}` had other settings: {'; '.join(changes)}",
        hint="the former settings continue it; another `-o` begins a new run; "
        f"`--overwrite` begins anew, without its {counted(results, words.result)}",
    )


def differences(former: Settings, now: Settings) -> list[str]:
    """Return the settings in which *now* differs from *former*, such as `seed: 1, now 2`."""
    told = []
    for name in {**former, **now}:
        old, new = former.get(name), now.get(name)
        if name in _NOTED_UNLESS_DEFAULT:
            old, new = (not new if old is None else old), (not old if new is None else new)
        if old != new:
            told.append(f"{name}: {_shown(old)}, now {_shown(new)}")
    return told


def _shown(value: object) -> str:
    if value is None:
        return "not given"
    if isinstance(value, bool):
        return "on" if value else "off"
    if value in ("", []):
        return "none"
    if isinstance(value, list):
        return ", ".join(map(_shown, value))
    return f"`{value}`" if isinstance(value, str) else str(value)
