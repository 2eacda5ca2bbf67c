"""The division of a work list into shards, by the names that journals have for pictures."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import groupby
from pathlib import Path

from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.resume.names import identity
from idefics_cli.caption.shards.shard import Shard, unit_of


def split_off(
    pictures: Iterable[CaptionItem], shard: Shard, folder: Path
) -> tuple[tuple[CaptionItem, ...], tuple[CaptionItem, ...]]:
    """Return those of *pictures* that belong to *shard*, and those of the other shards.

    Args:
        pictures: The pictures of the run.
        shard: The shard.
        folder: Folder of the output, from which pictures are named. So a picture has the same name
            on every computer on which the two folders lie in the same place to each other.
    """
    own: list[CaptionItem] = []
    others: list[CaptionItem] = []
    for picture in pictures:
        (own if shard.has(identity(picture.key, folder)) else others).append(picture)
    return tuple(own), tuple(others)


def count_units(pictures: Iterable[CaptionItem]) -> int:
    """Return the number of *pictures*; those of one tar archive, which follow each other, are one.

    So all tasks of a run count the same, although each lists only the pictures of its archives.
    """
    return sum(1 for _ in groupby(unit_of(picture.key) for picture in pictures))
