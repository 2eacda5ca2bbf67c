"""bfloat16 without instructions for it: the numbers that torch gives, by other ways."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from idefics_cli.core.types import LoadSpec
from idefics_cli.models.kernels import attention as cpu_attention
from idefics_cli.models.kernels import widened
from idefics_cli.models.kernels.widened import WidenedConv2d, WidenedLinear
from idefics_cli.models.loading.loader import load
from tests.support import tiny


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("large", [True, False])
@pytest.mark.parametrize("shape", [(), (1,), (2, 2), (1, 5), (3, 10)])
def test_every_number_of_rows_gives_what_the_layer_gives(
    shape: tuple[int, ...], large: bool, bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    # More than one part, the last of them smaller; and rows one by one, whatever the weight.
    monkeypatch.setattr(widened, "_WIDENED", 32)
    monkeypatch.setattr(widened, "_LARGE_WEIGHT", 0 if large else 2**30)
    torch.manual_seed(0)
    linear = nn.Linear(48, 80, bias=bias, dtype=torch.bfloat16)
    # Transposed, so that its rows do not lie side by side.
    states = torch.randn(48, *shape).movedim(0, -1).to(torch.bfloat16)
    ours = WidenedLinear(linear)
    assert ours.weight is linear.weight
    with torch.inference_mode():
        given, wanted = ours(states), linear(states)
    assert (given.dtype, given.shape) == (wanted.dtype, wanted.shape)
    # One step of bfloat16, where sums are taken in another order.
    torch.testing.assert_close(given, wanted, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize("bias", [True, False])
def test_patches_are_those_of_the_convolution(bias: bool) -> None:
    torch.manual_seed(0)
    convolution = nn.Conv2d(3, 24, 14, stride=14, bias=bias, dtype=torch.bfloat16)
    pixels = torch.randn(2, 3, 56, 70).to(torch.bfloat16)
    with torch.inference_mode():
        given, wanted = WidenedConv2d(convolution)(pixels), convolution(pixels)
    assert (given.dtype, given.shape) == (wanted.dtype, wanted.shape)
    torch.testing.assert_close(given, wanted, rtol=2**-7, atol=2**-7)


@pytest.mark.parametrize(
    "unusual", [{"groups": 3}, {"dilation": 2}, {"padding": 1, "padding_mode": "reflect"}]
)
def test_other_convolutions_are_left_alone(unusual: dict[str, int | str]) -> None:
    model = nn.Sequential(nn.Conv2d(3, 6, 2, **unusual), nn.Conv2d(6, 6, 2))  # type: ignore[arg-type]
    widened.widen(model)
    assert [type(part) for part in model] == [nn.Conv2d, WidenedConv2d]


@pytest.mark.parametrize(
    ("capability", "native", "needed"),
    [("AVX512", False, True), ("AVX2", False, True), ("AVX512", True, False),
     ("DEFAULT", False, False)],
)  # fmt: skip
def test_it_is_done_where_x86_lacks_bfloat16(
    capability: str, native: bool, needed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(cpu_attention, "has_native_bf16", lambda: native)
    assert widened.is_needed() == needed


@pytest.mark.parametrize("kind", tiny.CHATTING)
def test_a_model_in_bfloat16_gives_the_logits_of_torch(
    kind: str, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint(kind)
    names = {"smolvlm": "idefics3", "smolvlm2": "smolvlm"}
    family = names.get(kind, kind.partition("-")[0])
    spec = LoadSpec(repo=str(folder), family=family, dtype="bfloat16")
    monkeypatch.setattr(cpu_attention, "has_native_bf16", lambda: False)
    models = []
    for needed in (True, False):
        monkeypatch.setattr(widened, "is_needed", lambda needed=needed: needed)
        models.append(load(spec).model)
    ours, plain = models
    assert isinstance(ours, nn.Module)
    assert isinstance(plain, nn.Module)
    assert any(isinstance(part, WidenedLinear) for part in ours.modules())
    assert not any(isinstance(part, WidenedLinear) for part in plain.modules())
    # More rows than are left to torch.
    ids = torch.arange(5, 17).repeat(3)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if kind == "idefics":
        inputs["pixel_values"] = torch.zeros(1, 1, 3, 28, 28, dtype=torch.bfloat16)
        inputs["image_attention_mask"] = torch.zeros(1, ids.shape[1], 1, dtype=torch.long)
    with torch.inference_mode():
        one, other = (model(**inputs).logits.float() for model in (ours, plain))
    # Sums in another order, through layers of weights that are spread wide.
    assert (one - other).norm() < 0.03 * other.norm()
