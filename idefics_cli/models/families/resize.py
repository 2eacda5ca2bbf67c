"""What a library's processor does to a picture, without copying it back and forth."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from idefics_cli.models.families.protocols import ImageProcessor, Pixels

if TYPE_CHECKING:
    from PIL.Image import Image


def shrunk(
    image: Image, processor: ImageProcessor, scaled: Callable[[int, int], tuple[int, int]]
) -> Image:
    """Return *image* as *processor* scales it first, if that makes it smaller, else as it is.

    The processor resizes by Pillow, too, but goes from Pillow to numpy and back before, which for
    a photo takes longer than all else that it does (transformers 5.23, image_transforms.py
    `resize`). What has the size already is left as it is, so the tiles are equal to the bit.

    Args:
        image: RGB.
        processor: The library's.
        scaled: Returns the height and width to which *processor* scales one of a height and width.
    """
    size = scaled(image.height, image.width)
    is_smaller = size[0] * size[1] < image.height * image.width
    if not is_smaller or not processor.do_resize or not isinstance(processor.resample, int):
        return image
    # It would be scaled once more.
    if scaled(*size) != size:
        return image
    return image.resize((size[1], size[0]), resample=processor.resample)


def normalized(image: Image, processor: ImageProcessor) -> Tensor:
    """Return the pixels (3, H, W) of *image*, RGB, as *processor* makes them without resizing.

    Its own way through takes as long again for the thumbnails of a small model: it checks all of
    its settings for every picture.
    """
    pixels: Pixels = np.asarray(image).transpose(2, 0, 1)
    if processor.do_rescale:
        pixels = processor.rescale(pixels, processor.rescale_factor)
    if processor.do_normalize:
        pixels = processor.normalize(pixels, processor.image_mean, processor.image_std)
    return torch.from_numpy(np.ascontiguousarray(pixels, dtype=np.float32))
