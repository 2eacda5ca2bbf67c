"""The number of operations of a vision encoder for a tile of any size."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VisionWork:
    """The arithmetic of a vision encoder that takes tiles of several sizes in one forward.

    Attributes:
        patch: Edge of a patch in pixels.
        layers: Number of layers that a forward runs one after the other.
        patch_operations: Floating-point operations for each patch.
        pair_operations: Floating-point operations of attention for each pair of patches of one
            tile.
    """

    patch: int
    layers: int
    patch_operations: int
    pair_operations: int

    def operations(self, height: int, width: int) -> int:
        """Return the floating-point operations for a tile of *height* and *width* pixels."""
        patches = (height // self.patch) * (width // self.patch)
        return patches * (self.patch_operations + patches * self.pair_operations)
