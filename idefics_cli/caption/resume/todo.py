"""What is left of a run to do, by its journal, and whether the journal is of that run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.resume.journal import JournalEntry, RunJournal, Settings, identity
from idefics_cli.caption.resume.stamp import sha256_of, stamp_of
from idefics_cli.caption.sinks.base import Existing
from idefics_cli.core.errors import UsageError
from idefics_cli.core.sources import is_uri


@dataclass(frozen=True, slots=True)
class Todo:
    """Which pictures of a run are left, and what the journal says of the others.

    Attributes:
        pictures: To be captioned, in order.
        captioned: How many are done.
        failed: How many have failed and are left alone.
        changed: How many of *pictures* were done, and have changed since.
        skipped: How many had a caption before the first run.
    """

    pictures: tuple[CaptionItem, ...]
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
) -> Todo:
    """Sort out which of *pictures* are left to do.

    Args:
        pictures: Of the run.
        keys: `CaptionItem.key` -> key in the journal.
        journal: What is done.
        retry_failed: Take those that failed, and no others.
    """
    todo: list[CaptionItem] = []
    captioned = failed = changed = skipped = 0
    for picture in pictures:
        if keys[picture.key] in journal.skipped:
            skipped += 1
            continue
        entry = journal.entries.get(keys[picture.key])
        has_changed = entry is not None and _has_changed(picture, entry)
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
) -> Todo:
    """Return what the run in the journal *path* would have left to do; see `JournaledSink`.

    Raises:
        UsageError: As entering a `JournaledSink` does.
    """
    with RunJournal(path) as journal:
        if not is_continued(journal, settings, existing, retry_failed=retry_failed):
            return Todo(tuple(pictures))
        keys = {picture.key: identity(picture.key, path.parent) for picture in pictures}
        return find_todo(pictures, keys, journal, retry_failed=retry_failed)


def is_continued(
    journal: RunJournal, settings: Settings, existing: Existing, *, retry_failed: bool
) -> bool:
    """Tell whether a run with *settings* goes on with what is in *journal*, or begins anew.

    Raises:
        UsageError: If it may do neither.
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
        # It says by its number what the run began with.
        former = {**former, "revision": journal.commit}
    if changes := differences(former, settings):
        # One that came to no caption, as its model could not be had, binds nobody.
        if existing == "error" and (journal.entries or journal.skipped or retry_failed):
            raise _other_settings(journal, changes)
        return False
    # An unfinished run goes on, however it was begun: what it wrote is its own.
    return not (existing == "overwrite" and journal.is_complete and not retry_failed)


def _other_settings(journal: RunJournal, changes: Sequence[str]) -> UsageError:
    captions = sum(not entry.is_failed for entry in journal.entries.values())
    return UsageError(
        f"the run in `{journal.path}` had other settings: {'; '.join(changes)}",
        hint="the former settings go on with it; another `-o` begins beside it; "
        f"`--overwrite` begins anew, without its {captions} captions",
    )


def differences(former: Settings, now: Settings) -> list[str]:
    """Return what *now* has otherwise than *former*, for people: `seed: 1, now 2`."""
    return [
        f"{name}: {_shown(former.get(name))}, now {_shown(now.get(name))}"
        for name in {**former, **now}
        if former.get(name) != now.get(name)
    ]


def _has_changed(picture: CaptionItem, entry: JournalEntry) -> bool:
    """Tell whether *picture* is no longer what *entry* is of; reads it only if it may be."""
    source = picture.attachment.source
    stamp, _, columns = (stamp_of(picture) or "").partition("#")
    former, _, former_columns = (entry.stamp or "").partition("#")
    if columns != former_columns:
        return True
    if is_uri(source):
        # What is piped in or copied is another picture each time; an address is what it names.
        return source == "-" or source.lower() == "clipboard:"
    if stamp == former:
        return False
    if not stamp or entry.sha256 is None:
        # It is gone: what was said of it stays. It failed unread, and now is there: try it.
        return bool(stamp)
    return sha256_of(picture) != entry.sha256


def _shown(value: object) -> str:
    if value is None:
        return "not given"
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"`{value}`" if isinstance(value, str) else str(value)
