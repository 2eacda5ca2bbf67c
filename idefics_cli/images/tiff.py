"""Corrections for TIFF files that Pillow misreads, and the choice of the page to show."""

from __future__ import annotations

from PIL import ImagePalette, TiffImagePlugin

from idefics_cli.images.facts import PixelFacts, RareKind
from idefics_cli.images.pillow_setup import has_tiff_codec

# Numbers of tags and their values, from TIFF 6.0, section 8, and Adobe's technical notes.
_SUBFILE_TYPE, _HEIGHT, _BITS, _COMPRESSION, _PHOTOMETRIC = 254, 257, 258, 259, 262
_SAMPLES, _STRIP_BYTES, _PLANAR, _COLOR_MAP, _INK_SET = 277, 279, 284, 320, 332
_SAMPLE_FORMAT, _SUBSAMPLING, _REFERENCE = 339, 530, 532
_WHITE_IS_ZERO, _SEPARATED, _YCBCR = 0, 5, 6
_IN_PLANES, _SIGNED, _CMYK_INKS = 2, 2, 1
_REDUCED, _MASK = 1, 4  # bits of the subfile type
_HEADER_BYTES = 8
_MOST_PAGES = 32


class MissingRows(Exception):
    """Raised for a file whose last strips are missing. Pillow would leave them black."""


def read_tiff_facts(image: TiffImagePlugin.TiffImageFile) -> PixelFacts:
    """Do for a TIFF file what `header.read_facts` does.

    Raises:
        RareKind: If the decoded pixels would be wrong.
        MissingRows: If strips are missing.
    """
    tags = image.tag_v2
    _find_picture(image)
    _refuse_rare(image)
    _check_rows(image)
    _widen_color_map(image)
    if tags.get(_PLANAR) == _IN_PLANES:
        _correct_planes(image)
    _correct_order(image)
    bits = _first(tags.get(_BITS), 1)
    if bits == 12:
        _correct_stride(image)
    return PixelFacts(
        is_white_zero=tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO and image.mode[0] in "IF",
        grey_bits=bits if bits in (12, 16) else 16,
        is_unsigned=_first(tags.get(_SAMPLE_FORMAT), 1) == 1 and bits == 32,
    )


def _first(value: object, default: int) -> int:
    value = value[0] if isinstance(value, tuple) and value else value
    return value if isinstance(value, int) else default


def _find_picture(image: TiffImagePlugin.TiffImageFile) -> None:
    """Go to the first page that is neither a thumbnail nor a mask, if there is one."""
    if not _is_auxiliary(image):
        return
    for page in range(1, _MOST_PAGES):
        try:
            image.seek(page)
        except Exception:  # no more pages, or a broken one
            break
        if not _is_auxiliary(image):
            return
    image.seek(0)


def _is_auxiliary(image: TiffImagePlugin.TiffImageFile) -> bool:
    kind = image.tag_v2.get(_SUBFILE_TYPE, 0)
    return isinstance(kind, int) and bool(kind & (_REDUCED | _MASK))


def _refuse_rare(image: TiffImagePlugin.TiffImageFile) -> None:
    tags = image.tag_v2
    compression = tags.get(_COMPRESSION, 1)
    if image.use_load_libtiff and not has_tiff_codec(compression):
        raise RareKind(f"with {image.info.get('compression', 'unknown')} compression")
    photometric = tags.get(_PHOTOMETRIC)
    if photometric == _SEPARATED and tags.get(_INK_SET, _CMYK_INKS) != _CMYK_INKS:
        raise RareKind("with inks other than CMYK")
    is_raw = tags.get(_COMPRESSION, 1) == 1
    if photometric == _YCBCR and is_raw and tags.get(_SUBSAMPLING, (2, 2)) != (1, 1):
        raise RareKind("with subsampled colours")
    if photometric == _YCBCR and is_raw and not _is_full_range(tags.get(_REFERENCE)):
        raise RareKind("with colours of video range")
    # Pillow 12 and earlier read four bytes for each pixel, although the file has three.
    if photometric == _YCBCR and is_raw and image.mode != "YCbCr":
        raise RareKind("with uncompressed YCbCr colours")
    if image.mode == "L" and _first(tags.get(_SAMPLE_FORMAT), 1) == _SIGNED:
        raise RareKind("with signed samples")


