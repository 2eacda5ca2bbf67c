"""Every kernel of the table computes what float32 computes, within its tolerance."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from idefics_cli.core.types import KernelChoice
from idefics_cli.models.kernels.linear import KernelLinear, QuantizedLinear
from idefics_cli.models.kernels.openmp import torch_threads
from idefics_cli.models.kernels.table import KERNELS, Kernel, Part
from tests.support.kernels import relative_error

LINEAR = [name for name, row in KERNELS.items() if row.parts & {"text", "head", "vision"}]
QUANTIZED = [name for name in LINEAR if KERNELS[name].weights in ("int8", "int4")]
# Width and outputs. The last has more outputs than are converted to another format at a time, the
# one before has more weights than the L2 cache holds.
SHAPES = [(64, 64), (192, 192), (96, 192), (192, 66), (176, 95), (72, 80), (1024, 1024), (64, 1088)]
# Additional error from rounding the outputs to 16 bits.
ROUNDING = {torch.float32: 0.0, torch.float16: 1e-3, torch.bfloat16: 4e-3}


def usable(name: str) -> Kernel:
    """Return the row of *name*; skip the test if the kernel cannot be used here."""
    row = KERNELS[name]
    if not row.layer_kernel().passes_self_test():
        pytest.skip(f"{name} fails its self-test here")
    return row


def linear(row: Kernel, width: int = 192, outputs: int = 192, *, bias: bool = False) -> nn.Linear:
    """Return a layer of random weights in the dtype of the kernel.

    Weights for kernels of float32 models are bfloat16 numbers, as those of most checkpoints.
    """
    torch.manual_seed(0)
    dtype = torch.bfloat16 if row.weights in ("bfloat16", "float32") else torch.float32
    layer = nn.Linear(width, outputs, bias=bias, dtype=dtype)
    return layer.float() if row.weights == "float32" else layer


def layer_of(row: Kernel, module: nn.Module) -> nn.Module:
    """Return the kernel's layer for *module*, which must fit."""
    layer = row.layer_kernel().layer_for(module, product_dtype=torch.float32)
    assert layer is not None
    return layer.eval()


def dtypes(row: Kernel) -> list[torch.dtype]:
    """Return the dtypes of the activations of the kernel."""
    if row.weights == "bfloat16":
        return [torch.bfloat16]
    return [torch.float32, torch.bfloat16, torch.float16]


def effective_weight(layer: nn.Module, width: int, dtype: torch.dtype) -> Tensor:
    """Return (out, in) float32: the weights by which *layer*, without bias, multiplies."""
    with torch.inference_mode():
        product: Tensor = layer(torch.eye(width, dtype=dtype))
    return product.float().t()


def counts(layer: nn.Module) -> Iterator[int]:
    """Yield numbers of rows below and above every limit."""
    yield from (0, 1, 2, 3, 5, 8, 17)
    if isinstance(layer, KernelLinear) and layer.FEW_ROWS:
        yield from (layer.FEW_ROWS, layer.FEW_ROWS + 1)
    yield 203


def test_every_part_is_one_of_a_choice_and_every_row_can_be_imported() -> None:
    parts = {field.name for field in fields(KernelChoice)} - {"product_dtype"}
    assert set(get_args(Part)) == parts
    for name, row in KERNELS.items():
        assert row.name == name
        assert row.parts
        assert row.parts <= parts
        assert row.summary
        assert not row.summary.endswith(".")
        kernel = row.attention_kernel() if "attention" in row.parts else row.layer_kernel()
        assert isinstance(kernel.passes_self_test(), bool)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", LINEAR)
