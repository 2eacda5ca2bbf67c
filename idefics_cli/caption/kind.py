"""The kinds of items that a run handles: pictures to caption, or requests to answer.

A run is the same for all kinds: journal, resuming, batches, order of the rows, failures, Ctrl-C.
A kind says how items are read, how a journal knows them again, and how failures are listed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from idefics_cli.caption.executors.reading import MakeReader, PictureReader
from idefics_cli.caption.item import ItemWords
from idefics_cli.caption.resume import items
from idefics_cli.caption.resume.run_files import check_failures, write_failures


@dataclass(frozen=True, slots=True)
class ItemKind:
    """What a run must know about its items.

    Attributes:
        make_reader: Makes the reader that turns items into requests for the model.
        rules: How the journal knows the items again.
        check_failures: Checks that a list of failures may replace a file, given the keys of the
            run; see the function of this name in `run_files`.
        write_failures: Writes the list of failures, given the keys of the items that failed; see
            the function of this name in `run_files`.
        inputs: Purpose, such as "the requests" -> a file that the run reads, and must not replace.
        place: Returns the words by which messages name an item, given its key.
        settings: More settings on which the results depend; see `run_settings`.
    """

    make_reader: MakeReader
    rules: items.ItemRules
    check_failures: Callable[[Path, Collection[str]], None]
    write_failures: Callable[[Path, Sequence[str]], None]
    inputs: tuple[tuple[str, Path], ...] = ()
    place: Callable[[str], str] = str
    settings: Mapping[str, object] = field(default_factory=dict)

    @property
    def words(self) -> ItemWords:
        """The words by which messages name the items."""
        return self.rules.words


PICTURES = ItemKind(PictureReader, items.PICTURES, check_failures, write_failures)
"""Pictures, which are captioned."""
