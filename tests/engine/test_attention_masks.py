"""Without padding there are no masks, and every attention gives the same features."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForImageTextToText

from idefics_cli.core.types import Sampling
from idefics_cli.engine.local.inference import Inference
from idefics_cli.engine.local.tuning import Tuning
from idefics_cli.engine.local.vision.encoding import PictureEncoder
from idefics_cli.engine.local.vision.tiles import ForwardCost
from idefics_cli.models.kernels import attention as cpu_attention
from tests.support import tiny
from tests.support.prompts import CONVERSATIONS, as_request, open_engine, tensors_of

Masks = list[bool]


@pytest.fixture
def masks(monkeypatch: pytest.MonkeyPatch) -> Masks:
    """Whether each attention that is computed has a mask."""
    seen: Masks = []
    attend = functional.scaled_dot_product_attention

    def watched(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **options: Any
    ) -> Tensor:
        seen.append(attn_mask is not None)
        return attend(query, key, value, attn_mask=attn_mask, **options)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    return seen


# With free forwards, a tiny model pads no picture, as a large model does.
unpadded_inference = partial(Inference, tuning=Tuning(vision_cost=ForwardCost(0)))


@pytest.mark.parametrize("kind", tiny.CHATTING)
def test_pictures_of_any_shape_are_encoded_without_a_mask(
    kind: str, checkpoint: Callable[[str], Path], masks: Masks
) -> None:
    with open_engine(checkpoint(kind), kind) as engine:
        encoder = PictureEncoder(engine.loaded.model, engine.loaded.family, cost=ForwardCost(0))
        encoder.encode(tensors_of(engine, [0, 1, 2]))
    assert masks
    assert not any(masks)


@pytest.mark.parametrize("kind", [kind for kind in tiny.CHATTING if kind != "idefics"])
def test_prompts_of_one_length_and_their_replies_need_no_mask(
    kind: str, checkpoint: Callable[[str], Path], masks: Masks
) -> None:
    with open_engine(checkpoint(kind), kind, unpadded_inference) as engine:
        few = Sampling(max_new_tokens=4)
        batch = [as_request(engine, CONVERSATIONS["one image"], sampling=few)] * 2
        engine.complete(batch)
        assert not any(masks)
        # Prompts of two lengths need one.
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
        # This is the way that is taken for thousands of patches.
        replace(kernel, many_queries=1).register()
        request.addfinalizer(kernel.register)
    dtype = torch.bfloat16 if way == "tiled" else torch.float32

    def features(attention: str, dtype: torch.dtype) -> list[Tensor]:
        model = AutoModelForImageTextToText.from_pretrained(
            folder, attn_implementation=attention, dtype=dtype
        ).eval()
        found = PictureEncoder(model, engine.loaded.family).encode(pictures)
        assert found is not None
        return [found[each.picture.digest].float() for each in pictures]

    with open_engine(folder, "idefics2") as engine:
        pictures = tensors_of(engine, [0, 1, 2])
        eager, ours = features("eager", torch.float32), features(name, dtype)
    for expected, got in zip(eager, ours, strict=True):
        assert expected.std() > 0.1
        if way == "tiled":
            assert (got - expected).norm() < 0.05 * expected.norm()
        else:
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-4)