def test_a_kernel_multiplies_as_float32_does(name: str, shape: tuple[int, int]) -> None:
    row = usable(name)
    for bias in (False, True):
        original = linear(row, *shape, bias=bias)
        layer = row.layer_kernel().layer_for(original, product_dtype=torch.float32)
        if layer is None:
            pytest.skip(f"{name} does not fit {shape}")
        without = copy.deepcopy(original)
        without.register_parameter("bias", None)
        weight = original.weight.detach().float()
        if name in QUANTIZED:
            weight = effective_weight(layer_of(row, without), shape[0], torch.float32)
        addend = None if original.bias is None else original.bias.detach().float()
        for dtype in dtypes(row):
            for count in counts(layer):
                rows = torch.randn(count, shape[0]).to(dtype)
                with torch.inference_mode():
                    given = layer(rows)
                assert (given.dtype, given.shape) == (dtype, (count, shape[1]))
                exact = functional.linear(rows.float(), weight, addend)
                if count:
                    # The tolerance of bfloat16 kernels includes outputs in bfloat16.
                    rounding = 0.0 if row.weights == "bfloat16" else ROUNDING[dtype]
                    assert relative_error(given, exact) < row.tolerance + rounding


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("name", LINEAR)
def test_a_number_out_of_range_is_out_of_range_in_the_products(name: str, bad: float) -> None:
    """Else a damaged checkpoint gives replies that look sound."""
    row = usable(name)
    damaged = linear(row)
    damaged.weight.data[3, 5] = bad
    damaged_layer = row.layer_kernel().layer_for(damaged, product_dtype=torch.float32)
    for count in (1, 3, 203):
        rows = torch.randn(count, 192).to(dtypes(row)[0])
        with torch.inference_mode():
            if damaged_layer is not None:
                assert not damaged_layer(rows)[:, 3].isfinite().any()
            rows[-1, 7] = bad
            given = layer_of(row, linear(row))(rows)
        assert not given[-1].isfinite().any()
        assert given[:-1].isfinite().all()


@pytest.mark.parametrize("name", LINEAR)
def test_some_shape_of_the_list_fits(name: str) -> None:
    row = usable(name)
    kernel = row.layer_kernel()
    fitting = [s for s in SHAPES if kernel.layer_for(linear(row, *s), product_dtype=torch.float32)]
    assert (192, 192) in fitting
    assert (64, 1088) in fitting


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("name", LINEAR)
def test_activations_have_any_number_of_dimensions_and_any_layout(name: str, threads: int) -> None:
    row = usable(name)
    layer = layer_of(row, linear(row, bias=True))
    dtype = dtypes(row)[0]
    for shape in ((), (1,), (2, 3), (2, 1, 20)):
        # Transposed, so that rows are not contiguous.
        activations = torch.randn(192, *shape).movedim(0, -1).to(dtype)
        with torch.inference_mode(), torch_threads(threads):
            given = layer(activations)
            rows = layer(activations.reshape(-1, 192).contiguous())
        assert given.shape == (*shape, 192)
        assert relative_error(given, rows.reshape(given.shape)) <= row.tolerance


