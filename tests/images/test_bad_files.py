"""The error of each bad file: damaged, of another kind, or HEIC without its extra."""

from __future__ import annotations

import struct
import sys
import time

import numpy as np
import pytest
from PIL import ExifTags, Image, TiffImagePlugin, features

from idefics_cli.core.errors import ImageError, ImageErrorKind
from idefics_cli.images.formats import identify
from tests.support.pictures import (
    FILE_FORMATS,
    QUADRANTS,
    corners,
    difference,
    encoded,
    noise,
    opened,
    png,
    quadrants,
    refusal,
)

# Cut and damaged files -----------------------------------------------------------------------


@pytest.mark.parametrize("name", FILE_FORMATS)
def test_half_a_file_is_truncated(name: str) -> None:
    format, options = FILE_FORMATS[name]
    data = encoded(noise(300, 200), format, **options)

    error = refusal(data[: len(data) // 2])

    assert error.kind == "truncated"
    assert "cut off or damaged" in str(error)


@pytest.mark.parametrize("name", FILE_FORMATS)
def test_any_beginning_of_a_file_is_an_error_or_the_whole_picture(name: str) -> None:
    format, options = FILE_FORMATS[name]
    data = encoded(noise(), format, **options)
    whole = opened(data)

    refused = 0
    for length in [*range(0, len(data), 17), *range(len(data) - 40, len(data))]:
        try:
            image = opened(data[:length])
        except ImageError:
            refused += 1
        else:
            # A JPEG may lack its last bytes; see `test_salvage.py`.
            off = np.abs(np.asarray(image, np.int64) - np.asarray(whole, np.int64)).mean()
            assert off <= (4 if format == "JPEG" else 0)
    assert refused > 20


def test_a_cut_avif_is_truncated() -> None:
    if not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    data = encoded(noise(300, 200), "AVIF")

    assert refusal(data[: len(data) // 2]).kind == "truncated"


@pytest.mark.parametrize("format", ["GIF", "BMP", "PNG", "JPEG", "TIFF", "WEBP"])
def test_a_signature_alone_is_truncated(format: str) -> None:
    length = 18 if format == "BMP" else 12

    assert refusal(encoded(noise(), format)[:length]).kind == "truncated"


@pytest.mark.parametrize(
    "data",
    [
        png(0, 5, b"", depth=8, colour_type=2),
        b"GIF89a\0\0\0\0\0\0\0;",
        b"P6\n0 5\n255\n",
        b"qoif" + struct.pack(">II", 0, 5) + b"\3\0" + bytes(8),
    ],
    ids=["png", "gif", "ppm", "qoi"],
)
def test_a_picture_without_pixels_is_damaged(data: bytes) -> None:
    assert refusal(data).kind == "truncated"


def test_a_flipped_byte_in_a_png_is_noticed() -> None:
    data = bytearray(encoded(noise(), "PNG"))
    data[len(data) // 2] ^= 0xFF

    assert refusal(bytes(data)).kind == "truncated"


def test_a_tiff_without_its_last_strips_is_not_black_at_the_bottom() -> None:
    data = bytearray(encoded(quadrants(), "TIFF"))
    place = data.index(struct.pack("<HHI", 257, 4, 1))  # the tag for the height
    data[place + 8 : place + 12] = struct.pack("<I", 96)

    assert refusal(bytes(data)).kind == "truncated"


# Other kinds of file --------------------------------------------------------------------------


def ftyp(*brands: bytes) -> bytes:
    size = 8 + 8 + 4 * len(brands[1:])
    head = struct.pack(">I4s4sI", size, b"ftyp", brands[0], 0) + b"".join(brands[1:])
    return head + struct.pack(">I4s", 64, b"meta") + bytes(56)


OTHERS: dict[str, tuple[bytes, ImageErrorKind, str, str]] = {
    # name: bytes, kind, in the message, in the hint
    "empty": (b" "[:0], "missing", "nothing was piped in", "pipe"),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', "unsupported", "an SVG", "render it"),
    "svg-xml": (
        b'\xef\xbb\xbf<?xml version="1.0"?>\n<!-- a\nb -->\n<!DOCTYPE svg>\n<svg width="1">',
        "unsupported",
        "an SVG",
        "render it",
    ),
    "pdf": (b"%PDF-1.7\n%\xe2\xe3\xcf\xd3\n", "unsupported", "a PDF", "pdftoppm"),
    "eps": (b"%!PS-Adobe-3.0 EPSF-3.0\n", "unsupported", "a PostScript", "render it"),
    "html": (b"\n<!DOCTYPE html><html><body><svg>", "not_an_image", "a web page", "or file"),
    "html-utf16": ("<html>".encode("utf-16"), "not_an_image", "a web page", "picture"),
    "text": ("Grüße".encode(), "not_an_image", "text", "supported: JPEG"),
    "json": (b'{"error": "not found"}', "not_an_image", "text", "supported: JPEG"),
    "bm-text": (b"BM is how this sentence begins.", "not_an_image", "text", "supported"),
    "pnm-text": (b"P1 3 open issues\nP2 4 more", "not_an_image", "text", "supported"),
    "pnm-text-2": (b"P1 3 4 open issues", "not_an_image", "text", "supported"),
    "bigtiff-big": (b"MM\0+\0\x08" + bytes(40), "unsupported", "BigTIFF", "convert"),
    "lfs": (b"version https://git-lfs.github.com/spec/v1\n", "not_an_image", "LFS", "git lfs pull"),
    "mp4": (ftyp(b"isom", b"mp42"), "unsupported", "a video", "ffmpeg"),
    "mov": (ftyp(b"qt  "), "unsupported", "a video", "ffmpeg"),
    "webm": (b"\x1a\x45\xdf\xa3" + bytes(40), "unsupported", "a video", "ffmpeg"),
    "avi": (b"RIFF\0\0\0\0AVI LIST", "unsupported", "a video", "ffmpeg"),
    "m4a": (ftyp(b"M4A "), "not_an_image", "a sound", "supported"),
    "mp3": (b"ID3\x03" + bytes(40), "not_an_image", "a sound", "supported"),
    "wav": (b"RIFF\0\0\0\0WAVEfmt ", "not_an_image", "a sound", "supported"),
    "zip": (b"PK\x03\x04" + bytes(40), "not_an_image", "a ZIP", "unpack"),
    "gzip": (b"\x1f\x8b\x08" + bytes(40), "not_an_image", "packed", "unpack"),
    "jxl": (b"\xff\x0a" + bytes(40), "unsupported", "JPEG XL", "convert"),
    "raw-cr2": (b"II*\0\x10\0\0\0CR\x02\0", "unsupported", "raw", "develop"),
    "raw-cr3": (ftyp(b"crx "), "unsupported", "raw", "develop"),
    "raw-raf": (b"FUJIFILMCCD-RAW 0201", "unsupported", "raw", "develop"),
    "exr": (b"\x76\x2f\x31\x01" + bytes(40), "unsupported", "OpenEXR", "convert"),
    "dicom": (bytes(128) + b"DICM" + bytes(9), "unsupported", "DICOM", "convert"),
    "zeros": (bytes(5000), "not_an_image", "not a picture", "supported"),
    "random": (bytes(range(200, 256)) * 9, "not_an_image", "not a picture", "supported"),
}


@pytest.mark.parametrize("name", OTHERS)
def test_a_file_that_is_no_picture_is_told_what_it_is(name: str) -> None:
    data, kind, message, hint = OTHERS[name]

    error = refusal(data)

    assert error.kind == kind
    assert message in str(error)
    assert hint in (error.hint or "")


def test_text_that_is_cut_in_the_middle_of_a_character_is_text() -> None:
    assert refusal("é".encode() * 2047 + b"x" + "é".encode() * 9).kind == "not_an_image"
    assert identify(("x" + "é" * 3000).encode()[:4096]).name == "text"


@pytest.mark.parametrize(
    ("prolog", "root", "name"),
    [
        ("<!-- a -->\n" * 300, "<svg/>", "an SVG drawing"),
        ("<!-- a -->\n" * 300, "<note/>", "text"),
        ("<?a?><!b>" * 400, "<HTML>", "a web page"),
        ("<!-- <html> -->", "<svg/>", "an SVG drawing"),
        ("<!-- a > b -->", "<body>", "a web page"),
        ("<!-- never ends", "<html>", "text"),
        ("<!--" * 1000, "<html>", "text"),
        ("<?" * 2000, "", "text"),
        ("<!DOCTYPE svg [<!ENTITY a 'b'>]>", "<svg/>", "an SVG drawing"),
    ],
)
def test_a_document_is_known_by_its_root_after_any_prolog(
    prolog: str, root: str, name: str
) -> None:
    start = time.thread_time()

    assert identify((prolog + root).encode()).name == name

    assert time.thread_time() - start < 0.1


@pytest.mark.parametrize("tags", [{50706: b"\1\4\0\0"}, {254: 1, 330: 8}], ids=["dng", "nef"])
def test_the_thumbnail_of_a_raw_file_is_not_passed_off_as_the_photo(
    tags: dict[int, object],
) -> None:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for tag, value in tags.items():
        info.tagtype[tag] = {50706: 1, 254: 4, 330: 4}[tag]
        info[tag] = value

    error = refusal(encoded(quadrants(), "TIFF", tiffinfo=info))

    assert (error.kind, "raw" in str(error)) == ("unsupported", True)


# HEIC ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("brands", [(b"heic", b"mif1"), (b"mif1", b"heic"), (b"hevc", b"msf1")])
def test_heic_without_the_extra_names_the_extra(
    brands: tuple[bytes, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)

    error = refusal(ftyp(*brands))

    assert error.kind == "unsupported"
    assert error.hint == "pip install 'idefics-cli[heif]'"


def test_heic_with_the_extra_is_a_picture_like_any_other() -> None:
    pillow_heif = pytest.importorskip("pillow_heif")
    pillow_heif.register_heif_opener()
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    stored = quadrants().transpose(Image.Transpose.ROTATE_90)
    stored.info["exif"] = exif.tobytes()  # the writer stores it as an `irot` box
    data = encoded(stored, "HEIF", quality=95)

    image = opened(data, draft_edge=8)

    assert image.size == (64, 48)
    assert difference(corners(image), QUADRANTS) <= 16
    assert image.info == {"original_size": (64, 48)}
    assert refusal(data[: len(data) // 2]).kind == "truncated"


def test_avif_is_told_apart_from_heic() -> None:
    assert identify(ftyp(b"mif1", b"avif", b"miaf")).plugin == "AVIF"
    assert identify(ftyp(b"avis", b"msf1")).plugin == "AVIF"
    assert identify(ftyp(b"mif1", b"heix")).plugin == "HEIF"
