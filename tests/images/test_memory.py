"""Memory and time of decoding are bounded, whatever the files are."""

from __future__ import annotations

import io
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import ExifTags, Image

from idefics_cli.core.errors import ImageError
from idefics_cli.core.types import Attachment, ImageLimits
from idefics_cli.images.loader import ImageLoader
from idefics_cli.images.memory import MemoryBudget
from tests.support.pictures import (
    QUADRANTS,
    corners,
    difference,
    encoded,
    noise,
    opened,
    quadrants,
    refusal,
)


def test_a_budget_lets_in_what_fits_and_serves_in_order() -> None:
    budget = MemoryBudget(100)
    order: list[str] = []
    inside = threading.Event()

    def take(name: str, count: int | None) -> None:
        with budget.reserve(count):
            order.append(name)
            inside.set()

    with budget.reserve(60), budget.reserve(40):
        large = threading.Thread(target=take, args=("large", 1000))
        large.start()
        time.sleep(0.05)
        small = threading.Thread(target=take, args=("small", 1))
        small.start()
        time.sleep(0.05)
        assert not inside.is_set()
    large.join(5)
    small.join(5)

    assert order == ["large", "small"]
    with budget.reserve(None):  # all of it is free again
        pass


def test_a_budget_is_free_again_after_an_error() -> None:
    budget = MemoryBudget(10)
    with pytest.raises(MemoryError), budget.reserve(10):
        raise MemoryError
    with budget.reserve(10):
        pass


class Hungry(Image.Image):
    """A picture that finds memory at its second attempt only."""

    attempts = 0
    size = (64, 48)
    format = "QOI"

    def load(self) -> None:
        type(self).attempts += 1
        if type(self).attempts < 2:
            raise MemoryError
        self.im = quadrants().im
        self._mode = "RGB"


def test_a_picture_that_lost_a_race_for_memory_is_tried_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Image.init()
    monkeypatch.setattr(Hungry, "attempts", 0)
    monkeypatch.setitem(Image.OPEN, "QOI", (lambda stream, name: Hungry(), None))
    stream = io.BytesIO(encoded(noise(), "QOI"))
    loader = ImageLoader(ImageLimits(), stdin=stream, memory=MemoryBudget(10))

    assert corners(loader.open(Attachment("-"))) == list(QUADRANTS)
    assert Hungry.attempts >= 2


LARGE = (8000, 4200)  # 33.6 million pixels


@pytest.fixture
def large_from_2_million(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let pictures be large from 2 million pixels on; to encode 32 million takes seconds."""
    for module in ("loader", "pixels"):
        monkeypatch.setattr(f"idefics_cli.images.{module}.LARGE_PIXELS", 2_000_000)


def large(mode: str, size: tuple[int, int]) -> Image.Image:
    """Return `quadrants` enlarged, in *mode*; with alpha, the first quarter is clear."""
    image = quadrants(*size)
    if "A" in mode or mode == "P":
        image.putalpha(255)
        image.paste((0, 0, 0, 0), (0, 0, size[0] // 2, size[1] // 2))
        return image.quantize(8) if mode == "P" else image
    return image.convert(mode)


@pytest.mark.parametrize(
    ("mode", "format", "options"),
    [
        ("RGB", "PNG", {}),
        ("RGBA", "PNG", {}),
        ("P", "PNG", {}),
        ("RGBA", "WEBP", {"lossless": True, "method": 0}),
        ("RGB", "WEBP", {"lossless": True, "method": 0}),
        ("CMYK", "JPEG", {"quality": 95}),
    ],
)
def test_a_large_picture_is_reduced_and_looks_the_same(
    mode: str, format: str, options: dict[str, object], large_from_2_million: None
) -> None:
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    image = large(mode, (2000, 1200))  # converted in three bands
    data = encoded(image, format, compress_level=1, exif=exif, **options)

    whole, reduced = (opened(data, draft_edge=edge) for edge in (None, 1000))

    assert (whole.size, reduced.size) == ((1200, 2000), (600, 1000))
    assert whole.info == reduced.info == {"original_size": (1200, 2000)}
    first = (255, 255, 255) if "A" in mode or mode == "P" else QUADRANTS[0]
    # Turned by a quarter: bottom left, top left, bottom right, top right.
    expected = [QUADRANTS[2], first, QUADRANTS[3], QUADRANTS[1]]
    for seen in (whole, reduced):
        assert difference(corners(seen), expected) <= 4
    assert reduced.getpixel((299, 499)) != reduced.getpixel((300, 499))


@pytest.mark.parametrize(("levels", "tiles"), [(6, None), (1, None), (3, (512, 512))])
def test_a_large_jpeg_2000_is_reduced_by_its_decoder(
    levels: int, tiles: tuple[int, int] | None, large_from_2_million: None
) -> None:
    size = (2000, 1040)
    options: dict[str, object] = {"num_resolutions": levels, "irreversible": False}
    if tiles:
        options["tile_size"] = tiles
    data = encoded(quadrants(*size), "JPEG2000", **options)

    reduced = opened(data, draft_edge=1000)

    assert reduced.size == (1000, 520)
    assert reduced.info["original_size"] == size
    assert difference(corners(reduced), QUADRANTS) <= 4
    assert reduced.getpixel((499, 259)) != reduced.getpixel((500, 260))


@pytest.mark.parametrize("size", [(2_100_000, 1), (1, 750_000), (2, 562_500)])
def test_a_line_of_pixels_is_reduced_too(size: tuple[int, int], large_from_2_million: None) -> None:
    reduced = opened(encoded(Image.new("1", size, 1), "PNG"), draft_edge=100)

    assert reduced.info["original_size"] == size
    assert max(reduced.size) < max(size)
    assert reduced.getextrema() == ((255, 255),) * 3


def test_a_picture_that_no_one_will_reduce_stays_whole(large_from_2_million: None) -> None:
    data = encoded(Image.new("1", (2000, 1200)), "PNG")

    assert opened(data).size == opened(data, draft_edge=1001).size == (2000, 1200)


def test_floats_of_a_large_picture_have_one_range(large_from_2_million: None) -> None:
    values = np.zeros((1200, 2000), np.float32)
    values[0, 0], values[-1, -1] = 1000, 500

    image = opened(encoded(Image.fromarray(values), "TIFF", compression="tiff_deflate"))

    assert image.getpixel((0, 0)) == (255, 255, 255)
    assert image.getpixel((1999, 1199)) == (128, 128, 128)
    assert image.getpixel((1, 1)) == (0, 0, 0)


PEAK_OF_FOUR_READERS = """
import re, sys, threading
from pathlib import Path
from idefics_cli.core.types import Attachment, ImageLimits
from idefics_cli.images.loader import ImageLoader
def peak():  # not ru_maxrss, which begins with the peak of the parent
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])
loader = ImageLoader(ImageLimits())
loader.open(Attachment(sys.argv[2]))
before = peak()
images = []
def read():
    images.append(loader.open(Attachment(sys.argv[1]), draft_edge=2000))