def _is_full_range(reference: object) -> bool:
    """Return whether luma is from 0 to 255, by the tag `ReferenceBlackWhite`."""
    if not isinstance(reference, tuple) or len(reference) < 2:
        return True
    return abs(float(reference[0])) < 8 and abs(float(reference[1]) - 255) < 8


def _check_rows(image: TiffImagePlugin.TiffImageFile) -> None:
    # The tag gives the stored height. `image.height` is the height of the upright picture.
    height = int(image.tag_v2[_HEIGHT])
    bottom = max((tile.extents[3] for tile in image.tile if tile.extents), default=0)
    if bottom < height:
        raise MissingRows(f"only {bottom} of {height} rows")
    # Some programs write no data for a strip without content, and give it the offset 0. Without
    # compression, Pillow would read such a strip from the header, which is at offset 0.
    if not image.use_load_libtiff and any(tile.offset < _HEADER_BYTES for tile in image.tile):
        raise MissingRows("a part has no data")


def _widen_color_map(image: TiffImagePlugin.TiffImageFile) -> None:
    # The values of a colour map have 16 bits. Some programs write 8 bits, which Pillow cuts to 0.
    values = image.tag_v2.get(_COLOR_MAP)
    if image.mode in ("P", "PA") and values and max(values) < 256:
        image.palette = ImagePalette.raw("RGB;L", bytes(values))


# libtiff returns samples in the order of bytes of this machine. For these raw modes, Pillow still
# assumes the order of the file.
_NATIVE = {
    "F;32F": "F;32NF",
    "F;32BF": "F;32NF",
    "I;16S": "I;16NS",
    "I;16BS": "I;16NS",
    "I;32": "I;32N",
    "I;32B": "I;32N",
    "I;32S": "I;32NS",
    "I;32BS": "I;32NS",
}


def _correct_order(image: TiffImagePlugin.TiffImageFile) -> None:
    if image.use_load_libtiff:
        image.tile = [
            tile._replace(args=(_NATIVE.get(tile.args[0], tile.args[0]), *tile.args[1:]))
            if isinstance(tile.args, tuple)
            else tile
            for tile in image.tile
        ]


def _correct_stride(image: TiffImagePlugin.TiffImageFile) -> None:
    # By the standard, a row of 12-bit samples ends at a whole byte. Some programs end it at a whole
    # pair of samples, which is 3 bytes.
    counts, (width, _) = image.tag_v2.get(_STRIP_BYTES), image.size
    stride = (width + 1) // 2 * 3
    if counts and not image.use_load_libtiff and sum(counts) == stride * image.tag_v2[_HEIGHT]:
        image.tile = [tile._replace(args=("I;12", stride, 1)) for tile in image.tile]


def _correct_planes(image: TiffImagePlugin.TiffImageFile) -> None:
    """Correct the raw modes of a file that stores each channel as a separate plane.

    For each plane, Pillow takes one letter of the raw mode of a pixel, which lacks the depth.
    """
    if image.use_load_libtiff:
        return
    bits, samples = _first(image.tag_v2.get(_BITS), 1), image.tag_v2.get(_SAMPLES, 1)
    if samples == 1:
        # With one channel, a plane is the same as interleaved samples, which Pillow reads
        # correctly.
        image.tag_v2[_PLANAR] = 1
        image._setup()
    elif bits == 16 and image.mode in ("RGB", "RGBA"):
        suffix = ";16B" if image.tag_v2.prefix == b"MM" else ";16L"
        image.tile = [
            tile._replace(args=(tile.args[0] + suffix, *tile.args[1:]))
            if isinstance(tile.args, tuple)
            else tile
            for tile in image.tile
        ]
    elif bits != 8:
        raise RareKind(f"with {bits} bits a sample, in planes")
