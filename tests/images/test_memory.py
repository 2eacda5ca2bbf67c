"""Memory and time of decoding are bounded, whatever the files are."""

from __future__ import annotations

import io
import threading
import time

import pytest
from PIL import Image

from idefics_cli.core.types import Attachment, ImageLimits
from idefics_cli.images.loader import ImageLoader
from idefics_cli.images.memory import MemoryBudget
from tests.support.pictures import QUADRANTS, corners, encoded, noise, quadrants, refusal


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


def test_a_picture_has_a_time_limit() -> None:
    loader = ImageLoader(
        ImageLimits(),
        stdin=io.BytesIO(encoded(noise(), "JPEG", progressive=True)),
        decode_seconds=0,
    )

    with pytest.raises(Exception, match="takes longer than 0 s") as caught:
        loader.open(Attachment("-"))
    assert getattr(caught.value, "kind", "") == "unsupported"