readers = [threading.Thread(target=read) for _ in range(4)]
for reader in readers: reader.start()
for reader in readers: reader.join()
assert len(images) == 4
print(peak() - before)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the unit is that of Linux")
@pytest.mark.parametrize(
    ("mode", "format", "most"),
    [("RGBA", "WEBP", 24), ("F", "TIFF", 23), ("RGBA", "PNG", 20), ("P", "PNG", 12)],
)
def test_four_readers_take_the_memory_of_little_more_than_one_large_picture(
    mode: str, format: str, most: int, tmp_path: Path
) -> None:
    options: dict[str, object] = (
        {"lossless": True, "method": 0} if format == "WEBP" else {"compress_level": 1}
    )
    if format == "TIFF":
        options = {"compression": "tiff_deflate"}
    Image.new(mode, LARGE).save(tmp_path / "large", format, **options)
    quadrants().save(tmp_path / "small", format)

    output = subprocess.check_output(
        [sys.executable, "-c", PEAK_OF_FOUR_READERS, tmp_path / "large", tmp_path / "small"]
    )

    # Measured: 17, 16, 14 and 7 bytes a pixel; 42, 31, 26 and 17 with copies of whole pictures.
    assert int(output) * 1024 / (LARGE[0] * LARGE[1]) < most


def with_scans(count: int) -> bytes:
    """Return a progressive JPEG whose last scan is there *count* times."""
    data = encoded(quadrants(), "JPEG", progressive=True)
    last = data.rindex(b"\xff\xda")
    return data[:last] + data[last:-2] * count + data[-2:]


def test_a_jpeg_of_thousands_of_scans_is_refused_at_once() -> None:
    data = with_scans(3500)
    start = time.monotonic()

    error = refusal(data)

    assert (error.kind, "scans" in str(error)) == ("unsupported", True)
    assert time.monotonic() - start < 5


def segment(marker: int, body: bytes) -> bytes:
    return struct.pack(">BBH", 0xFF, marker, len(body) + 2) + body


def sequential_with_scans(count: int) -> bytes:
    """Return a JPEG of 8x8 grey pixels that is not progressive, with scans of one component."""
    tables = segment(0xDB, b"\0" + b"\1" * 64)
    tables += segment(0xC0, struct.pack(">BHHB", 8, 8, 8, 3) + b"\1\x11\0\2\x11\0\3\x11\0")
    # One code of one bit: a difference of 0, and the end of the block.
    tables += b"".join(segment(0xC4, bytes([kind, 1, *[0] * 15, 0])) for kind in (0x00, 0x10))
    scans = [segment(0xDA, bytes([1, 1 + i % 3, 0, 0, 63, 0])) + b"\x3f" for i in range(count)]
    return b"\xff\xd8" + tables + b"".join(scans) + b"\xff\xd9"


def test_a_sequential_jpeg_of_thousands_of_scans_is_refused_too() -> None:
    assert opened(sequential_with_scans(3)).getpixel((4, 4)) == (128, 128, 128)

    error = refusal(sequential_with_scans(3000))

    assert (error.kind, "scans" in str(error)) == ("unsupported", True)


def bmp_with_runs() -> bytes:
    """Return a BMP of 64x48 pixels whose rows are compressed."""
    rows = b"".join(b"\x40\x05\0\0" for _ in range(48)) + b"\0\1"
    head = struct.pack("<IiiHHIIiiII", 40, 64, 48, 1, 8, 1, len(rows), 0, 0, 256, 0)
    head += bytes(1024)
    return (
        b"BM" + struct.pack("<IHHI", 14 + len(head) + len(rows), 0, 0, 14 + len(head)) + head + rows
    )


@pytest.mark.parametrize(
    "data",
    [
        encoded(noise(), "JPEG"),
        encoded(noise(), "JPEG", progressive=True),
        encoded(noise(), "QOI"),
        b"P3 2 2 255 " + b"1 2 3 " * 4,
        bmp_with_runs(),
    ],
    ids=["JPEG", "progressive JPEG", "QOI", "plain PNM", "BMP with runs"],
)
def test_a_picture_has_a_time_limit(data: bytes) -> None:
    def opened_within(seconds: float) -> Image.Image:
        loader = ImageLoader(ImageLimits(), stdin=io.BytesIO(data), decode_seconds=seconds)
        return loader.open(Attachment("-"))

    assert opened_within(60)
    with pytest.raises(ImageError, match="takes longer than 0 s") as caught:
        opened_within(0)
    assert caught.value.kind == "unsupported"
