"""On a CUDA device, attention at the shapes of all models is that of float32 arithmetic."""

from __future__ import annotations

import pytest
import torch

from idefics_cli.core.types import DtypeName
from idefics_cli.models.hub.facts import registry_facts
from idefics_cli.models.kernels.attention_probe import TOLERANCE, HeadShape, probe_attention

HEADS = {
    str(heads): heads
    for heads in (
        HeadShape(facts.shape.heads, facts.shape.kv_heads, facts.shape.head_dim)
        for facts in registry_facts()
    )
}

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.mark.parametrize("attention", ["sdpa", "eager", "cuda_split_keys"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("heads", HEADS)
def test_attention_is_within_the_tolerance(heads: str, dtype: DtypeName, attention: str) -> None:
    errors = probe_attention(attention, device="cuda:0", dtype=dtype, text=HEADS[heads])
    assert len(errors) == 9
    assert [each for each in errors if not each.error <= TOLERANCE[dtype]] == []
