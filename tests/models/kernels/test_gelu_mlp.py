"""The layers of a vision layer with the activation in the first product."""

from __future__ import annotations

import copy
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionMLP

from idefics_cli.models.kernels.gelu_mlp import GeluMlp
from idefics_cli.models.kernels.table import KERNELS
from tests.support.kernels import refusing, relative_error, zeros


def library_mlp(activation: str, dtype: torch.dtype = torch.bfloat16) -> nn.Module:
    torch.manual_seed(0)
    config = SimpleNamespace(hidden_act=activation, hidden_size=64, intermediate_size=160)
    mlp: nn.Module = Idefics3VisionMLP(config)
    return mlp.to(dtype).eval()


@pytest.mark.parametrize("rows", [0, 1, 3, 1030])
@pytest.mark.parametrize("activation", ["gelu_pytorch_tanh", "gelu"])
def test_the_outputs_are_those_of_the_library_in_float32(activation: str, rows: int) -> None:
    if not GeluMlp.passes_self_test():
        pytest.skip("this torch has no product with GELU here")
    original = library_mlp(activation)
    layer = GeluMlp.layer_for(original)
    assert layer is not None
    # Transposed, so that the rows are not contiguous.
    activations = (3 * torch.randn(2, 64, rows)).to(torch.bfloat16).transpose(1, 2)
    with torch.inference_mode():
        given, theirs = layer(activations), original(activations)
        exact = copy.deepcopy(original).float()(activations.float())
    assert (given.dtype, given.shape) == (torch.bfloat16, (2, rows, 64))
    if rows:
        error = relative_error(given, exact)
        assert error < KERNELS["bf16_gelu_mlp"].tolerance
        # GELU of the product before it is rounded is nearer to the exact one.
        assert error <= relative_error(theirs, exact)


def test_other_modules_are_left_alone() -> None:
    quick, wide = library_mlp("quick_gelu"), library_mlp("gelu", torch.float32)
    odd = library_mlp("gelu")
    odd.fc2 = nn.Bilinear(160, 160, 64, dtype=torch.bfloat16)
    for module in (quick, wide, odd, nn.Linear(64, 64)):
        assert GeluMlp.layer_for(module) is None


def test_functions_that_are_missing_or_wrong_fail_the_self_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for function in (refusing, zeros):
        monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", function)
        assert not GeluMlp.passes_self_test()
