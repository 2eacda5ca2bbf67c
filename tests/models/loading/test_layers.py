"""A loaded model has the kernels that its plan names, and no others."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from idefics_cli.core.errors import ModelError
from idefics_cli.core.types import KernelChoice, LoadSpec
from idefics_cli.hardware.machine import Machine
from idefics_cli.models.families.classes import model_class
from idefics_cli.models.families.internals import attention_of
from idefics_cli.models.families.spec import find_family
from idefics_cli.models.hub.facts import demo_folder
from idefics_cli.models.kernels.bf16_12bit.linear import CompactLinear
from idefics_cli.models.kernels.int4 import kernel as int4_kernel
from idefics_cli.models.kernels.int8.linear import Int8Linear
from idefics_cli.models.kernels.self_tests import find_failing_kernels
from idefics_cli.models.kernels.table import KERNELS, Kernel
from idefics_cli.models.kernels.widened import WidenedLinear
from idefics_cli.models.loading.layers import ChosenKernels, install
from idefics_cli.models.loading.loader import load
from tests.support import machines, tiny
from tests.support.kernels import HERE, lying, needs_compiler, refusing, spec_of, with_kernels

VERSIONS = {**machines.VERSIONS, "llvmlite": "0.46.0"}
NATIVE = machines.cpu(24, "fma", "avx512f", "avx512_bf16", versions=VERSIONS)
EMULATING = machines.cpu(24, "fma", "avx512f", versions=VERSIONS)
BARE = machines.machine(24, flags=())
IDEFICS2 = find_family("idefics2")
DEMO = LoadSpec(repo="demo", family="idefics2")
PARTS = {
    "text": "model.text_model.layers.0.mlp.gate_proj",
    "keys": "model.text_model.layers.0.self_attn.k_proj",
    "head": "lm_head",
    "connector": "model.connector.perceiver_resampler.layers.0.mlp.gate_proj",
    "projection": "model.connector.modality_projection.gate_proj",
    "vision": "model.vision_model.encoder.layers.0.self_attn.k_proj",
    "patches": "model.vision_model.embeddings.patch_embedding",
    "norm": "model.text_model.norm",
}


def loaded(spec: LoadSpec, machine: Machine = HERE) -> nn.Module:
    """Load the model of *spec* with the kernels for *machine*."""
    model = load(with_kernels(spec, machine), machine=machine).model
    assert isinstance(model, nn.Module)
    return model


def layers(model: nn.Module, kind: type[nn.Module]) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, kind)}


def with_12_bits_from(size: int) -> dict[str, Kernel]:
    """Return the table with another size of the smallest layers that are kept in 12 bits."""
    row = KERNELS["bf16_12bit"]
    return {**KERNELS, row.name: replace(row, smallest_weights=size)}


@pytest.mark.parametrize(
    ("machine", "dtype", "quantization", "expected"),
    [
        (NATIVE, "float32", "none", "Linear Linear Linear Linear Linear Linear Conv2d"),
        (
            NATIVE, "bfloat16", "none",
            "CompactLinear CompactLinear Linear Linear Linear Linear Conv2d",
        ),
        (
            NATIVE, "bfloat16", "8bit",
            "CompiledInt8Linear CompiledInt8Linear CompiledInt8Linear Linear Linear Linear Conv2d",
        ),
        (
            NATIVE, "bfloat16", "int4",
            "CompiledInt4Linear CompiledInt4Linear CompiledInt8Linear Linear Linear Linear Conv2d",
        ),
        (
            EMULATING, "bfloat16", "none",
            "CompactLinear CompactLinear WidenedLinear WidenedLinear WidenedLinear WidenedLinear "
            "WidenedConv2d",
        ),
        (
            EMULATING, "bfloat16", "8bit",
            "CompiledInt8Linear CompiledInt8Linear CompiledInt8Linear WidenedLinear "
            "CompiledInt8Linear CompiledInt8Linear WidenedConv2d",
        ),
        (
            machines.cpu(24), "float32", "int4",
            # torch's kernel needs blocks of 64 outputs; three heads of 32 are no multiple of that.
            "TorchInt4Linear TorchInt8Linear TorchInt8Linear Linear Linear Linear Conv2d",
        ),
        (
            BARE, "bfloat16", "int4",
            "Int4Linear TorchInt8Linear TorchInt8Linear Linear Linear Linear Conv2d",
        ),
        (BARE, "bfloat16", "none", "Linear Linear Linear Linear Linear Linear Conv2d"),
    ],
)  # fmt: skip
@needs_compiler
def test_every_part_gets_the_first_kernel_that_fits(
    machine: Machine, dtype: str, quantization: str, expected: str
) -> None:
    small = {"8bit": {"quantization": "8bit"}, "none": {}}
    changes = small.get(quantization, {"quantization": "4bit", "format_4bit": "int4"})
    model = loaded(replace(DEMO, dtype=dtype, **changes), machine)  # type: ignore[arg-type] # Literals
    found = [type(model.get_submodule(path)).__name__ for path in PARTS.values()]
    assert found == [*expected.split(), "CpuRMSNorm"]
    name = "cpu_sdpa_tiled" if machine is NATIVE and dtype == "bfloat16" else "cpu_sdpa"
    assert getattr(model.config, "_attn_implementation") == name  # noqa: B009 # untyped


def test_a_plan_without_kernels_leaves_the_model_to_the_libraries() -> None:
    model = load(replace(DEMO, dtype="bfloat16")).model
    assert isinstance(model, nn.Module)
    modules = {type(module).__module__.split(".")[0] for module in model.modules()}
    assert modules == {"torch", "transformers"}


@pytest.mark.parametrize("names", [("int4_compiled", "int4_widened"), ("no_such_kernel",)])
def test_a_plan_for_another_machine_is_refused(names: tuple[str, ...]) -> None:
    with pytest.raises(ModelError, match=f"`{names[0]}` cannot run here: .") as caught:
        load(replace(DEMO, kernels=KernelChoice(text=names)), machine=BARE)
    assert "plan" in str(caught.value.hint)


def test_a_plan_for_8_bit_on_a_cpu_that_names_no_kernel_is_a_mistake() -> None:
    with pytest.raises(ModelError, match="names no kernel"):
        load(replace(DEMO, quantization="8bit"))


@needs_compiler
def test_a_kernel_that_fails_its_self_test_is_replaced_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(int4_kernel, "product", lying(int4_kernel.product))
    with caplog.at_level(logging.WARNING):
        model = loaded(replace(DEMO, quantization="4bit", format_4bit="int4"))
    assert type(model.get_submodule(PARTS["text"])).__name__ == "TorchInt4Linear"
    assert [record.message for record in caplog.records] == [
        "the kernel `int4_compiled` fails its self-test; `int4_torch` replaces it"
    ]
    # `idefics doctor` asks this, so that it names what loading uses.
    choice = with_kernels(replace(DEMO, quantization="4bit", format_4bit="int4")).kernels
    assert find_failing_kernels(choice) == ("int4_compiled",)


def test_attention_that_fails_its_self_test_is_replaced_with_a_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    spec = replace(DEMO, kernels=KernelChoice(attention="cuda_split_keys"))
    assert attention_of(load(spec).model.config) == "cuda_split_keys"
    monkeypatch.setattr(torch, "bmm", refusing)
    with caplog.at_level(logging.WARNING):
        model = load(spec).model
    assert attention_of(model.config) == "sdpa"
    assert [record.message for record in caplog.records] == [
        "the kernel `cuda_split_keys` fails its self-test; `sdpa` replaces it"
    ]
    assert find_failing_kernels(spec.kernels) == ("cuda_split_keys",)


@needs_compiler
def test_what_one_kernel_keeps_is_not_read_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    choice = with_kernels(replace(DEMO, quantization="4bit", format_4bit="int4")).kernels
    before = ChosenKernels(choice, HERE).layout()
    monkeypatch.setattr(int4_kernel, "product", lying(int4_kernel.product))
    assert ChosenKernels(choice, HERE).layout() != before


class Parts(nn.Module):
    """A model with one layer of each kind that is treated differently."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Module()
        self.model.vision_model = nn.Module()
        self.model.vision_model.patches = nn.Linear(32, 32, dtype=torch.bfloat16)
        self.model.text = nn.Linear(32, 32, dtype=torch.bfloat16)
        self.model.small = nn.Linear(32, 16, dtype=torch.bfloat16)
        self.model.odd = nn.Linear(32, 40, dtype=torch.bfloat16)
        self.model.embed = nn.Embedding(64, 32, dtype=torch.bfloat16)
        self.lm_head = nn.Linear(32, 64, bias=False, dtype=torch.bfloat16)


