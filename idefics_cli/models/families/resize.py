"""Scaling and normalizing with the results of transformers' image processors, in less time."""

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
    # The processor would scale the smaller image a second time.
    if scaled(*size) != size:
        return image
    return image.resize((size[1], size[0]), resample=processor.resample)


def normalize(image: Image, processor: ImageProcessor) -> Tensor:
    """Return the pixels (3, H, W) of an RGB *image* as *processor* makes them without scaling.

    The processor itself takes twice as long for the thumbnails of a small model, because it
    checks all its settings for every picture.
    """
    pixels: Pixels = np.asarray(image).transpose(2, 0, 1)
    if processor.do_rescale:
        pixels = processor.rescale(pixels, processor.rescale_factor)
    if processor.do_normalize:
        pixels = processor.normalize(pixels, processor.image_mean, processor.image_std)
    return torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))
