"""Preprocessed pictures: a value that names one, and the tensors that belong to it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from PIL.Image import Image
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Moments:
    """The times of the frames of a video, which are text in its prompt.

    Attributes:
        seconds: Time of each frame, in whole seconds from the start.
        duration_seconds: Length of the video.
    """

    seconds: tuple[int, ...]
    duration_seconds: int


PictureShape: TypeAlias = tuple[tuple[int, int], tuple[tuple[int, int], ...], Moments | None]


@dataclass(frozen=True, slots=True)
class PreparedPicture:
    """One picture or video as a model takes it, without pixels; it pickles without torch.

    The tiles of a video are its frames.

    Attributes:
        digest: Digest of the images from which the tiles are made. Within one loaded model,
            equal digests mean equal tiles.
        size: (width, height) of the upright source in pixels, before any scaling.
        tile_sizes: (height, width) of each tile in pixels, in the order of the image tokens.
        grid: Rows and columns of tiles; (0, 0) if the family cuts no grid.
        split_digest: If this is only the last tile of a split picture: the digest of that picture.
            None otherwise.
        moments: Times of the frames of a video; None for a picture.
    """

    digest: bytes
    size: tuple[int, int]
    tile_sizes: tuple[tuple[int, int], ...]
    grid: tuple[int, int] = (0, 0)
    split_digest: bytes | None = None
    moments: Moments | None = None

    @property
    def shape(self) -> PictureShape:
        """Grid, tile sizes and times. Pictures of equal shape have equal tokens in a prompt.

        They cost the same, and can share a batch.
        """
        return self.grid, self.tile_sizes, self.moments

    @property
    def is_split(self) -> bool:
        """Whether the last of several tiles is the whole picture, scaled down."""
        return len(self.tile_sizes) > 1 and self.moments is None

    @property
    def pixels(self) -> int:
        """Number of pixels of all tiles."""
        return sum(height * width for height, width in self.tile_sizes)

    def without_tiles(self) -> PreparedPicture:
        """Return the picture as if it were not split: only with its last tile.

        In all families that split pictures, the last tile is the whole picture, scaled down.
        """
        if not self.is_split:
            return self
        return replace(
            self,
            digest=hashlib.sha256(b"without tiles " + self.digest).digest(),
            tile_sizes=self.tile_sizes[-1:],
            grid=(0, 0),
            split_digest=self.digest,
        )


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class PictureTensors:
    """The pixels of a picture, or its image features. They stay in the process of the engine.

    Attributes:
        picture: The picture.
        tiles: Pixels (3, H, W) of each tile, on the CPU; empty if *features* are given. They are
            uint8 before `levels` are applied, or float32 and ready for the model.
        features: Image features (tokens, D), if an equal picture was encoded before; see
            `Family.encode_tiles`.
        levels: The normalized value of each byte in each channel, float32 (3, 256); None if the
            tiles are float32.
    """

    picture: PreparedPicture
    tiles: tuple[Tensor, ...] = ()
    features: Tensor | None = None
    levels: Tensor | None = None

    @property
    def nbytes(self) -> int:
        """Number of bytes of the tiles."""
        return sum(tile.nbytes for tile in self.tiles)

    def without_tiles(self) -> PictureTensors:
        """Return the tensors of `PreparedPicture.without_tiles`."""
        count = len(self.picture.tile_sizes)
        if not self.picture.is_split:
            return self
        features = self.features
        return PictureTensors(
            self.picture.without_tiles(),
            self.tiles[-1:],
            None if features is None else features[-(len(features) // count) :].clone(),
            self.levels,
        )


def apply_levels(levels: Tensor, tile: Tensor, target: Tensor) -> None:
    """Write the normalized pixels of a tile into *target*; all tensors are on one device.

    Args:
        levels: The value of each byte in each channel, float32 (3, 256).
        tile: uint8 (3, H, W).
        target: float32 (3, H, W).
    """
    from torch import index_select

    for values, channel, out in zip(levels, tile, target, strict=True):
        index = channel.flatten().int()
        if out.is_contiguous():
            index_select(values, 0, index, out=out.view(-1))
        else:
            out.copy_(index_select(values, 0, index).view(out.shape))


def digest_of(images: Sequence[Image]) -> bytes:
    """Return a digest of the pixels of *images*."""
    digest = hashlib.sha256()
    for image in images:
        digest.update(f"{image.mode} {image.size}".encode())
        digest.update(image.tobytes())
    return digest.digest()
