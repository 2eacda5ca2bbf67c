"""Scaling and normalizing as the library's image processors do, with fewer copies."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from idefics_cli.models.families.protocols import ImageProcessor, Pixels

if TYPE_CHECKING:
    from PIL.Image import Image


def shrink(
    image: Image, processor: ImageProcessor, scaled: Callable[[int, int], tuple[int, int]]
) -> Image:
    """Return *image* scaled down as *processor* does it, or unchanged if that enlarges it.

    The processor uses Pillow too, but first converts the image to numpy and back, which takes
    more time for a photo than the rest of its work (transformers 5.23, image_transforms.py
    `resize`). It leaves an image of the right size unchanged, so the tiles are equal to the bit.

    Args:
        image: RGB.
        processor: Image processor of the library.
        scaled: Takes a height and width, and returns those to which *processor* scales them.
    """
    size = scaled(image.height, image.width)
    is_smaller = size[0] * size[1] < image.height * image.width
    if not is_smaller or not processor.do_resize or not isinstance(processor.resample, int):
        return image
    # The processor would scale it a second time.
    if scaled(*size) != size:
        return image
    return image.resize((size[1], size[0]), resample=processor.resample)


def normalize(image: Image, processor: ImageProcessor) -> Tensor:
    """Return the pixels (3, H, W) of *image*, RGB, as *processor* makes them without resizing.

    The processor itself takes twice the time for the thumbnails of a small model, because it
    checks all its settings for every picture.
    """
    pixels: Pixels = np.asarray(image).transpose(2, 0, 1)
    if processor.do_rescale:
        pixels = processor.rescale(pixels, processor.rescale_factor)
    if processor.do_normalize:
        pixels = processor.normalize(pixels, processor.image_mean, processor.image_std)
    return torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))
