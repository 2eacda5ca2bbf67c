"""A picture that is loaded from any source."""

from __future__ import annotations

import pytest
from PIL import Image

from idefics_cli.core.errors import ImageError
from idefics_cli.core.types import Attachment, ImageLimits
from idefics_cli.images.loader import ImageLoader
from tests.support.pictures import QUADRANTS, corners, encoded, quadrants

PICTURE = encoded(quadrants(), "PNG")
"""The file of the picture that the tests of sources load."""


def load(source: str, **limits: int) -> Image.Image:
    """Return the picture of *source*."""
    return ImageLoader(ImageLimits(**limits)).open(Attachment(source))


def load_error(source: str, **limits: int) -> ImageError:
    """Return the error for *source*, which must be short and printable."""
    with pytest.raises(ImageError) as caught:
        load(source, **limits)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200
    return caught.value


def is_the_picture(image: Image.Image) -> bool:
    """Return whether *image* shows `PICTURE`."""
    return corners(image) == list(QUADRANTS)