@needs_compiler
@pytest.mark.parametrize("is_tied", [True, False])
def test_12_bits_are_for_large_layers_with_few_rows_and_weights_of_their_own(
    is_tied: bool,
) -> None:
    model: Any = Parts()  # `install` replaces the layers by ones of other classes
    if is_tied:
        model.lm_head.weight = model.model.embed.weight
    both = ("bf16_12bit", "bf16_widened")
    choice = KernelChoice(text=both, head=both, vision=("bf16_widened",))
    install(model, ChosenKernels(choice, EMULATING, kernels=with_12_bits_from(32 * 32)), IDEFICS2)
    assert type(model.model.vision_model.patches) is WidenedLinear
    assert type(model.model.text) is CompactLinear
    assert type(model.model.small) is WidenedLinear
    assert type(model.model.odd) is CompactLinear
    # The embedding keeps the weights in memory anyway, so 12 bits would save nothing.
    assert type(model.lm_head) is (WidenedLinear if is_tied else CompactLinear)


@needs_compiler
def test_the_built_in_model_says_the_same_with_12_bits() -> None:
    spec = with_kernels(replace(DEMO, dtype="bfloat16"), EMULATING)
    ids = torch.arange(5, 45)[None]
    plain, ours = loaded(spec, EMULATING), load(replace(spec, kernels=KernelChoice())).model
    assert isinstance(ours, nn.Module)
    chosen = ChosenKernels(spec.kernels, EMULATING, kernels=with_12_bits_from(0))
    install(ours, chosen, IDEFICS2)
    assert any(isinstance(part, CompactLinear) for part in ours.modules())
    with torch.inference_mode():
        wanted, given = (model(input_ids=ids).logits for model in (plain, ours))
    torch.testing.assert_close(given, wanted, rtol=0.05, atol=0.25)
    assert torch.equal(given.argmax(-1)[0, -1], wanted.argmax(-1)[0, -1])


