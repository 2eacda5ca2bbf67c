"""The rules by which a journal knows the items of a run again, such as pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from idefics_cli.caption.item import CaptionItem, ItemWords
from idefics_cli.caption.resume.entry import JournalEntry
from idefics_cli.caption.resume.names import identity, reachable
from idefics_cli.caption.resume.stamp import sha256_of, stamp_of
from idefics_cli.core.sources import is_uri


class ItemRules(Protocol):
    """How a journal knows the items of a run again."""

    @property
    def words(self) -> ItemWords:
        """The words by which messages name the items."""
        ...

    @property
    def keeps_unlisted(self) -> bool:
        """Whether the output keeps the row of an item that the run no longer lists."""
        ...

    def identity(self, key: str, folder: Path) -> str:
        """Return the key in the journal of an item.

        Args:
            key: `CaptionItem.key`.
            folder: Folder of the output.
        """
        ...

    def name(self, identity: str, folder: Path) -> str:
        """Return the `CaptionItem.key` of an item that the run does not list."""
        ...

    def has_changed(self, item: CaptionItem, entry: JournalEntry) -> bool:
        """Return whether *item* has changed since *entry* was noted."""
        ...


class PictureRules:
    """The rules for pictures: a picture is known by its path; see `ItemRules`."""

    words = ItemWords()
    keeps_unlisted = True

    def identity(self, key: str, folder: Path) -> str:
        """Return the path of a picture from the folder of the output."""
        return identity(key, folder)

    def name(self, identity: str, folder: Path) -> str:
        """Return the path of a picture from the current folder."""
        return reachable(identity, folder)

    def has_changed(self, item: CaptionItem, entry: JournalEntry) -> bool:
        """Return whether a picture has changed. Its file is read only if necessary."""
        source = item.attachment.source
        stamp, _, columns = (stamp_of(item) or "").partition("#")
        former, _, former_columns = (entry.stamp or "").partition("#")
        if columns != former_columns:
            return True
        if is_uri(source):
            # Stdin and the clipboard always count as changed, because they may hold a new picture
            # each time. A URL counts as unchanged, unless a store says that it has changed.
            has_new = item.version is not None and stamp != former
            return has_new or source == "-" or source.lower() == "clipboard:"
        if stamp == former:
            return False
        if not stamp or entry.sha256 is None:
            # If the file is missing now, its record stays. If it was missing and exists now, it
            # counts as changed.
            return bool(stamp)
        return sha256_of(item) != entry.sha256


PICTURES = PictureRules()


class Identities(Mapping[str, str]):
    """The keys of items -> their keys in the journal, which are computed when they are needed.

    A dictionary of them would take 50 to 150 bytes for each of millions of pictures.

    Args:
        items: The items.
        rules: Their rules.
        folder: Folder of the output.
    """

    def __init__(self, items: Sequence[CaptionItem], rules: ItemRules, folder: Path) -> None:
        self._items, self._rules, self._folder = items, rules, folder

    def __getitem__(self, key: str) -> str:
        return self._rules.identity(key, self._folder)

    def __iter__(self) -> Iterator[str]:
        return (item.key for item in self._items)

    def __len__(self) -> int:
        return len(self._items)
