"""Patches: each gets the position embedding of its place, and lies in memory as layers read it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from idefics_cli.core.types import DtypeName
from idefics_cli.models.families.classes import config_class, model_class
from idefics_cli.models.loading.patch_layout import lay_out_patches
from idefics_cli.models.loading.patch_positions import compute_positions_exactly

# Rows and columns of a tile of Idefics3.
SIDE = 26


def random_model(kind: str, dtype: DtypeName) -> Any:
    small = {"hidden_size": 16, "intermediate_size": 16, "num_attention_heads": 2}
    vision = {**small, "num_hidden_layers": 1, "image_size": SIDE * 14, "patch_size": 14}
    text = {**small, "num_key_value_heads": 1, "num_hidden_layers": 1, "vocab_size": 40}
    family = "mistral" if kind == "idefics2" else "llama"
    config = config_class(kind)(
        vision_config=vision,
        text_config={**text, "model_type": family, "pad_token_id": 0},
        image_token_id=39,
    )
    return model_class(kind)(config).to(getattr(torch, dtype)).eval()


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("kind", ["idefics2", "idefics3", "smolvlm"])
def test_the_position_of_a_patch_does_not_depend_on_the_dtype(kind: str, dtype: DtypeName) -> None:
    model = random_model(kind, dtype)
    encoder = model.model.vision_model
    asked: list[Tensor] = []

    def note(module: nn.Module, arguments: tuple[Tensor]) -> None:
        asked.append(arguments[0])

    encoder.embeddings.position_embedding.register_forward_pre_hook(note)
    compute_positions_exactly(model)
    tile = torch.zeros(1, 3, SIDE * 14, SIDE * 14, dtype=getattr(torch, dtype))
    with torch.inference_mode():
        states = encoder(pixel_values=tile).last_hidden_state
    assert states.dtype == getattr(torch, dtype)
    assert asked[0].flatten().tolist() == list(range(SIDE * SIDE))


@pytest.mark.parametrize("kind", ["idefics2", "idefics3", "smolvlm"])
def test_patches_are_contiguous_and_the_features_stay_the_same(kind: str) -> None:
    model = random_model(kind, "bfloat16")
    encoder = model.model.vision_model
    seen: list[bool] = []

    def note(module: object, arguments: tuple[Tensor]) -> None:
        seen.append(arguments[0].is_contiguous())

    encoder.encoder.layers[0].layer_norm2.register_forward_pre_hook(note)
    tile = torch.rand(1, 3, SIDE * 14, SIDE * 14).to(torch.bfloat16)
    with torch.inference_mode():
        before = encoder(pixel_values=tile).last_hidden_state
        lay_out_patches(model)
        after = encoder(pixel_values=tile).last_hidden_state
    assert seen == [False, True]
    assert torch.equal(before, after)
