"""Preprocessed pictures: cut, scaled and normalized for a model, with a digest of the content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

PictureShape: TypeAlias = tuple[tuple[int, int], tuple[tuple[int, int], ...]]


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class PreparedPicture:
    """One picture, preprocessed for the vision encoder.

    Attributes:
        digest: Digest of the images from which the tiles are made. Within one loaded model,
            equal digests mean equal tiles.
        size: (width, height) of the upright source in pixels, before any scaling.
        tile_sizes: (height, width) of each tile in pixels, in the order of the image tokens.
        grid: Rows and columns of tiles; (0, 0) if the family cuts no grid.
        tiles: Pixels (3, H, W) of each tile, float32, on the CPU; empty if *features* are given.
        features: Image features (tokens, D), if an equal picture was encoded before; see
            `Family.encode_tiles`.
    """

    digest: bytes
    size: tuple[int, int]
    tile_sizes: tuple[tuple[int, int], ...]
    grid: tuple[int, int] = (0, 0)
    tiles: tuple[Tensor, ...] = ()
    features: Tensor | None = None

    @property
    def shape(self) -> PictureShape:
        """Grid and tile sizes. Pictures of equal shape cost the same, and can share a batch."""
        return self.grid, self.tile_sizes

    @property
    def pixels(self) -> int:
        """Number of pixels of all tiles. Each pixel takes 12 bytes until the picture is encoded."""
        return sum(height * width for height, width in self.tile_sizes)

    def without_tiles(self) -> PreparedPicture:
        """Return the picture as if it were not split: only with its last tile.

        In all families that split pictures, the last tile is the whole picture, scaled down.
        """
        count = len(self.tile_sizes)
        if count < 2:
            return self
        features = self.features
        return replace(
            self,
            digest=hashlib.sha256(b"without tiles " + self.digest).digest(),
            tile_sizes=self.tile_sizes[-1:],
            grid=(0, 0),
            tiles=self.tiles[-1:],
            features=None if features is None else features[-(len(features) // count) :].clone(),
        )
