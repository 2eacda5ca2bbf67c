"""The metadata of a picture: when it was taken, and the texts in it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import BinaryIO

from PIL import ExifTags, Image

from idefics_cli.images.formats import HEAD_BYTES, identify

_TIFF_XMP = 700  # XMP Specification Part 3, table 12


@dataclass(frozen=True, slots=True)
class PictureMetadata:
    """The metadata of a picture, as it is stored.

    Attributes:
        taken: Date and time, as `2024:05:01 10:00:00` (EXIF 2.32, tag 0x9003); "" if there is none.
        description: The description in EXIF (tag 0x010e), or in a text chunk of PNG.
        xmp: The XMP packet; empty if there is none.
    """

    taken: str = ""
    description: str = ""
    xmp: bytes = b""


def read_metadata(stream: BinaryIO) -> PictureMetadata:
    """Return the metadata of the picture file in *stream*; what cannot be read is empty."""
    try:
        plugin = identify(stream.read(HEAD_BYTES)).plugin or ""
        stream.seek(0)
        image = Image.OPEN[plugin][0](stream, "")
        exif = image.getexif()
        details = exif.get_ifd(ExifTags.IFD.Exif)
        xmp = image.info.get("xmp") or exif.get(_TIFF_XMP) or b""
        return PictureMetadata(
            taken=_text(details.get(ExifTags.Base.DateTimeOriginal)),
            description=_text(exif.get(ExifTags.Base.ImageDescription))
            or _text(image.info.get("Description")),
            xmp=xmp if isinstance(xmp, bytes) else _text(xmp).encode("utf-8", "replace"),
        )
    except Exception:
        # Any program may have written the metadata, so Pillow's parser raises nearly every
        # built-in error. A picture with broken metadata is still a picture.
        return PictureMetadata()


def _text(value: object) -> str:
    return value.strip("\0 \t\r\n") if isinstance(value, str) else ""
