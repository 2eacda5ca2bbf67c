"""Settings of bitsandbytes, and checkpoints with quantized weights."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import nn

from idefics_cli.core.types import DtypeName, LoadSpec, Quantization
from idefics_cli.hardware.machine import probe_machine
from idefics_cli.models.families.classes import model_class
from idefics_cli.models.families.spec import FAMILIES
from idefics_cli.models.hub.facts import demo_folder, find_facts
from idefics_cli.models.kernels.widened import WidenedConv2d, WidenedLinear
from idefics_cli.models.loading.bitsandbytes import bitsandbytes_config
from idefics_cli.models.loading.loader import load
from idefics_cli.models.planning.plan import PlanChoices, make_plan
from idefics_cli.models.planning.quantization import METHODS

bitsandbytes = pytest.importorskip("bitsandbytes")

pytestmark = pytest.mark.usefixtures("quiet_bitsandbytes")


def spec(**changes: Any) -> LoadSpec:
    return LoadSpec(**{"repo": "demo", "family": "idefics2", **changes})


def test_every_quantization_has_a_method() -> None:
    assert set(METHODS) == set(get_args(Quantization))


def test_nothing_is_set_when_nothing_is_quantized() -> None:
    assert bitsandbytes_config(spec()) is None


@pytest.mark.parametrize("dtype", get_args(DtypeName))
@pytest.mark.parametrize("family", FAMILIES)
def test_four_bits_are_nf4_with_double_quantization(family: str, dtype: str) -> None:
    settings: Any = bitsandbytes_config(spec(family=family, dtype=dtype, quantization="4bit"))
    assert settings.load_in_4bit
    assert not settings.load_in_8bit
    assert settings.bnb_4bit_quant_type == "nf4"
    assert settings.bnb_4bit_use_double_quant
    assert settings.bnb_4bit_compute_dtype is getattr(torch, dtype)
    # transformers matches from the start of a module's full name.
    assert {"model.vision_model", "lm_head"} < set(settings.llm_int8_skip_modules)


@pytest.mark.parametrize("family", FAMILIES)
def test_eight_bits_skip_the_same_modules(family: str) -> None:
    settings: Any = bitsandbytes_config(spec(family=family, quantization="8bit"))
    assert settings.load_in_8bit
    assert not settings.load_in_4bit
    assert settings.llm_int8_skip_modules == list(FAMILIES[family].unquantized)


def kinds(model: nn.Module) -> dict[str, type[nn.Module]]:
    plain = {WidenedLinear: nn.Linear, WidenedConv2d: nn.Conv2d}

    def kind(part: nn.Module) -> type[nn.Module]:
        name = type(part).__name__
        if name.endswith("RMSNorm"):
            return nn.RMSNorm
        # `GeluMlp` has the layers of the class that it stands for.
        return nn.Module if name.lower().endswith("mlp") else plain.get(type(part), type(part))

    parts = dict(model.named_modules())
    return {name: kind(part) for name, part in parts.items() if not name.endswith("activation_fn")}


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_checkpoint_that_is_stored_quantized_loads_as_it_is(
    quantization: str, tmp_path: Path
) -> None:
    machine = probe_machine()
    choices = PlanChoices(device="cpu", quantization=quantization, dtype="bfloat16")
    made = make_plan(find_facts("demo"), choices, machine).spec
    settings = bitsandbytes_config(made)
    # This uses transformers: on a CPU `load` quantizes to 8 bit without bitsandbytes.
    original = model_class("idefics2").from_pretrained(
        demo_folder(), quantization_config=settings, dtype=torch.bfloat16, device_map="cpu"
    )
    original.eval()
    folder = tmp_path / "stored"
    shutil.copytree(demo_folder(), folder)
    (folder / "model.safetensors").unlink()
    original.save_pretrained(folder)

    facts = find_facts(str(folder))
    assert (facts.stored, facts.stored_dtype) == (quantization, "bfloat16")
    # The plan keeps the stored dtype, although small models get float32 otherwise.
    plan = make_plan(facts, PlanChoices(device="cpu"), machine)
    assert (plan.spec.quantization, plan.spec.dtype) == (quantization, "bfloat16")
    again = load(plan.spec).model
    assert isinstance(original, nn.Module)
    assert isinstance(again, nn.Module)
    # Layers that are not quantized may have other kernels.
    assert kinds(original) == kinds(again)
    saved, loaded = original.state_dict(), again.state_dict()
    assert saved.keys() == loaded.keys()
    for name, tensor in saved.items():
        if isinstance(tensor, torch.Tensor):
            assert tensor.dtype == loaded[name].dtype, name
            assert torch.equal(tensor, loaded[name]), name
