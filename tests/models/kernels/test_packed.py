"""Packed weights give the products of the weights that they were made from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from idefics_cli.core.types import LoadSpec
from idefics_cli.models.kernels import attention as cpu_attention
from idefics_cli.models.kernels import packed, widened
from idefics_cli.models.kernels.packed import PackedLinear
from idefics_cli.models.loading.loader import load
from tests.support import tiny

pytestmark = pytest.mark.skipif(
    not packed.has_kernel(), reason="this torch cannot pack bfloat16 weights here"
)
# Text layers alone are packed.
SPARED = ("model.vision_model", "model.connector", "model.perceiver_resampler")


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("shape", [(1,), (1, 1), (2, 17), (300,)])
def test_a_packed_layer_gives_what_the_layer_gives(shape: tuple[int, ...], bias: bool) -> None:
    torch.manual_seed(0)
    linear = nn.Linear(48, 80, bias=bias, dtype=torch.bfloat16)
    # Transposed twice, so that its rows do not lie side by side.
    states = torch.randn(48, *shape).movedim(0, -1).to(torch.bfloat16)
    with torch.inference_mode():
        ours, theirs = PackedLinear(linear)(states), linear(states)
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    # One step of bfloat16, where sums are taken in another order.
    torch.testing.assert_close(ours, theirs, rtol=2**-7, atol=2**-7)


def spec(folder: Path, kind: str, *, dtype: str = "bfloat16") -> LoadSpec:
    names = {"smolvlm": "idefics3", "smolvlm2": "smolvlm"}
    family = names.get(kind, kind.partition("-")[0])
    return LoadSpec(repo=str(folder), family=family, dtype=dtype)  # type: ignore[arg-type]


def modules(model: object, kind: type[nn.Module]) -> set[str]:
    assert isinstance(model, nn.Module)
    return {name for name, module in model.named_modules() if isinstance(module, kind)}


@pytest.mark.parametrize("kind", tiny.CHATTING)
def test_a_model_with_packed_weights_gives_the_same_logits(
    kind: str, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint(kind)
    # The same attention for both, whatever this processor has.
    monkeypatch.setattr(widened, "is_needed", lambda: False)
    plain = load(spec(folder, kind)).model if not cpu_attention.has_native_bf16() else None
    monkeypatch.setattr(cpu_attention, "has_native_bf16", lambda: True)
    ours = load(spec(folder, kind)).model
    names = modules(ours, PackedLinear)
    assert names
    assert not {name for name in names if name.startswith(SPARED)}
    assert not modules(load(spec(folder, kind, dtype="float32")).model, PackedLinear)
    if plain is None:
        return
    left = modules(plain, nn.Linear) - modules(ours, nn.Linear)
    assert left == names
    ids = torch.arange(5, 17)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if kind == "idefics":
        inputs["pixel_values"] = torch.zeros(1, 1, 3, 28, 28, dtype=torch.bfloat16)  # type: ignore
        inputs["image_attention_mask"] = torch.zeros(1, 12, 1, dtype=torch.long)
    with torch.inference_mode():
        one, other = (model(**inputs).logits.float() for model in (ours, plain))
    # Sums in another order, through layers of weights that are spread wide.
    assert (one - other).norm() < 0.03 * other.norm()


def test_a_head_that_shares_its_weight_with_the_embedding_is_left_alone() -> None:
    model = nn.ModuleDict({"embedding": nn.Embedding(8, 16), "head": nn.Linear(16, 8, bias=False)})
    model["layer"] = nn.Linear(16, 16)
    model["head"].weight = model["embedding"].weight
    model.to(torch.bfloat16)
    packed.pack(model, skipped=[])
    assert modules(model, PackedLinear) == {"layer"}


def test_torch_without_the_functions_packs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def lacks(weight: torch.Tensor) -> torch.Tensor:
        raise AttributeError("'_OpNamespace' 'mkldnn' object has no attribute")

    def lies(states: torch.Tensor, weight: object, bias: object) -> torch.Tensor:
        return torch.zeros(len(states), 96, dtype=states.dtype)

    try:
        for name, function in (("_pack", lacks), ("_product", lies)):
            with monkeypatch.context() as patch:
                patch.setattr(packed, name, function)
                packed.has_kernel.cache_clear()
                assert not packed.has_kernel()
    finally:
        packed.has_kernel.cache_clear()
