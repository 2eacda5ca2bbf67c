"""How much a vision encoder has to compute, by the size of what it is shown."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class VisionWork:
    """The arithmetic of a vision encoder that can be shown tiles of several sizes at once.

    Attributes:
        patch: Edge of a patch in pixels.
        layers: That a forward goes through, one after the other.
        patch_operations: Floating-point operations for each patch.
        pair_operations: And for each pair of patches of one tile, in attention.
    """

    patch: int
    layers: int
    patch_operations: int
    pair_operations: int

    def operations(self, height: int, width: int) -> int:
        """Return the floating-point operations for one tile of *height* and *width* pixels."""
        patches = (height // self.patch) * (width // self.patch)
        return patches * (self.patch_operations + patches * self.pair_operations)
