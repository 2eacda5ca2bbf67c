"""Reduced decoding, limits, and a loader that is quiet and closes its files."""

from __future__ import annotations

import gc
import io
import logging
import os
import struct
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from PIL import ExifTags, Image, TiffImagePlugin

from idefics_cli.core.errors import ImageError
from idefics_cli.core.types import Attachment, ImageLimits
from idefics_cli.images.loader import ImageLoader
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

    assert len(kept) == 9
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) == before


def test_many_threads_get_what_one_gets(tmp_path: Path) -> None:
    sources = ["-"]
    for index, (format, options) in enumerate(FILE_FORMATS.values()):
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
