"""A picture is made small before a library's processor copies it back and forth."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from idefics_cli.models.library import ImageProcessor

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
