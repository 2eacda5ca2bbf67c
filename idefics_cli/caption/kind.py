"""The kinds of items that a run handles: pictures to caption, or requests to answer.

A run is the same for all kinds: journal, resuming, batches, order of the rows, failures, Ctrl-C.
A kind says how items are read, how a journal knows them again, and how failures are listed.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

from idefics_cli.caption.executors.reading import MakeReader, PictureReader
from idefics_cli.caption.resume import items
from idefics_cli.caption.resume.run_files import check_failures, write_failures


@dataclass(frozen=True, slots=True)
class ItemKind:
    """What a run must know about its items.

    Attributes:
        name: What the items are, in the plural; a key of the header of a run.
        make_reader: Makes the reader that turns items into requests for the model.
        rules: How the journal knows the items again.
        check_failures: Checks that a list of failures may replace a file, given the keys of the
            run; see the function of this name in `run_files`.
        write_failures: Writes the list of failures, given the keys of the items that failed; see
            the function of this name in `run_files`.
        inputs: Purpose, such as "the requests" -> a file that the run reads, and must not replace.
    """

    name: str
    make_reader: MakeReader
    rules: items.ItemRules
    check_failures: Callable[[Path, Collection[str]], None]
    write_failures: Callable[[Path, Sequence[str]], None]
    inputs: tuple[tuple[str, Path], ...] = ()


PICTURES = ItemKind("pictures", PictureReader, items.PICTURES, check_failures, write_failures)
"""Pictures, which are captioned."""
