"""The layers of a vision layer with compiled code for the activation."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionMLP

from idefics_cli.models.kernels.gelu import CompiledGeluMlp, gelu_
from idefics_cli.models.kernels.openmp import torch_threads
from idefics_cli.models.kernels.table import KERNELS
from tests.support.kernels import needs_compiler, relative_error

pytestmark = needs_compiler


def library_mlp(activation: str, dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    config = SimpleNamespace(hidden_act=activation, hidden_size=64, intermediate_size=160)
    mlp: nn.Module = Idefics3VisionMLP(config)
    return mlp.to(dtype).eval()


@pytest.mark.parametrize("rows", [0, 1, 3, 1030])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_outputs_are_those_of_the_library(dtype: torch.dtype, rows: int) -> None:
    original = library_mlp("gelu_pytorch_tanh", dtype)
    layer = CompiledGeluMlp.layer_for(copy.deepcopy(original))
    assert layer is not None
    activations = (3 * torch.randn(2, 64, rows)).to(dtype).transpose(1, 2)
    with torch.inference_mode(), torch_threads(3):
        given, theirs = layer(activations), original(activations)
    assert (given.dtype, given.shape) == (dtype, (2, rows, 64))
    if rows:
        tolerance = KERNELS["compiled_gelu_mlp"].tolerance
        assert relative_error(given, theirs) < (tolerance if dtype == torch.float32 else 2e-3)


@pytest.mark.parametrize("count", [16, 8192, 8208])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_every_number_is_near_the_exact_one(dtype: torch.dtype, count: int) -> None:
    numbers = torch.linspace(-15, 15, count).to(dtype)
    exact = functional.gelu(numbers.double(), approximate="tanh")
    given = gelu_(numbers.clone()).double()
    step = torch.finfo(dtype).eps
    assert ((given - exact).abs() <= 4 * step * exact.abs() + step / 10).all()


def test_what_the_code_does_not_take_is_left_to_torch() -> None:
    odd, half = torch.linspace(-5, 5, 31), torch.linspace(-5, 5, 32).to(torch.float16)
    across = torch.linspace(-5, 5, 64).reshape(16, 4).t()
    for numbers in (odd, half, across):
        exact = functional.gelu(numbers, approximate="tanh")
        assert torch.equal(gelu_(numbers.clone(memory_format=torch.preserve_format)), exact)


def test_numbers_out_of_range_stay_so() -> None:
    numbers = torch.zeros(16)
    numbers[:5] = torch.tensor([float("nan"), float("inf"), 1e30, -1e30, -3e38])
    given = gelu_(numbers)
    assert given[0].isnan()
    assert given[1].isinf()
    assert given[2] == 1e30
    assert float(given[3:5].abs().max()) < 1e-6
    assert not given[5:].any()


def test_other_modules_are_left_alone() -> None:
    odd = library_mlp("gelu_pytorch_tanh")
    del odd.fc2
    for module in (library_mlp("gelu"), library_mlp("quick_gelu"), odd, nn.Linear(64, 64)):
        assert CompiledGeluMlp.layer_for(module) is None
