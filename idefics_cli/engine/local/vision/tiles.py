"""Which tiles are encoded in one forward: equal ones, and others where padding is cheap."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from idefics_cli.models.families.vision_work import VisionWork

Tile: TypeAlias = tuple[bytes, int]
"""A tile by its picture's digest and its place in the picture."""

Size: TypeAlias = tuple[int, int]
"""Height and width in pixels."""

# One forward of the encoder, which cannot be interrupted. A GPU wants many tiles at once; a CPU
# gains next to nothing (8 pictures of 980x980 by shape: 0.93 of the time of one by one).
CPU_PIXELS, GPU_PIXELS = 1_000_000, 16_000_000


@dataclass(frozen=True, slots=True)
class Call:
    """What a forward costs besides its arithmetic, in operations that could be done meanwhile.

    Attributes:
        layer_operations: For each layer.
        overlaps: Whether the device computes while the next kernels are started, so that only
            the longer of both counts.
    """

    layer_operations: float
    overlaps: bool = False


@dataclass(slots=True)
class Group:
    """Tiles for one forward.

    Attributes:
        height: Of the highest in pixels.
        width: Of the widest.
        tiles: In the order of the forward.
        sizes: Of each tile.
    """

    height: int = 0
    width: int = 0
    tiles: list[Tile] = field(default_factory=list)
    sizes: list[Size] = field(default_factory=list)

    @property
    def pads(self) -> bool:
        """Whether any tile is smaller than another."""
        return any(size != (self.height, self.width) for size in self.sizes)

    def covers(self, size: Size) -> Size:
        """Return the height and width that it has with a tile of *size* as well."""
        return max(self.height, size[0]), max(self.width, size[1])

    def add(self, size: Size, tiles: Sequence[Tile]) -> None:
        """Add *tiles*, all of *size*."""
        self.height, self.width = self.covers(size)
        self.tiles += tiles
        self.sizes += [size] * len(tiles)


def groups(
    sizes: Mapping[Tile, Size], *, most_pixels: int, work: VisionWork | None, call: Call
) -> Iterator[Group]:
    """Yield groups of the tiles with *sizes*, so that all together cost little.

    Tiles of one size come together. Those of another size join them where the arithmetic for
    padding costs less than a forward of their own, which for large models is hardly ever: there
    padding doubles the time (5 shapes of photos, idefics2-8b on a CPU).

    Args:
        sizes: Of all tiles.
        most_pixels: Of a group, with its padding; a larger tile comes alone.
        work: Of the encoder; None if it cannot be shown tiles of several sizes.
        call: What a forward costs.
    """
    by_size: dict[Size, list[Tile]] = {}
    for tile, size in sizes.items():
        by_size.setdefault(size, []).append(tile)
    open_groups: list[Group] = []
    # The largest first, so that those after it widen no group more than they must.
    for size in sorted(by_size, key=lambda size: size[0] * size[1], reverse=True):
        tiles = by_size[size]
        count = max(1, most_pixels // (size[0] * size[1]))
        rest = len(tiles) % count
        for start in range(0, len(tiles) - rest, count):
            yield _group(size, tiles[start : start + count])
        if rest:
            last = tiles[-rest:]
            best = (
                None
                if work is None
                else _cheapest(open_groups, size, rest, most_pixels, work, call)
            )
            if best is None:
                open_groups.append(_group(size, last))
            else:
                best.add(size, last)
    yield from open_groups


def _group(size: Size, tiles: Sequence[Tile]) -> Group:
    group = Group()
    group.add(size, tiles)
    return group


def _cheapest(
    open_groups: Sequence[Group],
    size: Size,
    count: int,
    most_pixels: int,
    work: VisionWork,
    call: Call,
) -> Group | None:
    """Return which group *count* tiles of *size* had better join, or None if none."""
    best, least = None, _cost(work, call, count, size)
    for group in open_groups:
        covered, together = group.covers(size), len(group.tiles) + count
        if covered[0] * covered[1] * together > most_pixels:
            continue
        before = _cost(work, call, len(group.tiles), (group.height, group.width))
        added = _cost(work, call, together, covered) - before
        if added < least:
            best, least = group, added
    return best


def _cost(work: VisionWork, call: Call, count: int, size: Size) -> float:
    """Return the cost of a forward of *count* tiles, padded to *size*, in operations."""
    arithmetic = count * work.operations(*size)
    overhead = work.layers * call.layer_operations
    return max(arithmetic, overhead) if call.overlaps else arithmetic + overhead
