"""The grouping of tiles for forwards: tiles of one size, and others if padding them is cheap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from idefics_cli.models.families.vision_work import VisionWork

Tile: TypeAlias = tuple[bytes, int]
"""A tile, by the digest of its picture and its index in the picture."""

Size: TypeAlias = tuple[int, int]
"""Height and width in pixels."""


@dataclass(frozen=True, slots=True)
class ForwardCost:
    """The overhead of a forward: the cost that comes on top of its arithmetic.

    Attributes:
        layer_operations: The overhead of each layer, as the number of floating-point operations
            that take the same time.
        overlaps: Whether the device computes while the host starts the next kernels. Then only the
            larger of arithmetic and overhead counts, not their sum.
    """

    layer_operations: float
    overlaps: bool = False


@dataclass(slots=True)
class Group:
    """Tiles for one forward.

    Attributes:
        height: Height of the tallest tile in pixels.
        width: Width of the widest tile in pixels.
        tiles: In the order of the forward.
        sizes: The size of each tile.
    """

    height: int = 0
    width: int = 0
    tiles: list[Tile] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)

    @property
    def has_padding(self) -> bool:
        """Whether any tile is smaller than the group."""
        return any(size != (self.height, self.width) for size in self.sizes)

    def size_with(self, size: Size) -> Size:
        """Return the height and width of the group if a tile of *size* joined it."""
        return max(self.height, size[0]), max(self.width, size[1])

    def add(self, size: Size, tiles: Sequence[Tile]) -> None:
        """Add *tiles*, all of *size*."""
        self.height, self.width = self.size_with(size)
        self.tiles += tiles
        self.sizes += [size] * len(tiles)


def group_tiles(
    sizes: Mapping[Tile, Size], *, max_pixels: int, work: VisionWork | None, cost: ForwardCost
) -> Iterator[Group]:
    """Yield the tiles of *sizes* in groups that keep the total cost low.

    Tiles of one size share a group. Tiles of another size join the group if the arithmetic of the
    padding costs less than a separate forward. For large models this is rare: padding all tiles to
    one size doubles the time (5 shapes of photos, idefics2-8b on a CPU).

    Args:
        sizes: The size of each tile.
        max_pixels: Maximum number of pixels of a group, with its padding; a larger tile runs alone.
        work: The arithmetic of the encoder; None if it takes tiles of one size only.
        cost: The cost of a forward.
    """
    by_size: dict[Size, list[Tile]] = {}
    for tile, size in sizes.items():
        by_size.setdefault(size, []).append(tile)
    open_groups: list[Group] = []
    # The largest tiles come first, so that later tiles rarely make a group larger.
    for size in sorted(by_size, key=lambda size: size[0] * size[1], reverse=True):
        tiles = by_size[size]
        count = max(1, max_pixels // (size[0] * size[1]))
        rest = len(tiles) % count
        for start in range(0, len(tiles) - rest, count):
            yield _new_group(size, tiles[start : start + count])
        if rest:
            last = tiles[-rest:]
            best = (
                None
                if work is None
                else _cheapest_group(open_groups, size, rest, max_pixels, work, cost)
            )
            if best is None:
                open_groups.append(_new_group(size, last))
            else:
                best.add(size, last)
    yield from open_groups


def _new_group(size: Size, tiles: Sequence[Tile]) -> Group:
    group = Group()
    group.add(size, tiles)
    return group


def _cheapest_group(
    open_groups: Sequence[Group],
    size: Size,
    count: int,
    max_pixels: int,
    work: VisionWork,
    cost: ForwardCost,
) -> Group | None:
    """Return the group that *count* tiles of *size* can join at the lowest cost.

    None if a separate forward for these tiles costs less.
    """
    best, least = None, _operations(work, cost, count, size)
    for group in open_groups:
        joined, together = group.size_with(size), len(group.tiles) + count
        if joined[0] * joined[1] * together > max_pixels:
            continue
        before = _operations(work, cost, len(group.tiles), (group.height, group.width))
        added = _operations(work, cost, together, joined) - before
        if added < least:
            best, least = group, added
    return best


def _operations(work: VisionWork, cost: ForwardCost, count: int, size: Size) -> float:
    """Return the cost of a forward of *count* tiles, padded to *size*, in operations."""
    arithmetic = count * work.operations(*size)
    overhead = work.layers * cost.layer_operations
    return max(arithmetic, overhead) if cost.overlaps else arithmetic + overhead