@pytest.mark.parametrize("machine", [NATIVE, EMULATING], ids=["native", "emulating"])
@pytest.mark.parametrize("kind", tiny.LAYERED)
def test_a_model_in_bfloat16_gives_the_logits_of_torch(
    kind: str, machine: Machine, checkpoint: Callable[[str], Path]
) -> None:
    spec = spec_of(checkpoint(kind), dtype="bfloat16")
    ours, plain = loaded(spec, machine), load(replace(spec, kernels=KernelChoice())).model
    assert isinstance(plain, nn.Module)
    names = layers(ours, CompactLinear)
    assert names
    if machine is NATIVE:
        outside = set(find_family(spec.family).unquantized) - {"lm_head"}
        assert not {name for name in names if name.startswith(tuple(outside))}
        assert layers(plain, nn.Linear) - layers(ours, nn.Linear) == names
    # More rows than `WidenedLinear` leaves to torch.
    ids = torch.arange(5, 17).repeat(3)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if kind == "idefics":
        inputs["pixel_values"] = torch.zeros(1, 1, 3, 28, 28, dtype=torch.bfloat16)
        inputs["image_attention_mask"] = torch.zeros(1, ids.shape[1], 1, dtype=torch.long)
    with torch.inference_mode():
        one, other = (model(**inputs).logits.float() for model in (ours, plain))
    # The order of the sums differs, and random weights amplify the difference.
    assert (one - other).norm() < 0.03 * other.norm()


def tensors(model: nn.Module) -> dict[str, Tensor]:
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


@pytest.mark.parametrize("kind", ["demo", "idefics in 16 bit", *tiny.LAYERED])
def test_all_but_the_rounded_weights_is_as_in_the_whole_model(
    kind: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = demo_folder() if kind == "demo" else checkpoint(kind.partition(" ")[0])
    if kind.endswith("16 bit"):
        folder = in_16_bit(folder, tmp_path / "half")
    spec = spec_of(folder, quantization="8bit")
    whole, small = loaded(replace(spec, quantization="none")), loaded(spec)
    rounded = layers(small, Int8Linear)
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
    assert ("lm_head" in rounded) == (spec.family != "idefics")
    family = find_family(spec.family)
    left = {name for name in rounded - {"lm_head"} if name.startswith(family.unquantized)}
    assert all(name.startswith(family.patch_modules) for name in left)
    assert bool(left) == ("int8_patches" in with_kernels(spec).kernels.vision)


@needs_compiler
@pytest.mark.parametrize("kind", tiny.LAYERED)
def test_the_vision_model_gets_8_bits_where_these_are_faster(
    kind: str, checkpoint: Callable[[str], Path]
) -> None:
    spec = spec_of(checkpoint(kind), quantization="4bit", format_4bit="int4")
    patches = find_family(spec.family).patch_modules
    emulating, native = (loaded(spec, machine) for machine in (EMULATING, NATIVE))
    assert not {name for name in layers(native, Int8Linear) if name.startswith(patches)}
    found = {name for name in layers(emulating, Int8Linear) if name.startswith(patches)}
    assert found == {name for name in layers(native, nn.Linear) if name.startswith(patches)}


@needs_compiler
def test_weights_kept_without_those_of_the_vision_model_are_not_read_with_them() -> None:
    spec = replace(DEMO, quantization="8bit")
    kept = {
        ChosenKernels(with_kernels(spec, machine).kernels, machine).layout()
        for machine in (EMULATING, NATIVE)
    }
    assert len(kept) == 2


def in_16_bit(folder: Path, target: Path) -> Path:
    """Copy the checkpoint of IDEFICS-1 in *folder* to *target*, with weights in bfloat16."""
    shutil.copytree(folder, target)
    model_class("idefics").from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(target)
    return target
