"""What leaves the range of float16 is computed in float32, and old GPUs get repeated keys."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.integrations import sdpa_attention

from idefics_cli.core.types import LoadSpec
from idefics_cli.models.loading.float16 import repeat_keys_on_old_gpus
from idefics_cli.models.loading.loader import load
from tests.support.pixels import pixel_values
from tests.support.prompts import picture


def features(spec: LoadSpec) -> Tensor:
    """Return the features of a picture; the projection gives numbers above 65,504."""
    loaded = load(spec)
    with torch.inference_mode():
        projection = cast("Any", loaded.model).model.connector.modality_projection
        projection.up_proj.weight *= 1e4
        projection.down_proj.weight *= 1e5
        tiles = torch.stack(pixel_values(loaded.family.preprocess(picture(0)))[:1])
        return loaded.family.encode_tiles(loaded.model, tiles)


def test_a_connector_in_float32_keeps_what_leaves_the_range_of_float16(
    checkpoint: Callable[[str], Path],
) -> None:
    folder = str(checkpoint("idefics2"))
    narrow = LoadSpec(repo=folder, family="idefics2", dtype="float16")
    assert not features(narrow).isfinite().all()
    found = features(replace(narrow, float32_modules=("model.connector",)))
    # The text model takes it in its own dtype.
    assert found.dtype == torch.float16
    expected = features(replace(narrow, dtype="float32"))
    assert (found.float() - expected).abs().max() < 0.01 * expected.abs().max()


@pytest.mark.parametrize(
    ("capabilities", "is_grouped"), [([(8, 0)], True), ([(9, 0), (7, 5)], False), ([], True)]
)
def test_keys_are_repeated_where_a_gpu_lacks_kernels_for_shared_ones(
    capabilities: list[tuple[int, int]], is_grouped: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Restored after the test.
    monkeypatch.setattr(sdpa_attention, "use_gqa_in_sdpa", sdpa_attention.use_gqa_in_sdpa)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
    monkeypatch.setattr(torch.cuda, "device_count", lambda: len(capabilities))
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
    asked: list[bool] = []
    attend = functional.scaled_dot_product_attention

    def watched(*arguments: Any, **options: Any) -> Tensor:
        asked.append(options.get("enable_gqa", False))
        return attend(*arguments, **options)

    layer = cast("nn.Module", SimpleNamespace(num_key_value_groups=4, is_causal=True))
    query, keys = torch.randn(2, 8, 5, 16), torch.randn(2, 2, 5, 16)
    expected, _ = sdpa_attention.sdpa_attention_forward(layer, query, keys, keys, None)
    repeat_keys_on_old_gpus()
    monkeypatch.setattr(functional, "scaled_dot_product_attention", watched)
    found, _ = sdpa_attention.sdpa_attention_forward(layer, query, keys, keys, None)
    assert asked == [is_grouped]
    assert torch.allclose(found, expected, atol=1e-6)
