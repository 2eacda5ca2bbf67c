"""Smaller pictures for a server, or a proxy before it, that refuses a body as too large."""

from __future__ import annotations

import base64
import binascii
import io
from collections.abc import Mapping

from PIL import Image

from idefics_cli.core.errors import IdeficsError
from idefics_cli.core.types import ImageLimits
from idefics_cli.engine.remote.uploads import data_uri
from idefics_cli.images.media import MediaLoader

SMALL_EDGE = 1024
"""Length in pixels to which the longer side of a picture is scaled down."""

_JPEG_QUALITY = 85


def with_smaller_pictures(body: Mapping[str, object]) -> Mapping[str, object] | None:
    """Return *body* with smaller pictures, or None if no picture becomes smaller.

    Args:
        body: A request with pictures as `data:` URIs; it is not changed.
    """
    smaller = {name: _shrunk(value, is_picture=name == "images") for name, value in body.items()}
    return None if smaller == body else smaller


def _shrunk(value: object, *, is_picture: bool) -> object:
    """Return *value* with smaller pictures; a text counts as a picture if *is_picture*."""
    if isinstance(value, dict):
        return {
            name: _shrunk(inner, is_picture=name == "image_url" or (is_picture and name == "url"))
            for name, inner in value.items()
        }
    if isinstance(value, list):
        return [_shrunk(inner, is_picture=is_picture) for inner in value]
    return _small(value) if is_picture and isinstance(value, str) else value


def _small(uri: str) -> str:
    try:
        data = base64.b64decode(uri.partition(",")[2])
        # The picture was checked when it was prepared, and these limits are wide.
        loader = MediaLoader(ImageLimits(), offline=True, takes_videos=False)
        stream = io.BytesIO(data)
        image = loader.open_media_stream(stream, "the picture", draft_edge=SMALL_EDGE)
    except (binascii.Error, IdeficsError):
        return uri
    if not isinstance(image, Image.Image):
        return uri
    with image:
        image.thumbnail((SMALL_EDGE, SMALL_EDGE), Image.Resampling.LANCZOS)
        jpeg = io.BytesIO()
        image.save(jpeg, "JPEG", quality=_JPEG_QUALITY)
    return data_uri(jpeg.getvalue()) if len(jpeg.getvalue()) < len(data) else uri
