"""The two linear layers of a vision layer, with compiled code for the activation between them.

torch writes the result of GELU to new memory, and computes the tanh form slowly: for 1,024 patches
of SigLIP in float32 it takes a tenth of the time of both products. This code computes in place, in
a quarter of the time of torch (two threads, torch 2.13, AMD Zen 3).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Self, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from idefics_cli.models.kernels import jit
from idefics_cli.models.kernels.jit import Code, LazyKernel
from idefics_cli.models.kernels.text_step.maths import exponential

if TYPE_CHECKING:
    from llvmlite import ir

_LAYERS = ("fc1", "fc2")
# `hidden_act` of the configuration.
_TANH_FORM = "gelu_pytorch_tanh"
# GELU's tanh form is x / (1 + exp(-2 u)) with u = sqrt(2 / pi) * (x + 0.044715 * x^3).
_TWICE_ROOT = 2 * (2 / torch.pi) ** 0.5
_CUBE = 0.044715
# Of all numbers below this one, the GELU is 0.
_LOWEST = -100.0
# Numbers that are computed at a time, and of a piece of the work.
_TOGETHER, _PIECE = 16, 8192


class CompiledGeluMlp(nn.Module):
    """A linear layer, the tanh form of GELU, and a linear layer.

    Args:
        mlp: The module to replace; see `layer_for`.
    """

    def __init__(self, mlp: nn.Module) -> None:
        super().__init__()
        self.fc1, self.fc2 = cast("nn.Module", mlp.fc1), cast("nn.Module", mlp.fc2)

    @classmethod
    def passes_self_test(cls) -> bool:
        """Whether the code can be compiled here and computes a small example correctly."""
        return jit.passes(_computes_an_example)

    @classmethod
    def layer_for(
        cls,
        module: nn.Module,
        *,
        product_dtype: torch.dtype = torch.float32,
        numbers: Mapping[str, Tensor] | None = None,
    ) -> Self | None:
        """See `table.LayerKernel.layer_for`. *module* has `fc1`, `fc2` and a configuration."""
        has_layers = all(isinstance(getattr(module, name, None), nn.Module) for name in _LAYERS)
        activation = getattr(getattr(module, "config", None), "hidden_act", "")
        return cls(module) if has_layers and activation == _TANH_FORM else None

    def forward(self, activations: Tensor) -> Tensor:
        """Return the outputs (..., out) of *activations* (..., in), in their dtype."""
        wide: Tensor = self.fc1(activations)
        outputs: Tensor = self.fc2(gelu_(wide))
        return outputs


def gelu_(numbers: Tensor) -> Tensor:
    """Replace *numbers*, of any float dtype, by their GELU in the tanh form; return them."""
    kernel = _KERNELS.get(numbers.dtype)
    if kernel is None or numbers.numel() % _TOGETHER or not numbers.is_contiguous():
        return functional.gelu(numbers, approximate="tanh")
    count = numbers.numel()
    kernel(-(-count // _PIECE), count, numbers.data_ptr())
    return numbers


def _write_gelu(
    code: Code, piece: ir.Value, arguments: Sequence[ir.Value], *, is_bfloat16: bool
) -> None:
    """Write the code for up to `_PIECE` numbers."""
    (count, address), build = arguments, code.builder
    numbers = code.pointer(address)
    first = build.mul(piece, code.number(_PIECE))
    last = code.smaller(build.add(first, code.number(_PIECE)), count)
    kind = code.vector(code.i16 if is_bfloat16 else code.f32, _TOGETHER)
    with code.loop(first, last, _TOGETHER) as number:
        place = build.mul(number, code.number(2 if is_bfloat16 else 4))
        stored = code.load(numbers, place, kind)
        value = code.from_bfloat16(stored) if is_bfloat16 else stored
        found = _gelu(code, value)
        found = code.to_bfloat16(code.rounded(found)) if is_bfloat16 else found
        code.store(found, numbers, place)


def _gelu(code: Code, value: ir.Value) -> ir.Value:
    build = code.builder

    def same(number: float) -> ir.Value:
        return code.same(code.f32, _TOGETHER, number)

    # `exponential` is capped, so a very low number divided by it would not vanish.
    is_low = build.fcmp_ordered("<", value, same(_LOWEST))
    value = build.select(is_low, same(_LOWEST), value)
    squared = code.fused(build.fmul(value, value), same(_CUBE), same(1.0))
    power = build.fmul(build.fmul(value, squared), same(-_TWICE_ROOT))
    return build.fdiv(value, build.fadd(exponential(code, power), same(1.0)))


_KERNELS: Mapping[torch.dtype, Callable[[int, int, int], None]] = {
    dtype: LazyKernel(partial(_write_gelu, is_bfloat16=dtype == torch.bfloat16), arguments=2)
    for dtype in (torch.float32, torch.bfloat16)
}


def _computes_an_example() -> bool:
    numbers = torch.linspace(-12, 12, 2 * _PIECE + _TOGETHER)
    errors = []
    for dtype in _KERNELS:
        exact = functional.gelu(numbers.to(dtype).double(), approximate="tanh")
        given = gelu_(numbers.to(dtype)).double()
        errors.append(float((given - exact).norm() / exact.norm()))
    return errors[0] < 1e-6 and errors[1] < 4e-3
