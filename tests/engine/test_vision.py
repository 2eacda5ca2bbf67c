"""Pictures are encoded once, without padding, and known again by their content."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from idefics_cli.core.types import Attachment, GenerationRequest, Message, Sampling
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.local.vision import encoding as vision
from idefics_cli.engine.local.vision.encoding import FeatureCache, encode_pictures
from idefics_cli.engine.protocol import Prepared
from idefics_cli.models.families.base import Family
from idefics_cli.models.families.picture import PreparedPicture
from idefics_cli.models.families.protocols import Model
from idefics_cli.models.kernels import attention as cpu_attention
from tests.support import tiny
from tests.support.prompts import open_engine, picture

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
    parts = (*(Attachment(str(i)) for i in range(len(images))), text)
    request = GenerationRequest((Message("user", parts),), Sampling(max_new_tokens=5))
    return Prepared(request, tuple(engine.preprocess(image) for image in images))


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int, int]]:
    """Count, height and width of the tiles of every forward of an encoder."""
    seen: list[tuple[int, int, int]] = []

    def watch(cls: type[Family]) -> None:
        see = cls.encode_tiles

        def watched(self: Family, model: Model, tiles: Tensor, sizes: Sizes = None) -> Tensor:
            seen.append((tiles.shape[0], tiles.shape[2], tiles.shape[3]))
            return see(self, model, tiles, sizes)

        monkeypatch.setattr(cls, "encode_tiles", watched)

    from idefics_cli.models.families.idefics1 import Idefics1
    from idefics_cli.models.families.idefics2 import Idefics2, TemplateFamily

    watch(Idefics1)
    watch(Idefics2)
    watch(TemplateFamily)
    return seen


@pytest.mark.parametrize("kind", tiny.CHATTING)
def test_a_picture_is_encoded_once_however_often_it_is_shown(
    kind: str, engine_of: EngineOf, batches: list[tuple[int, int, int]]
) -> None:
    engine = engine_of(kind)
    shown = picture(0)
    tiles = len(engine.preprocess(shown).tiles)
    engine.complete([asked(engine, shown, shown), asked(engine, shown.copy(), text="And?")])
    assert sum(count for count, _, _ in batches) == tiles
    engine.complete([asked(engine, shown, text="A question about it")])
    list(engine.stream(asked(engine, shown, picture(1))))
    assert sum(count for count, _, _ in batches) == tiles + len(
        engine.loaded.family.preprocess(picture(1)).tiles
    )


def test_tiles_of_one_size_run_together_and_none_is_padded_where_that_costs_more(
    engine_of: EngineOf, batches: list[tuple[int, int, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("idefics_cli.engine.local.vision.encoding._CPU_LAYER_OPERATIONS", 0)
    engine = engine_of("idefics2-split")
    square, turned = picture(2), picture(2).rotate(90)
    assert square.size == (64, 64)
    # Four quarters and the whole, none of which is scaled.
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


@pytest.mark.parametrize("kind", ["idefics2", "idefics2-split"])
def test_padded_tiles_give_what_the_library_makes_of_them_with_its_mask(
    kind: str, engine_of: EngineOf, batches: list[tuple[int, int, int]]
) -> None:
    loaded = engine_of(kind).loaded
    images = [picture(i) for i in range(5)]
    pictures = [loaded.family.preprocess(image) for image in images]
    encoded = loaded.family.processor.image_processor([images], return_tensors="pt")
    with torch.inference_mode():
        expected = torch.cat(list(loaded.model.model.get_image_features(**encoded).pooler_output))

    found = encode_pictures(loaded.model, loaded.family, pictures, FeatureCache())

    assert len(batches) == 1
    assert found is not None
    got = torch.cat([found[shown.digest] for shown in pictures])
    assert torch.allclose(got, expected.view_as(got), atol=1e-5)


@pytest.mark.parametrize("attention", ["eager", "sdpa", "cpu_sdpa"])
def test_an_attention_that_takes_masks_sees_no_padding(
    attention: str, engine_of: EngineOf, batches: list[tuple[int, int, int]]
) -> None:
    cpu_attention.PADDED.register()
    loaded = engine_of("idefics2").loaded
    loaded.model.set_attn_implementation(attention)
    pictures = [loaded.family.preprocess(picture(i)) for i in range(4)]
    together = encode_pictures(loaded.model, loaded.family, pictures, FeatureCache())
    assert [count for count, _, _ in batches] == [4]
    assert together is not None
    for shown in pictures:
        found = encode_pictures(loaded.model, loaded.family, [shown], FeatureCache())
        assert found is not None
        assert torch.allclose(found[shown.digest], together[shown.digest], atol=1e-5)


def test_an_attention_that_may_see_padding_gets_none(
    engine_of: EngineOf, batches: list[tuple[int, int, int]]
) -> None:
    loaded = engine_of("idefics2").loaded
    loaded.model.set_attn_implementation("flex_attention")
    pictures = [loaded.family.preprocess(picture(i)) for i in (0, 2)]
    groups = list(vision._groups(loaded.model, loaded.family, pictures))
    assert [group.pads for group in groups] == [False, False]


@pytest.mark.parametrize("kind", tiny.CHATTING)
def test_features_of_many_pictures_are_those_of_each_alone(
    kind: str, engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = engine_of(kind).loaded
    pictures = [loaded.family.preprocess(picture(i)) for i in range(5)]

    def features(*some: PreparedPicture) -> dict[bytes, Tensor]:
        found = encode_pictures(loaded.model, loaded.family, some, FeatureCache())
        assert found is not None
        return found

    together = features(*pictures)
    monkeypatch.setattr("idefics_cli.engine.local.vision.tiles.CPU_PIXELS", 1)
    for shown in pictures:
        (alone,) = features(shown).values()
        assert torch.allclose(alone, together[shown.digest], atol=1e-4)


def test_a_picture_that_is_known_is_opened_and_no_more(
    engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    engine = engine_of("idefics2")
    path = tmp_path / "a.png"
    picture(0).save(path)
    request = GenerationRequest(
        (Message("user", (Attachment(str(path)), "What is it?")),), Sampling(max_new_tokens=5)
    )
    first = engine.prepare(request)
    waiting = engine.prepare(request)
    assert waiting.pictures[0].tiles is first.pictures[0].tiles, "processed once while it waits"
    (answer,) = engine.complete([first])

    def fail(*args: object) -> None:
        raise AssertionError("processed again")

    monkeypatch.setattr(engine.loaded.family, "_make_tiles", fail)
    again = engine.prepare(request)
    assert again.pictures[0].size == (90, 60)
    assert again.shape_key == first.shape_key
    # It holds its features itself, so that they cannot be gone when its turn comes.
    engine.inference._features.clear()
    assert engine.complete([again])[0].token_ids == answer.token_ids


def test_many_threads_look_at_pictures_as_one_does(engine_of: EngineOf) -> None:
    engine = engine_of("idefics3")
    images = [picture(0).rotate(angle) for angle in range(0, 360, 15)]
    family = engine.loaded.family
    expected = [family.preprocess(image) for image in images]
    got: dict[int, PreparedPicture] = {}

    def work(start: int) -> None:
        for index in range(start, len(images), 4):
            got[index] = engine.preprocess(images[index])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index, shown in enumerate(expected):
        assert got[index].digest == shown.digest
        assert all(map(torch.equal, got[index].tiles, shown.tiles))


def test_a_cancelled_look_keeps_the_pictures_that_are_ready(
    engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = engine_of("idefics2").loaded
    monkeypatch.setattr("idefics_cli.engine.local.vision.tiles.CPU_PIXELS", 1)
    pictures = [loaded.family.preprocess(picture(i)) for i in range(3)]
    cache, cancel = FeatureCache(), threading.Event()
    see = loaded.family.encode_tiles

    def once(model: Model, tiles: Tensor, sizes: Sizes) -> Tensor:
        cancel.set()
        return see(model, tiles, sizes)

    monkeypatch.setattr(loaded.family, "encode_tiles", once)
    cut = encode_pictures(loaded.model, loaded.family, pictures, cache, cancel=cancel)
    assert cut is None
    assert sum(cache.get(p.digest) is not None for p in pictures) == 1


def shown(name: bytes) -> PreparedPicture:
    return PreparedPicture(name, (1, 1), ((1, 1),), tiles=(torch.zeros(3, 1, 1),))


def test_the_features_used_longest_ago_go_when_there_are_too_many_bytes() -> None:
    cache = FeatureCache(max_bytes=100)
    for name in (b"a", b"b"):
        cache.put(shown(name), torch.zeros(10))
    assert cache.held_bytes == 80
    assert cache.get(b"a") is not None
    cache.put(shown(b"c"), torch.zeros(10))
    assert [cache.get(name) is not None for name in (b"a", b"b", b"c")] == [True, False, True]
    assert cache.held_bytes == 80
    cache.put(shown(b"a"), torch.zeros(5))
    assert cache.held_bytes == 60
    cache.put(shown(b"huge"), torch.zeros(1000))
    assert (len(cache), cache.held_bytes) == (2, 60)


def test_a_kept_picture_does_not_keep_its_pixels() -> None:
    cache = FeatureCache()
    cache.put(shown(b"a"), torch.ones(2, 3))
    known = cache.recall(b"a")
    assert known is not None
    assert known.tiles == ()
    assert known.features is not None
    assert known.features.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert cache.recall(b"b") is None
