"""Limits, reduced decoding, and the error of each bad file."""

from __future__ import annotations

import gc
import io
import logging
import os
import struct
import sys
import warnings
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image, TiffImagePlugin, features

from idefics_cli.core.errors import ImageError, ImageErrorKind
from idefics_cli.core.types import Attachment, ImageLimits
from idefics_cli.images.formats import identify
from idefics_cli.images.loader import ImageLoader
from tests.support.pictures import (
    QUADRANTS,
    corners,
    difference,
    encoded,
    noise,
    opened,
    png,
    quadrants,
    with_filter_bytes,
)


def refusal(data: bytes, limits: ImageLimits | None = None) -> ImageError:
    """Return the error for a file with these bytes; it must name the source and have a hint."""
    with pytest.raises(ImageError) as caught:
        opened(data, limits)
    error = caught.value
    assert "`stdin`" in str(error)
    assert error.hint
    assert len(str(error)) < 250
    return error


# Reduced decoding ----------------------------------------------------------------------------


def big_jpeg(mode: str = "RGB", orientation: int = 1) -> bytes:
    picture = quadrants(1600, 1200).convert(mode)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    return encoded(picture, "JPEG", quality=95, exif=exif)


@pytest.mark.parametrize(
    ("draft_edge", "size"),
    [
        (1200, (1600, 1200)),
        (601, (1600, 1200)),
        (600, (800, 600)),
        (300, (400, 300)),
        (299, (400, 300)),
        (150, (200, 150)),
        (1, (200, 150)),
        (5000, (1600, 1200)),
    ],
)
def test_a_big_jpeg_is_reduced_as_far_as_both_sides_allow(
    draft_edge: int, size: tuple[int, int]
) -> None:
    image = opened(big_jpeg(), draft_edge=draft_edge)

    assert image.size == size
    assert image.info == {"original_size": (1600, 1200)}
    assert difference(corners(image), QUADRANTS) <= 4


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK", "YCbCr"])
def test_reduced_and_whole_are_the_same_picture(mode: str) -> None:
    whole, reduced = (opened(big_jpeg(mode), draft_edge=edge) for edge in (None, 300))

    assert reduced.size == (400, 300)
    assert difference(corners(reduced), corners(whole)) <= 2


def test_a_reduced_picture_is_upright_and_knows_its_whole_size() -> None:
    image = opened(big_jpeg(orientation=6), draft_edge=300)

    top_left, top_right, bottom_left, bottom_right = QUADRANTS
    assert image.size == (300, 400)
    assert image.info == {"original_size": (1200, 1600)}
    turned = (bottom_left, top_left, bottom_right, top_right)
    assert difference(corners(image), turned) <= 4


def test_only_jpeg_is_reduced() -> None:
    assert opened(encoded(quadrants(640, 480), "PNG"), draft_edge=10).size == (640, 480)


# Limits --------------------------------------------------------------------------------------


def test_the_pixel_limit_is_inclusive() -> None:
    data = encoded(quadrants(64, 48), "PNG")

    assert opened(data, ImageLimits(max_pixels=64 * 48)).size == (64, 48)
    error = refusal(data, ImageLimits(max_pixels=64 * 48 - 1))
    assert error.kind == "too_large"
    assert str(error) == "`stdin` is too large: 64x48 pixels, the limit is 3071"


@pytest.mark.parametrize("side", [10_001, 15_000, 60_000], ids=["100 MP", "225 MP", "3.6 GP"])
def test_the_header_is_enough_to_refuse_a_bomb(side: int) -> None:
    # The file has no pixels, so decoding it would give `truncated`. Pillow itself would warn of
    # the first size and raise an error for the others.
    data = png(side, side, b"", depth=8, colour_type=2)

    assert refusal(data).kind == "too_large"


def test_a_limit_above_that_of_pillow_is_ours_to_raise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for format in ("PNG", "TIFF", "GIF", "ICO", "WEBP"):
        data = encoded(quadrants(200, 200), format, sizes=[(200, 200)])

        assert opened(data, ImageLimits(max_pixels=40_000)).size == (200, 200)


def test_an_icon_cannot_hide_a_large_picture() -> None:
    ico = bytearray(encoded(quadrants(200, 200), "ICO", sizes=[(200, 200)]))
    ico[6:8] = bytes((16, 16))

    assert refusal(bytes(ico), ImageLimits(max_pixels=10_000)).kind == "too_large"


class Growing(Image.Image):
    """A picture larger than its header, as a decoded HEIC file can be."""

    size = (8, 8)

    def load(self) -> None:
        self.size = (200, 200)


def test_a_picture_that_grows_while_it_is_decoded_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Image.init()
    monkeypatch.setitem(Image.OPEN, "QOI", (lambda stream, name: Growing(), None))

    error = refusal(encoded(noise(), "QOI"), ImageLimits(max_pixels=10_000))

    assert (error.kind, "200x200" in str(error)) == ("too_large", True)


def test_a_small_png_that_unpacks_to_megabytes_of_text_is_refused() -> None:
    bomb = b"Comment\0\0" + zlib.compress(bytes(100_000_000), 9)
    rows = with_filter_bytes(np.zeros((1, 3), np.uint8))

    error = refusal(png(1, 1, rows, depth=8, colour_type=2, extra=[(b"zTXt", bomb)]))

    assert error.kind == "too_large"


# Cut and damaged files -----------------------------------------------------------------------

