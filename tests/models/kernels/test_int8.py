"""8-bit weights on the CPU: right by both ways, and only the text model's are rounded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from idefics_cli.core.types import LoadSpec
from idefics_cli.models.families.classes import model_class
from idefics_cli.models.families.spec import FAMILIES
from idefics_cli.models.hub.facts import demo_folder
from idefics_cli.models.kernels.int8 import linear as int8
from idefics_cli.models.kernels.int8.linear import Int8Linear, quantize
from idefics_cli.models.loading.loader import load
from tests.support import tiny
from tests.support.kernels import relative_error


def layer(*, bias: bool, width: int = 64, outputs: int = 96) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(width, outputs, bias=bias)


def exact(linear: nn.Linear, states: Tensor) -> Tensor:
    """The product with the rounded weights, in float64."""
    weight, scale = quantize(linear.weight)
    out = states.double() @ (weight.double() * scale.double()[:, None]).T
    return out if linear.bias is None else out + linear.bias.detach().double()


def test_a_weight_is_off_by_half_a_step_at_most() -> None:
    linear = layer(bias=False)
    with torch.no_grad():
        linear.weight[3] = 0
    weight, scale = quantize(linear.weight)
    back = weight.float() * scale[:, None]
    assert ((back - linear.weight).abs() <= scale[:, None] * 0.5001).all()
    assert weight.abs().amax(1).tolist() == [0 if row == 3 else 127 for row in range(96)]
    assert scale.isfinite().all()


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("dtype", "by_kernel", "by_widening"),
    [
        (torch.float32, 6e-3, 1e-6),
        (torch.bfloat16, 6e-3, 6e-3),
        (torch.float16, 6e-3, 1e-3),
    ],
)
def test_few_rows_and_many_give_the_products_of_the_rounded_weights(
    bias: bool, dtype: torch.dtype, by_kernel: float, by_widening: float,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(int8, "_WIDENED", 40)
    linear = layer(bias=bias)
    ours = Int8Linear(linear)
    states = torch.randn(2, 50, 64).to(dtype)
    with torch.inference_mode():
        many, few = ours(states), ours(states[:, :3])
    assert (many.dtype, many.shape) == (dtype, (2, 50, 96))
    assert (few.dtype, few.shape) == (dtype, (2, 3, 96))
    assert relative_error(many, exact(linear, states)) < by_widening
    assert relative_error(few, exact(linear, states[:, :3])) < by_kernel


def misaligned(tensor: Tensor) -> Tensor:
    """A copy that begins 4 bytes after where torch begins its tensors."""
    size = tensor.element_size()
    room = torch.empty(tensor.numel() + 64 // size, dtype=tensor.dtype)
    first = (-room.data_ptr() % 64 + 4) // size
    copy = room[first : first + tensor.numel()].view(tensor.shape)
    assert copy.data_ptr() % 64 == 4
    return copy.copy_(tensor)


def test_numbers_and_states_may_lie_anywhere() -> None:
    """torch's kernel would end the process."""
    linear = layer(bias=True, outputs=95)
    made = Int8Linear(linear)
    ours = Int8Linear(linear, {name: misaligned(part) for name, part in made.numbers().items()})
    for rows in (1, 3, 5):
        states = torch.randn(rows, 64).to(torch.bfloat16)
        with torch.inference_mode():
            assert torch.equal(ours(misaligned(states)), made(states))


def test_a_kernel_that_is_wrong_or_missing_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    linear, states = layer(bias=True), torch.randn(1, 64)
    ours = Int8Linear(linear)

    def refuses(*parts: Tensor) -> Tensor:
        raise RuntimeError("not on this processor")

    def lies(rows: Tensor, weight: Tensor, scale: Tensor) -> Tensor:
        return torch.zeros(len(rows), len(weight), dtype=rows.dtype)

    assert int8.has_kernel()
    try:
        for kernel in (refuses, lies):
            monkeypatch.setattr(torch, "_weight_int8pack_mm", kernel)
            int8.has_kernel.cache_clear()
            assert not int8.has_kernel()
            with torch.inference_mode():
                assert relative_error(ours(states), exact(linear, states)) < 1e-6
    finally:
        int8.has_kernel.cache_clear()


def tensors(model: object) -> dict[str, Tensor]:
    assert isinstance(model, nn.Module)
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@pytest.mark.parametrize("kind", ["demo", "idefics in 16 bit", *tiny.CHATTING])
def test_all_but_the_rounded_weights_is_as_in_the_whole_model(
    kind: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    if kind == "demo":
        folder, family = demo_folder(), "idefics2"
    else:
        folder = checkpoint(kind.partition(" ")[0])
        names = {"smolvlm": "idefics3", "smolvlm2": "smolvlm"}
        family = names.get(kind, kind.partition("-")[0].partition(" ")[0])
    if kind.endswith("16 bit"):
        folder = in_16_bit(folder, tmp_path / "half", family)
    spec = LoadSpec(repo=str(folder), family=family)  # type: ignore[arg-type]
    whole = load(spec).model
    small = load(
        LoadSpec(repo=str(folder), family=family, quantization="8bit")  # type: ignore[arg-type]
    ).model
    assert isinstance(small, nn.Module)
    rounded = {name for name, part in small.named_modules() if isinstance(part, Int8Linear)}
    assert rounded
    theirs, ours = tensors(whole), tensors(small)
    for name, tensor in theirs.items():
        module, _, part = name.rpartition(".")
        if module in rounded and part == "weight":
            back = ours[name].float() * ours[f"{module}.scale"][:, None]
            assert (back - tensor).abs().max() <= ours[f"{module}.scale"].max() * 0.5001
        else:
            assert ours[name].dtype == tensor.dtype, name
            assert torch.equal(ours[name], tensor), name
    # The head of IDEFICS-1 is more than a linear layer.
    assert ("lm_head" in rounded) == (family != "idefics")
    assert not {
        name for name in rounded - {"lm_head"} if name.startswith(FAMILIES[family].unquantized)
    }


def in_16_bit(folder: Path, target: Path, family: str) -> Path:
    import shutil

    shutil.copytree(folder, target)
    model = model_class(family).from_pretrained(folder, dtype=torch.bfloat16)
    model.save_pretrained(target)
    return target
