"""The division of a work list into shards, by the names that journals have for pictures."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.resume.names import identity
from idefics_cli.caption.shards.shard import Shard


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