CUT: dict[str, tuple[str, dict[str, object]]] = {
    "jpeg": ("JPEG", {}),
    "jpeg-progressive": ("JPEG", {"progressive": True}),
    "png": ("PNG", {}),
    "gif": ("GIF", {}),
    "webp": ("WEBP", {}),
    "webp-lossless": ("WEBP", {"lossless": True}),
    "tiff": ("TIFF", {}),
    "tiff-lzw": ("TIFF", {"compression": "tiff_lzw"}),
    "bmp": ("BMP", {}),
    "ppm": ("PPM", {}),
    "qoi": ("QOI", {}),
    "sgi": ("SGI", {}),
    "pcx": ("PCX", {}),
}


@pytest.mark.parametrize("name", CUT)
def test_half_a_file_is_truncated(name: str) -> None:
    format, options = CUT[name]
    data = encoded(noise(300, 200), format, **options)

    error = refusal(data[: len(data) // 2])

    assert error.kind == "truncated"
    assert "cut off or damaged" in str(error)


@pytest.mark.parametrize("name", CUT)
def test_any_beginning_of_a_file_is_an_error_or_the_whole_picture(name: str) -> None:
    format, options = CUT[name]
    data = encoded(noise(), format, **options)
    whole = opened(data)

    refused = 0
    for length in [*range(0, len(data), 17), *range(len(data) - 40, len(data))]:
        try:
            image = opened(data[:length])
        except ImageError:
            refused += 1
        else:
            assert difference(image, whole) == 0
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


# Quiet, closed, from many threads --------------------------------------------------------------


def test_a_broken_tiff_adds_no_line_of_its_own(capfd: pytest.CaptureFixture[str]) -> None:
    data = bytearray(encoded(noise(), "TIFF", compression="tiff_adobe_deflate"))
    # The first strip begins right after the 8 bytes of the header.
    data[12:60] = bytes(48)

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert refusal(bytes(data)).kind == "truncated"

    assert not caught
    assert capfd.readouterr() == ("", "")


def test_an_odd_tiff_logs_nothing_to_stderr(
    capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.root, "handlers", [])  # as in the command; pytest differs
    info = TiffImagePlugin.ImageFileDirectory_v2()
    data = bytearray(encoded(quadrants(), "TIFF", tiffinfo=info))
    # Tag 277, samples per pixel: Pillow logs that it cannot decode this number.
    place = data.index(struct.pack("<HHI", 277, 3, 1))
    data[place + 8 : place + 10] = struct.pack("<H", 32_515)

    refusal(bytes(data))

    assert capfd.readouterr() == ("", "")


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs /proc")
@pytest.mark.parametrize("format", ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "ICO", "MPO"])
def test_files_are_closed_whether_they_open_or_not(format: str, tmp_path: Path) -> None:
    data = encoded(noise(64, 64), format)
    (tmp_path / "good").write_bytes(data)
    (tmp_path / "cut").write_bytes(data[: len(data) // 2])
    (tmp_path / "head").write_bytes(data[:24])
    loader = ImageLoader(ImageLimits())
    gc.collect()  # frees objects of earlier tests, such as mapped weights, before the count
    before = len(os.listdir("/proc/self/fd"))
    # The pictures and errors outlive the call; their files must not.
    kept: list[object] = []

    for _ in range(3):
        for name in ("good", "cut", "head"):
            try:
                kept.append(loader.open(Attachment(str(tmp_path / name))))
            except ImageError as error:
                kept.append(error)
        gc.collect()

    assert len(kept) == 9
    assert len(os.listdir("/proc/self/fd")) == before


def test_many_threads_get_what_one_gets(tmp_path: Path) -> None:
    sources = ["-"]
    for index, (format, options) in enumerate(CUT.values()):
        path = tmp_path / f"{index}.bin"
        data = encoded(noise(200 + index, 150), format, **options)
        path.write_bytes(data if index % 3 else data[: len(data) // 2])
        sources.append(str(path))
    stdin = encoded(quadrants(), "PNG")

    def outcome(loader: ImageLoader, source: str) -> bytes | str:
        try:
            return loader.open(Attachment(source), draft_edge=64).tobytes()
        except ImageError as error:
            return f"{error.kind}: {error}"

    alone = ImageLoader(ImageLimits(), stdin=io.BytesIO(stdin))
    expected = [outcome(alone, source) for source in sources]
    shared = ImageLoader(ImageLimits(), stdin=io.BytesIO(stdin))
    with ThreadPoolExecutor(8) as threads:
        got = list(threads.map(lambda source: outcome(shared, source), sources * 6))

    assert got == expected * 6
    assert any(isinstance(result, str) for result in expected)


class Failure(Exception):
    """An error that Pillow does not document."""


@pytest.mark.parametrize(
    ("raised", "kind"),
    [
        (lambda: MemoryError(), "too_large"),
        (lambda: Failure("odd\x1b[31m\n" + "x" * 999), "truncated"),
        (lambda: RecursionError("maximum recursion depth"), "truncated"),
        (lambda: NotImplementedError("unsupported dialect"), "unsupported"),
        (lambda: struct.error("unpack"), "truncated"),
    ],
    ids=["memory", "unknown", "recursion", "unsupported", "struct"],
)
def test_whatever_a_plugin_raises_is_an_image_error(
    raised: Callable[[], Exception], kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def plugin(stream: object, name: object) -> Image.Image:
        raise raised()

    Image.init()
    monkeypatch.setitem(Image.OPEN, "QOI", (plugin, None))

    error = refusal(encoded(noise(), "QOI"))

    assert error.kind == kind
    assert str(error).isprintable()
