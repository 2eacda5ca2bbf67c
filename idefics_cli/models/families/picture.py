"""A picture as a model takes it: cut, scaled and normalised, and known by its content."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Shape: TypeAlias = tuple[tuple[int, int], tuple[tuple[int, int], ...]]


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class PreparedPicture:
    """One picture, ready for the vision encoder.

    Attributes:
        digest: Of the opened picture. Within one loaded model, equal digests mean equal pixels
            for the encoder.
        size: (width, height) of the upright source in pixels, before any scaling.
        tile_sizes: (height, width) of each tile in pixels, in the order of the image tokens.
        grid: Rows and columns that the picture was cut into; (0, 0) if the family has no grid.
        tiles: For each tile its pixels (3, H, W), float32, on the CPU; empty with *features*.
        features: The output of the encoder for an equal picture, (tokens, D); see
            `Family.encode_tiles`.
    """

    digest: bytes
    size: tuple[int, int]
    tile_sizes: tuple[tuple[int, int], ...]
    grid: tuple[int, int] = (0, 0)
    tiles: tuple[Tensor, ...] = ()
    features: Tensor | None = None

    @property
    def shape(self) -> Shape:
        """What pictures must share to cost the model the same and be encoded together."""
        return self.grid, self.tile_sizes

    @property
    def pixels(self) -> int:
        """Pixels of all tiles together, 12 bytes each while the picture waits."""
        return sum(height * width for height, width in self.tile_sizes)

    def without_tiles(self) -> PreparedPicture:
        """Return the picture as a model takes it that does not split it: with its last tile only.

        All families that split a picture have the whole of it, scaled down, behind its pieces.
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
