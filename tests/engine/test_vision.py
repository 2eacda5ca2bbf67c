"""Pictures are encoded once, without wasteful padding, and found again by their content."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol, cast

import pytest
import torch
from PIL import Image
from torch import Tensor

from idefics_cli.core.types import (
    Attachment,
    Completion,
    GenerationRequest,
    Message,
    Sampling,
    TokenChunk,
)
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.local.inference import Inference
from idefics_cli.engine.local.tuning import Tuning
from idefics_cli.engine.local.vision.encoding import PictureEncoder
from idefics_cli.engine.local.vision.tiles import ForwardCost
from idefics_cli.engine.protocol import Outcome, Prepared
from idefics_cli.models.families.base import Family
from idefics_cli.models.families.idefics1 import Idefics1
from idefics_cli.models.families.idefics2 import Idefics2, TemplateFamily
from idefics_cli.models.families.picture import PictureTensors
from idefics_cli.models.families.protocols import Model
from idefics_cli.models.kernels import attention as cpu_attention
from idefics_cli.models.loading.loader import Loaded
from tests.support import tiny
from tests.support.asked import Asked
from tests.support.prompts import as_attachment, open_engine, picture, reopen

Sizes = Sequence[tuple[int, int]] | None
EngineOf = Callable[[str], LocalEngine]


@pytest.fixture
def engine_of(checkpoint: Callable[[str], Path]) -> Iterator[EngineOf]:
    made: list[LocalEngine] = []

    def get(kind: str) -> LocalEngine:
        made.append(open_engine(checkpoint(kind), kind))
        return made[-1]

    yield get
    for engine in made:
        engine.close()


def asked(engine: LocalEngine, *images: Image.Image, text: str = "What is it?") -> Prepared:
    parts: tuple[str | Attachment, ...] = (*map(as_attachment, images), text)
    request = GenerationRequest((Message("user", parts),), Sampling(max_new_tokens=5))
    return Prepared(request, tuple(engine.preprocess(image) for image in images))


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """The count, height and width of the tiles of every forward of a vision encoder."""
    seen: list[tuple[int, int, int]] = []

    def watch(cls: type[Family]) -> None:
        encode_tiles = cls.encode_tiles

        def watched(self: Family, model: Model, tiles: Tensor, sizes: Sizes = None) -> Tensor:
            seen.append((tiles.shape[0], tiles.shape[2], tiles.shape[3]))
            return encode_tiles(self, model, tiles, sizes)

        monkeypatch.setattr(cls, "encode_tiles", watched)

    watch(Idefics1)
    watch(Idefics2)
    watch(TemplateFamily)
    return seen


def encode(loaded: Loaded, *pictures: PictureTensors, **options: Any) -> dict[bytes, Tensor]:
    """Return the features of *pictures* by digest; *options* are those of `PictureEncoder`."""
    found = PictureEncoder(loaded.model, loaded.family, **options).encode(pictures)
    assert found is not None
    return found


def set_attention(loaded: Loaded, name: str) -> None:
    cast("HasAttention", loaded.model).set_attn_implementation(name)


class HasAttention(Protocol):
    """A model of transformers whose attention can be changed."""

    def set_attn_implementation(self, name: str) -> None: ...


@pytest.mark.parametrize("kind", tiny.CHATTING)
def test_a_picture_is_encoded_once_however_often_it_is_shown(
    kind: str, engine_of: EngineOf, batches: list[tuple[int, int, int]]
) -> None:
    engine = engine_of(kind)
    first = picture(0)
    tiles = len(engine.preprocess(first).tile_sizes)
    engine.complete([asked(engine, first, first), asked(engine, first.copy(), text="And?")])
    assert sum(count for count, _, _ in batches) == tiles
    engine.complete([asked(engine, first, text="A question about it")])
    list(engine.stream(asked(engine, first, picture(1))))
    assert sum(count for count, _, _ in batches) == tiles + len(
        engine.loaded.family.preprocess(picture(1)).tiles
    )


def test_tiles_of_one_size_run_together_and_none_is_padded_where_that_costs_more(
    engine_of: EngineOf, batches: list[tuple[int, int, int]]
) -> None:
    tuning = Tuning(vision_cost=ForwardCost(0))
    with reopen(engine_of("idefics2-split"), partial(Inference, tuning=tuning)) as engine:
        square, turned = picture(2), picture(2).rotate(90)
        assert square.size == (64, 64)
        # The tiles are four quarters and the whole picture, and none of them is scaled.
        engine.complete([asked(engine, square, turned), asked(engine, square.rotate(180))])
    assert sorted(batches) == [(3, 64, 64), (12, 32, 32)]


def test_tiles_of_a_small_model_run_together_whatever_their_size(
    engine_of: EngineOf, batches: list[tuple[int, int, int]]
) -> None:
    engine = engine_of("idefics2-split")
    engine.complete([asked(engine, picture(2)), asked(engine, picture(0))])
    ((count, height, width),) = batches
    sizes = [size for i in (0, 2) for size in engine.preprocess(picture(i)).tile_sizes]
    assert len(set(sizes)) > 2
    assert (count, height, width) == (len(sizes), *map(max, zip(*sizes, strict=True)))


@pytest.fixture
def submitted_together() -> Callable[[LocalEngine, int], list[Completion]]:
    """Answers requests about so many pictures, all of which wait before the first one runs."""

    def answer(engine: LocalEngine, count: int) -> list[Completion]:
        has_begun, may_go_on = threading.Event(), threading.Event()

        def listen(event: TokenChunk | Outcome) -> None:
            has_begun.set()
            may_go_on.wait(60)

        engine.submit(asked(engine), listen, streams=True)
        assert has_begun.wait(60)
        # The inference thread stands still in the listener.
        waiting = [Asked(engine, asked(engine, picture(number))) for number in range(count)]
        may_go_on.set()
        return [each.completion() for each in waiting]

    return answer


@pytest.mark.parametrize(("overhead", "counts"), [(5e7, [4, 2]), (0, [1] * 6)])
def test_small_pictures_of_waiting_requests_are_encoded_with_the_next_one(
    overhead: float,
    counts: list[int],
    engine_of: EngineOf,
    batches: list[tuple[int, int, int]],
    submitted_together: Callable[[LocalEngine, int], list[Completion]],
) -> None:
    tuning = Tuning(vision_cost=ForwardCost(overhead))
    with reopen(engine_of("idefics2"), partial(Inference, tuning=tuning)) as engine:
        together = [each.token_ids for each in submitted_together(engine, 6)]
        assert [count for count, _, _ in batches] == counts
        for number, tokens in enumerate(together):
            engine.inference.drop_caches()
            (alone,) = engine.complete([asked(engine, picture(number))])
            assert alone.token_ids == tokens


def test_pictures_of_other_requests_do_not_make_one_fail(
    engine_of: EngineOf,
    monkeypatch: pytest.MonkeyPatch,
    submitted_together: Callable[[LocalEngine, int], list[Completion]],
) -> None:
    right = Idefics2.encode_tiles

    def encode_one(self: Idefics2, model: Model, tiles: Tensor, sizes: Sizes = None) -> Tensor:
        if len(tiles) > 1:
            raise RuntimeError("this fails for more than one")
        return right(self, model, tiles, sizes)

    monkeypatch.setattr(Idefics2, "encode_tiles", encode_one)
    tuning = Tuning(vision_cost=ForwardCost(5e7))
    with reopen(engine_of("idefics2"), partial(Inference, tuning=tuning)) as engine:
        assert all(each.token_ids for each in submitted_together(engine, 3))


@pytest.mark.parametrize("kind", ["idefics2", "idefics2-split"])
def test_padded_tiles_give_what_the_library_makes_of_them_with_its_mask(
    kind: str, engine_of: EngineOf, batches: list[tuple[int, int, int]]
) -> None:
    loaded = engine_of(kind).loaded
    images = [picture(i) for i in range(5)]
    pictures = [loaded.family.preprocess(image) for image in images]
    processor = loaded.family.processor.image_processor
    inputs = cast("dict[str, Tensor]", processor([images], return_tensors="pt"))
    with torch.inference_mode():
        expected = torch.cat(list(loaded.model.model.get_image_features(**inputs).pooler_output))

    found = encode(loaded, *pictures)

    assert len(batches) == 1
    got = torch.cat([found[each.picture.digest] for each in pictures])
    assert torch.allclose(got, expected.view_as(got), atol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "cpu_sdpa"])
def test_an_attention_that_takes_masks_sees_no_padding(
    attention: str, engine_of: EngineOf, batches: list[tuple[int, int, int]]
) -> None:
    cpu_attention.PADDED.register()
    loaded = engine_of("idefics2").loaded
    set_attention(loaded, attention)
    pictures = [loaded.family.preprocess(picture(i)) for i in range(4)]
    together = encode(loaded, *pictures)
    assert [count for count, _, _ in batches] == [4]
    for each in pictures:
        (alone,) = encode(loaded, each).values()
        assert torch.allclose(alone, together[each.picture.digest], atol=1e-5)


def test_an_attention_that_may_see_padding_gets_none(engine_of: EngineOf) -> None:
    loaded = engine_of("idefics2").loaded
    set_attention(loaded, "flex_attention")
    pictures = [loaded.family.preprocess(picture(i)).picture for i in (0, 2)]
    groups = PictureEncoder(loaded.model, loaded.family).groups(pictures)
    assert [group.has_padding for group in groups] == [False, False]


@pytest.mark.parametrize("kind", tiny.CHATTING)
def test_features_of_many_pictures_are_those_of_each_alone(kind: str, engine_of: EngineOf) -> None:
    loaded = engine_of(kind).loaded
    pictures = [loaded.family.preprocess(picture(i)) for i in range(5)]
    together = encode(loaded, *pictures)
    for each in pictures:
        (alone,) = encode(loaded, each, max_pixels=1).values()
        assert torch.allclose(alone, together[each.picture.digest], atol=1e-4)


def test_a_picture_that_is_known_is_opened_but_not_processed(
    engine_of: EngineOf, tmp_path: Path
) -> None:
    engine = engine_of("idefics2")
    path = tmp_path / "a.png"
    picture(0).save(path)
    request = GenerationRequest(
        (Message("user", (Attachment(str(path)), "What is it?")),), Sampling(max_new_tokens=5)
    )
    first = engine.prepare(request)
    waiting = engine.prepare(request)
    (tiles,) = (each.tiles for each in engine.find_tensors(first))
    assert tiles
    assert engine.find_tensors(waiting)[0].tiles is tiles, "processed once while it waits"
    (answer,) = engine.complete([first])

    again = engine.prepare(request)
    assert again.pictures[0].size == (90, 60)
    assert again.shape_key == first.shape_key
    assert engine.find_tensors(again)[0].tiles == (), "found by its digest, and not processed again"
    # If the features are gone when the request is submitted, the picture is opened again.
    engine.inference.features.clear()
    assert engine.complete([again])[0].token_ids == answer.token_ids


def test_many_threads_preprocess_pictures_as_one_does(engine_of: EngineOf) -> None:
    engine = engine_of("idefics3")
    images = [picture(0).rotate(angle) for angle in range(0, 360, 15)]
    family = engine.loaded.family
    expected = [family.preprocess(image) for image in images]
    got: dict[int, PictureTensors] = {}

    def work(start: int) -> None:
        for index in range(start, len(images), 4):
            got[index] = engine.inference.make_tensors(images[index])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, each in enumerate(expected):
        assert got[index].picture.digest == each.picture.digest
        assert all(map(torch.equal, got[index].tiles, each.tiles))


def test_cancelled_encoding_keeps_the_pictures_that_are_complete(
    engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = engine_of("idefics2").loaded
    pictures = [loaded.family.preprocess(picture(i)) for i in range(3)]
    cancel = threading.Event()
    encode_tiles = loaded.family.encode_tiles

    def cancel_after(model: Model, tiles: Tensor, sizes: Sizes) -> Tensor:
        cancel.set()
        return encode_tiles(model, tiles, sizes)

    monkeypatch.setattr(loaded.family, "encode_tiles", cancel_after)
    encoder = PictureEncoder(loaded.model, loaded.family, max_pixels=1)
    assert encoder.encode(pictures, cancel=cancel) is None
    assert sum(each.picture.digest in encoder.features for each in pictures) == 1


@pytest.mark.parametrize(("device", "expected"), [("cuda:0", [5]), ("mps", [1] * 5)])
def test_an_apple_gpu_gets_one_large_tile_at_a_time(
    device: str, expected: list[int], engine_of: EngineOf
) -> None:
    loaded = engine_of("idefics2").loaded
    # Five tiles of Idefics2 in one forward end the process on an Apple GPU.
    large = replace(loaded.family.preprocess(picture(0)).picture, tile_sizes=((980, 980),) * 5)
    model = cast("Model", SimpleNamespace(device=torch.device(device), config=loaded.model.config))
    groups = PictureEncoder(model, loaded.family).groups([large])
    assert [len(group.tiles) for group in groups] == expected


def test_the_plan_limits_the_tiles_of_one_forward(
    engine_of: EngineOf, batches: list[tuple[int, int, int]]
) -> None:
    engine = engine_of("idefics3")
    image = picture(0).resize((400, 300))
    assert len(engine.preprocess(image).tile_sizes) > 3
    widths = {}
    for tiles in (None, 3, 1):
        spec = replace(engine.spec, vision_tiles=tiles)
        with LocalEngine(spec) as limited:
            batches.clear()
            limited.complete([asked(limited, image)])
            widths[tiles] = max(count for count, _, _ in batches)
    assert widths == {None: len(engine.preprocess(image).tile_sizes), 3: 3, 1: 1}


@pytest.mark.parametrize(("device", "tiles"), [("cpu", 1), ("mps", 1), ("cuda", 16)])
def test_only_a_cuda_device_encodes_several_large_tiles_at_a_time(device: str, tiles: int) -> None:
    model = cast("Model", SimpleNamespace(device=torch.device(device)))
    family = cast("Family", None)  # it is not used before pictures are encoded
    assert PictureEncoder(model, family).max_pixels // 980**2 == tiles
