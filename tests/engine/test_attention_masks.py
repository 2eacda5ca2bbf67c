"""Where nothing is padded there are no masks, and every attention sees the same picture."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForImageTextToText

from idefics_cli.core.types import Sampling
from idefics_cli.engine.local.vision import encoding as vision
from idefics_cli.engine.local.vision.encoding import FeatureCache, encode_pictures
from idefics_cli.models.kernels import attention as cpu_attention
from tests.support import tiny
from tests.support.prompts import CONVERSATIONS, as_request, open_engine, prepared_pictures

Masks = list[bool]


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> Iterator[Masks]:
    """Of every attention that is computed, whether it has a mask."""
    seen: Masks = []
    attend = functional.scaled_dot_product_attention

    def watched(*states: Tensor, attn_mask: Tensor | None = None, **options: object) -> Tensor:
        seen.append(attn_mask is not None)
        return attend(*states, attn_mask=attn_mask, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    return seen


@pytest.fixture
def _apart(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures of tiny models go apart too, as those of large ones."""
    monkeypatch.setattr(vision, "_CPU_LAYER_OPERATIONS", 0)


@pytest.mark.usefixtures("_apart")
@pytest.mark.parametrize("kind", tiny.CHATTING)
def test_pictures_of_any_shape_are_encoded_without_a_mask(
    kind: str, checkpoint: Callable[[str], Path], masks: Masks
) -> None:
    with open_engine(checkpoint(kind), kind) as engine:
        loaded = engine.loaded
        encode_pictures(
            loaded.model, loaded.family, prepared_pictures(engine, [0, 1, 2]), FeatureCache()
        )
    assert masks
    assert not any(masks)


@pytest.mark.usefixtures("_apart")
@pytest.mark.parametrize("kind", [kind for kind in tiny.CHATTING if kind != "idefics"])
def test_prompts_of_one_length_and_their_replies_need_no_mask(
    kind: str, checkpoint: Callable[[str], Path], masks: Masks
) -> None:
    with open_engine(checkpoint(kind), kind) as engine:
        few = Sampling(max_new_tokens=4)
        batch = [as_request(engine, CONVERSATIONS["one image"], sampling=few)] * 2
        engine.complete(batch)
        assert not any(masks)
        # Of two lengths they do.
        engine.complete([*batch, as_request(engine, CONVERSATIONS["no image"], sampling=few)])
    assert any(masks)


@pytest.mark.parametrize("way", ["sdpa", "library", "padded", "tiled"])
def test_every_attention_resamples_a_picture_to_the_same_features(
    way: str, checkpoint: Callable[[str], Path], request: pytest.FixtureRequest
) -> None:
    folder = checkpoint("idefics2")
    kernel = cpu_attention.TILED if way == "tiled" else cpu_attention.PADDED
    name = "sdpa" if way == "sdpa" else kernel.register()
    if way in ("padded", "tiled"):
        # As for thousands of patches.
        replace(kernel, many_queries=1).register()
        request.addfinalizer(kernel.register)
    dtype = torch.bfloat16 if way == "tiled" else torch.float32

    def features(attention: str, dtype: torch.dtype) -> list[Tensor]:
        model = AutoModelForImageTextToText.from_pretrained(
            folder, attn_implementation=attention, dtype=dtype
        ).eval()
        family = engine.loaded.family
        seen = encode_pictures(model, family, pictures, FeatureCache())
        assert seen is not None
        return [seen[picture.digest].float() for picture in pictures]

    with open_engine(folder, "idefics2") as engine:
        pictures = prepared_pictures(engine, [0, 1, 2])
        eager, ours = features("eager", torch.float32), features(name, dtype)
    for expected, got in zip(eager, ours, strict=True):
        assert expected.std() > 0.1
        if way == "tiled":
            assert (got - expected).norm() < 0.05 * expected.norm()
        else:
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
