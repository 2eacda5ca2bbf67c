"""Memory and time of decoding are bounded, whatever the files are."""

from __future__ import annotations

import io
import struct
import threading
import time

import pytest
from PIL import Image

from idefics_cli.core.errors import ImageError
from idefics_cli.core.types import Attachment, ImageLimits
from idefics_cli.images.loader import ImageLoader
from idefics_cli.images.memory import MemoryBudget
from tests.support.pictures import QUADRANTS, corners, encoded, noise, opened, quadrants, refusal


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
