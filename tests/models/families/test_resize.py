"""Pictures that we scale down ourselves give the tiles of transformers."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.models.families import idefics1, idefics2, idefics3
from idefics_cli.models.families.base import Family
from idefics_cli.models.families.idefics2 import strip_padding
from idefics_cli.models.families.protocols import ImageProcessor
from idefics_cli.models.families.resize import shrink
from tests.support import tiny
from tests.support.pixels import pixel_values
from tests.support.prompts import open_engine

# (width, height): larger and smaller than the input of the tiny models, odd, and elongated.
SIZES = (
    *((640, 480), (333, 901), (1001, 999), (70, 70), (71, 69), (40, 30), (5, 4), (900, 4)),
    *((4, 900), (200, 199), (141, 280)),
)


@pytest.fixture(scope="module")
def family_of(checkpoint: Callable[[str], Path]) -> Iterator[Callable[[str], Family]]:
    made: dict[str, LocalEngine] = {}

    def get(kind: str) -> Family:
        if kind not in made:
            made[kind] = open_engine(checkpoint(kind), kind)
        return made[kind].loaded.family

    yield get
    for engine in made.values():
        engine.close()


def noise(size: tuple[int, int]) -> Image.Image:
    return Image.frombytes("RGB", size, random.Random(0).randbytes(size[0] * size[1] * 3))


def library_tiles(family: Family, image: Image.Image) -> list[Tensor]:
    encoded = family.processor.image_processor([[image]], return_tensors="pt")
    if isinstance(encoded, Mapping):
        return strip_padding(encoded)
    return list(encoded)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("kind", tiny.CHATTING)
def test_tiles_are_those_of_the_library_to_the_bit(
    kind: str, size: tuple[int, int], family_of: Callable[[str], Family]
) -> None:
    family, image = family_of(kind), noise(size)
    expected = library_tiles(family, image)
    got = family.preprocess(image)
    assert got.picture.size == size
    assert got.picture.tile_sizes == tuple((tile.shape[1], tile.shape[2]) for tile in expected)
    assert all(map(torch.equal, pixel_values(got), expected))
    assert {tile.dtype for tile in got.tiles} == {torch.uint8}


def test_a_processor_whose_pixels_are_no_bytes_finishes_the_tiles(
    family_of: Callable[[str], Family], monkeypatch: pytest.MonkeyPatch
) -> None:
    family, image = family_of("idefics"), noise((90, 70))
    processor = type(family.processor.image_processor)
    resize = processor.resize  # type: ignore[attr-defined]  # of the library, not of the protocol

    def resized(self: object, *arguments: Any, **options: Any) -> Any:
        return resize(self, *arguments, **options).astype(np.float32) + 0.25

    monkeypatch.setattr(processor, "resize", resized)
    expected = library_tiles(family, image)
    got = family.preprocess(image)
    assert [tile.dtype for tile in got.tiles] == [torch.float32]
    assert all(map(torch.equal, got.tiles, expected))
    assert all(map(torch.equal, pixel_values(got), expected))


@pytest.mark.parametrize("kind", tiny.CHATTING)
def test_a_large_picture_reaches_the_library_small(
    kind: str, family_of: Callable[[str], Family], monkeypatch: pytest.MonkeyPatch
) -> None:
    family = family_of(kind)
    module = {"idefics": idefics1, "idefics2": idefics2}.get(kind.partition("-")[0], idefics3)
    shrunk_to: list[tuple[int, int]] = []

    def watched(
        image: Image.Image,
        processor: ImageProcessor,
        scaled: Callable[[int, int], tuple[int, int]],
    ) -> Image.Image:
        shrunk_to.append((made := shrink(image, processor, scaled)).size)
        return made

    monkeypatch.setattr(module, "shrink", watched)
    tiles = family.preprocess(noise((1200, 900))).picture.tile_sizes
    assert len(shrunk_to) in (1, 5)
    assert all(width <= 300 and height <= 300 for width, height in shrunk_to), shrunk_to
    if len(shrunk_to) == len(tiles):
        assert [(height, width) for width, height in shrunk_to] == list(tiles)


def test_an_equal_picture_is_recalled_with_its_own_size_and_another_is_not(
    family_of: Callable[[str], Family],
) -> None:
    family, image = family_of("idefics2"), Image.new("RGB", (700, 700), "red")
    other = image.copy()
    other.info["original_size"] = (1400, 1400)
    first = family.preprocess(image)
    known = {first.picture.digest: first}
    again = family.preprocess(other, known.get)
    assert (again.picture.digest, again.picture.size) == (first.picture.digest, (1400, 1400))
    assert again.tiles is first.tiles
    other.paste("blue", (0, 0, 300, 300))
    assert family.preprocess(other, known.get).tiles is not first.tiles


def test_a_processor_that_would_scale_once_more_gets_the_whole_picture(
    family_of: Callable[[str], Family],
) -> None:
    processor, image = family_of("idefics2").processor.image_processor, noise((100, 100))
    assert shrink(image, processor, lambda height, width: (height // 2, width // 2)) is image
    assert shrink(image, processor, lambda height, width: (50, 50)).size == (50, 50)
    assert shrink(image, processor, lambda height, width: (200, 200)) is image