def misaligned(tensor: Tensor) -> Tensor:
    """Return a copy that begins 4 bytes after where torch begins its tensors."""
    size = tensor.element_size()
    room = torch.empty(tensor.numel() + 64 // size, dtype=tensor.dtype)
    first = (-room.data_ptr() % 64 + 4) // size
    copied = room[first : first + tensor.numel()].view(tensor.shape)
    assert copied.data_ptr() % 64 == 4
    return copied.copy_(tensor)


@pytest.mark.parametrize("name", LINEAR)
def test_activations_may_begin_anywhere_in_memory(name: str) -> None:
    """Some of torch's kernels crash on other addresses."""
    row = usable(name)
    layer = layer_of(row, linear(row))
    for count in (1, 3, 5, 203):
        rows = torch.randn(count, 192).to(torch.bfloat16)
        with torch.inference_mode():
            assert torch.equal(layer(misaligned(rows)), layer(rows))


@pytest.mark.parametrize("outputs", [192, 66])
@pytest.mark.parametrize("name", QUANTIZED)
def test_a_layer_from_kept_numbers_is_the_same(name: str, outputs: int, tmp_path: Path) -> None:
    row = usable(name)
    original = linear(row, 192, outputs, bias=True)
    made = row.layer_kernel().layer_for(original, product_dtype=torch.float32)
    if made is None:
        pytest.skip("does not fit")
    assert isinstance(made, QuantizedLinear)
    save_file(made.numbers(), tmp_path / "kept.safetensors")
    kept = load_file(tmp_path / "kept.safetensors")
    for numbers in (kept, {part: misaligned(tensor) for part, tensor in kept.items()}):
        again = row.layer_kernel().layer_for(original, product_dtype=torch.float32, numbers=numbers)
        assert again is not None
        for count in (1, 3, 5, 203):
            rows = torch.randn(count, 192).to(torch.bfloat16)
            with torch.inference_mode():
                assert torch.equal(again(rows), made(rows))
    with pytest.raises(KeyError):
        row.layer_kernel().layer_for(original, product_dtype=torch.float32, numbers={})


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", QUANTIZED)
def test_a_quantized_weight_is_off_by_little_more_than_half_a_step(
    name: str, dtype: torch.dtype
) -> None:
    row = usable(name)
    original = linear(row).to(dtype)
    weight = original.weight.detach()
    # Weights around 5, equal weights, weights of one sign, and zeros.
    weight[3, :32] = 5 + weight[3, :32]
    weight[4] = 0.25
    weight[5] = weight[5].abs()
    weight[6] = 0
    before = weight.clone()
    got = effective_weight(layer_of(row, original), 192, torch.float32)
    assert torch.equal(original.weight, before)
    if row.weights == "int8":
        steps = before.float().abs().amax(1, keepdim=True) / 127
        room = (steps * 0.5).expand(-1, 192)
    else:
        groups = before.float().reshape(192, 6, 32)
        lowest, highest = groups.amin(2), groups.amax(2)
        if name == "int4_compiled":
            # 0 lies between the lowest number and the highest. Steps have 4 bits of fraction, which
            # moves the ends of 15 steps most, and zeros are counted in sixteenths.
            steps = (highest.clamp(min=0) - lowest.clamp(max=0)) / 15
            room = steps * (0.5 + 15 / 2 / 2**5 + 1 / 32)
        else:
            # Steps and lowest values are rounded to 8 bits of precision, which moves the highest of
            # 15 steps most.
            steps = (highest - lowest) / 15
            room = steps * (0.5 + 15 / 2**8) + groups.abs().amax(2) / 2**8
        room = room.repeat_interleave(32, 1)
    # torch's kernels round the product to bfloat16.
    rounded = got.abs() / 2**8 if name.endswith("torch") else got.abs() * 1e-6
    assert ((got - before.float()).abs() <= room + rounded + 1e-7).all()
    assert torch.equal(got[6], torch.zeros(192))


@pytest.mark.parametrize("name", LINEAR)
def test_other_layers_are_left_alone(name: str) -> None:
    class Scaled(nn.Linear):
        """A layer that does more than a product."""

    row = usable(name)
    kernel = row.layer_kernel()
    dtype = torch.bfloat16 if row.weights == "bfloat16" else torch.float32
    for module in (Scaled(96, 192, dtype=dtype), nn.Conv2d(3, 96, 2), nn.LayerNorm(96)):
        assert kernel.layer_for(module, product_dtype=torch.float32) is None


@pytest.mark.parametrize("bias", [True, False])
def test_patches_are_those_of_the_convolution_in_float32(bias: bool) -> None:
    row = KERNELS["bf16_widened_patches"]
    torch.manual_seed(0)
    original = nn.Conv2d(3, 24, 14, stride=14, bias=bias, dtype=torch.bfloat16)
    pixels = torch.randn(2, 3, 56, 70).to(torch.bfloat16)
    with torch.inference_mode():
        given = layer_of(row, original)(pixels)
        exact = copy.deepcopy(original).float()(pixels.float())
    assert (given.dtype, given.shape) == (torch.bfloat16, exact.shape)
    assert relative_error(given, exact) < row.tolerance


def test_a_norm_is_that_of_the_library() -> None:
    row = KERNELS["rms_norm"]
    original = LlamaRMSNorm(96)
    nn.init.normal_(original.weight)
    activations = torch.randn(2, 5, 96)
    with torch.inference_mode():
        given, wanted = layer_of(row, original)(activations), original(activations)
    assert relative_error(given, wanted) < row.tolerance


@pytest.mark.parametrize("queries", [1, 9, 1030])
@pytest.mark.parametrize(
    "name", [name for name, row in KERNELS.items() if "attention" in row.parts]
)
def test_an_attention_kernel_attends_as_the_library_does(name: str, queries: int) -> None:
    from transformers import AttentionInterface

    row = KERNELS[name]
    function = AttentionInterface()[row.attention_kernel().register()]
    torch.manual_seed(0)
    keys = max(queries, 40)
    query, key, value = (torch.randn(1, 2, length, 72) for length in (queries, keys, keys))
    module = SimpleNamespace(num_key_value_groups=1, is_causal=False, training=False)
    with torch.inference_mode():
        given, scores = function(module, query, key, value, None, scaling=0.2, is_causal=False)
        wanted, _ = sdpa_attention_forward(
            module, query, key, value, None, scaling=0.2, is_causal=False
        )
    assert scores is None
    assert relative_error(given, wanted) < row.tolerance
