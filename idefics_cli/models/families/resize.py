"""Scaling and normalizing as the image processors of transformers, in less time and memory."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from idefics_cli.models.families.protocols import ImageProcessor, Pixels

if TYPE_CHECKING:
    from PIL.Image import Image

# Image processors recognise the channels of a picture by a side of length 1 or 3. So no side of a
# picture may have this length. Some processors also cut a picture into quarters, which must have 2
# pixels or more on each side.
_SHORTEST_SIDE = 4


def enlarged(image: Image) -> Image:
    """Return *image* with no side so short that a processor takes it for the channels."""
    # Only the short side grows. If the long side grew too, a line of a million pixels would become
    # gigabytes, although the processor then shrinks it.
    from PIL.Image import Resampling

    size = (max(image.width, _SHORTEST_SIDE), max(image.height, _SHORTEST_SIDE))
    return image if size == image.size else image.resize(size, Resampling.NEAREST)


def shrink(
    image: Image, processor: ImageProcessor, scaled: Callable[[int, int], tuple[int, int]]
) -> Image:
    """Return *image* scaled down as *processor* would do it, or unchanged if it would grow.

    *processor* would get the same pixels with Pillow. But first it converts the image to numpy and
    back, which takes more time for a photo than the rest of its work (transformers 5.23,
    image_transforms.py `resize`). It does not change an image that already has the right size, so
    the tiles are equal to the bit.

    Args:
        image: RGB.
        processor: Image processor of transformers.
        scaled: Takes a height and a width; returns those to which *processor* scales them.
    """
    size = scaled(image.height, image.width)
    is_smaller = size[0] * size[1] < image.height * image.width
    if not is_smaller or not processor.do_resize or not isinstance(processor.resample, int):
        return image
    # The processor would scale the smaller image a second time, so it gets the original.
    if scaled(*size) != size:
        return image
    return image.resize((size[1], size[0]), resample=processor.resample)


def cut_tiles(
    images: object, processor: ImageProcessor, **options: object
) -> Mapping[str, Tensor] | Tensor:
    """Cut and scale *images* as *processor* does, and keep bytes if it can.

    Args:
        images: What *processor* takes.
        processor: Image processor of transformers.
        options: Further options of *processor*.

    Returns:
        The tiles: uint8, neither rescaled nor normalized; or float32 and ready for the model.
    """
    made = processor(images, return_tensors="pt", do_rescale=False, do_normalize=False, **options)
    tiles = made if isinstance(made, Tensor) else made["pixel_values"]
    if tiles.dtype == torch.uint8:
        return made
    return processor(images, return_tensors="pt", **options)


def pixels_of(image: Image) -> Tensor:
    """Return the pixels of an RGB *image*, uint8 (3, H, W)."""
    return torch.from_numpy(np.ascontiguousarray(np.asarray(image).transpose(2, 0, 1)))


def levels_of(processor: ImageProcessor) -> Tensor:
    """Return the values that *processor* makes of each byte in each channel, float32 (3, 256).

    Rescaling and normalizing look at one number at a time. So tiles can stay bytes, a quarter of
    the memory, until they are on the device of the model.
    """
    pixels: Pixels = np.tile(np.arange(256, dtype=np.uint8), (3, 1, 1))
    if processor.do_rescale:
        pixels = processor.rescale(pixels, processor.rescale_factor)
    if processor.do_normalize:
        pixels = processor.normalize(pixels, processor.image_mean, processor.image_std)
    return torch.from_numpy(np.ascontiguousarray(pixels[:, 0], dtype=np.float32))
