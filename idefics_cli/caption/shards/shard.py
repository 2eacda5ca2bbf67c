"""One shard of a run, and the names of its files."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from idefics_cli.core.errors import UsageError
from idefics_cli.images.tars import tar_part

MOST_SHARDS = 99_999
"""The number of a shard has five digits in names of files."""

_MARK = re.compile(r"-(?P<index>\d{5})-of-(?P<count>\d{5})\Z")


@dataclass(frozen=True, slots=True)
class Shard:
    """One of the parts of a run.

    Attributes:
        index: Number of this shard, from 0.
        count: Number of shards.

    Raises:
        UsageError: If there is no such shard.
    """

    index: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.count <= MOST_SHARDS:
            raise UsageError(
                f"`{self}` is not a shard: the number of shards is from 1 to {MOST_SHARDS}",
                hint="`--shard 0/16` is the first of 16",
            )
        if not 0 <= self.index < self.count:
            raise UsageError(
                f"there is no shard `{self}`: shards count from 0",
                hint=f"`--shard 0/{self.count}` to `--shard {self.count - 1}/{self.count}`",
            )

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"

    @property
    def mark(self) -> str:
        """What names of files have before their extension: `-00003-of-00016`."""
        return f"-{self.index:05}-of-{self.count:05}"

    def has(self, identity: str) -> bool:
        """Return whether a picture belongs to this shard.

        The hash of its name decides. So each picture belongs to one shard, even if tasks list a
        folder at different times and files come and go meanwhile.

        All pictures of a tar archive belong to one shard, so that a task need not read the archives
        of the others, and one task writes the archive of their captions.

        Args:
            identity: The key of the picture in the journal; see `journal.identity`.
        """
        identity = unit_of(identity)
        digest = hashlib.sha256(identity.encode("utf-8", "surrogateescape")).digest()
        return int.from_bytes(digest[:8]) % self.count == self.index

    def path(self, whole: Path) -> Path:
        """Return the file of this shard in place of *whole*, that of a run without shards."""
        return whole.with_name(f"{whole.stem}{self.mark}{whole.suffix}")

    @classmethod
    def with_whole(cls, path: Path) -> tuple[Self, Path] | None:
        """Return the shard whose file *path* is, and the file of the whole run; None for others."""
        match = _MARK.search(path.stem)
        if match is None:
            return None
        whole = path.with_name(f"{path.stem[: match.start()]}{path.suffix}")
        shard = cls.of_name(path.name, whole)
        return None if shard is None else (shard, whole)

    @classmethod
    def of_name(cls, name: str, whole: Path) -> Self | None:
        """Return the shard whose file in place of *whole* has this *name*; None if it has none."""
        stem = name.removesuffix(whole.suffix) if whole.suffix else name
        match = _MARK.search(stem)
        if match is None or stem[: match.start()] != whole.stem or not name.endswith(whole.suffix):
            return None
        index, count = int(match["index"]), int(match["count"])
        return cls(index, count) if index < count else None


def unit_of(identity: str) -> str:
    """Return what belongs to one shard as a whole: the picture *identity*, or its tar archive."""
    return tar_part(identity) or identity
