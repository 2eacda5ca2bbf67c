"""The numbers of the registry and the memory formulas agree with the real architectures."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText

from idefics_cli.core.adapters import LoraAdapter
from idefics_cli.core.types import Attention
from idefics_cli.hardware.machine import Machine
from idefics_cli.models.families.spec import FAMILIES
from idefics_cli.models.hub import checkpoint
from idefics_cli.models.hub.facts import ModelFacts, find_facts
from idefics_cli.models.hub.registry import MODELS
from idefics_cli.models.hub.sizes import quantized_weights
from idefics_cli.models.hub.weights import read_weights
from idefics_cli.models.planning.memory import (
    GPU_RUNTIME_BYTES,
    estimate_memory,
    kv_bytes,
    weight_bytes,
    working_bytes,
)
from idefics_cli.models.planning.plan import PlanChoices, make_plan
from idefics_cli.models.planning.verdicts import Fault
from tests.support import machines
from tests.support.real_configs import CONFIGS, image_settings

KV_KIB = {  # KiB of a token in 16 bit, counted from caches of the real classes
    "idefics-9b": 512,
    "idefics-80b": 2560,
    "idefics2-8b": 128,
    "idefics3-8b": 128,
    "smolvlm-256m": 22.5,
    "smolvlm-500m": 40,
    "smolvlm-2.2b": 192,
}


def real_model(name: str) -> nn.Module:
    """Return the model *name* without weights."""
    raw = copy.deepcopy(cast(dict[str, Any], CONFIGS[name]))
    config = AutoConfig.for_model(raw.pop("model_type"), **raw)
    with torch.device("meta"):
        return cast(nn.Module, AutoModelForImageTextToText.from_config(config))


def test_every_model_of_the_registry_has_its_config_here() -> None:
    assert set(CONFIGS) | {"demo"} == set(MODELS)


@pytest.mark.parametrize("name", CONFIGS)
def test_parameters_are_those_of_the_real_architecture(name: str) -> None:
    spec, model = MODELS[name], real_model(name)
    assert sum(p.numel() for p in model.parameters()) == spec.parameters
    skipped = FAMILIES[spec.family].unquantized
    linear = sum(
        module.weight.numel()
        for full_name, module in model.named_modules()
        # transformers' `replace_with_bnb_linear` leaves subclasses out.
        if type(module) is nn.Linear and not full_name.startswith(skipped)
    )
    assert quantized_weights(spec.shape) == linear


@pytest.mark.parametrize("name", CONFIGS)
def test_the_shape_in_the_registry_is_the_one_read_from_the_config(
    name: str, tmp_path: Path
) -> None:
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(image_settings(name)))
    assert checkpoint.shape_of(CONFIGS[name], tmp_path, name) == MODELS[name].shape


def test_the_shape_of_the_built_in_model_is_the_one_read_from_its_files() -> None:
    folder = Path(checkpoint.__file__).parents[2] / "demo" / "weights"
    config = checkpoint.read_config(folder, "demo")
    spec = MODELS["demo"]
    assert checkpoint.shape_of(config, folder, "demo") == spec.shape
    assert read_weights(folder, "demo").parameters == spec.parameters
    assert checkpoint.context_tokens(config, FAMILIES["idefics2"]) == spec.context_tokens
    assert checkpoint.splitting(folder, FAMILIES["idefics2"], "demo") is spec.splitting
    assert checkpoint.chats(folder, FAMILIES["idefics2"], "demo") is spec.chats


@pytest.mark.parametrize("name", KV_KIB)
def test_the_kv_cache_of_a_token_is_the_real_one(name: str) -> None:
    shape = MODELS[name].shape
    assert kv_bytes(shape, dtype="bfloat16", tokens=1) == KV_KIB[name] * 1024
    assert kv_bytes(shape, dtype="float32", tokens=10) == KV_KIB[name] * 1024 * 20


def test_weights_take_what_their_dtype_and_quantization_say() -> None:
    spec = MODELS["idefics2-8b"]

    def gib(dtype: Any, quantization: Any) -> float:
        size = weight_bytes(spec.parameters, spec.shape, dtype=dtype, quantization=quantization)
        return round(size / 2**30, 1)

    assert gib("float32", "none") == 31.3
    assert gib("bfloat16", "none") == gib("float16", "none") == 15.7
    assert gib("bfloat16", "8bit") == 9.2
    assert gib("bfloat16", "4bit") == 6.0


@pytest.mark.parametrize(
    ("attention", "splitting", "gigabytes", "tolerance"),
    [
        ("flash_attention_2", True, 21.0, 0.02),
        ("flash_attention_2", False, 18.1, 0.02),
        ("eager", True, 41.3, 0.06),
        ("eager", False, 22.2, 0.06),
    ],
)
def test_the_peak_of_idefics2_is_the_one_on_its_model_card(
    attention: Attention, splitting: bool, gigabytes: float, tolerance: float
) -> None:
    spec = MODELS["idefics2-8b"]
    load = estimate_memory(
        spec.parameters,
        spec.shape,
        dtype="float16",
        quantization="none",
        attention=attention,
        splitting=splitting,
        context=spec.context_tokens,
    )
    assert (load.total + GPU_RUNTIME_BYTES) / 1e9 == pytest.approx(gigabytes, rel=tolerance)


def test_weights_in_12_bits_count_where_they_are_sure_and_computed_right() -> None:
    machine = machines.cpu(64, "fma", versions={**machines.VERSIONS, "llvmlite": "0.50"})
    facts = find_facts("smolvlm-500m", offline=True)
    spec = MODELS["smolvlm-500m"]
    text = quantized_weights(spec.shape)
    whole = 4 * spec.parameters

    def weights(model: ModelFacts = facts, machine: Machine = machine, **changes: Any) -> int:
        faults = changes.pop("faults", ())
        choices = PlanChoices(**{"dtype": "float32", "quantization": "none", **changes})
        return make_plan(model, choices, machine, faults=faults).needs[0].weights

    assert whole - 2.5 * text <= weights() <= whole - 2.45 * text
    assert weights(replace(facts, files_dtype=None)) == whole
    assert weights(replace(facts, files_dtype="float32")) == whole
    assert weights(replace(facts, adapter=LoraAdapter("a", "/a", "b"))) == whole
    assert weights(machine=machines.cpu(64, "fma")) == whole
    assert weights(faults=[Fault("cpu", "wrong", kernel="float32_12bit")]) == whole
    assert whole / 2 - 0.5 * text <= weights(dtype="bfloat16") <= whole / 2 - 0.45 * text
    assert weights(replace(facts, files_dtype="float32"), dtype="bfloat16") == whole // 2
    assert (
        weights(faults=[Fault("cpu", "wrong", kernel="bf16_12bit")], dtype="bfloat16") == whole // 2
    )


def test_a_short_context_bounds_prompt_and_cache() -> None:
    spec = MODELS["smolvlm-500m"]

    def load(context: int) -> Any:
        return estimate_memory(
            spec.parameters,
            spec.shape,
            dtype="bfloat16",
            quantization="none",
            attention="sdpa",
            splitting=True,
            context=context,
        )

    assert load(1000).kv_cache == kv_bytes(spec.shape, dtype="bfloat16", tokens=1000)
    assert load(8192).kv_cache > load(1000).kv_cache


@pytest.mark.parametrize("name", KV_KIB)
def test_eager_attention_keeps_the_scores_of_a_long_prompt(name: str) -> None:
    shape, tokens = MODELS[name].shape, 4096

    def working(attention: Attention) -> int:
        return working_bytes(
            shape, dtype="float16", attention=attention, splitting=False, tokens=tokens
        )

    eager, sdpa = working("eager"), working("sdpa")
    scores = shape.heads * tokens**2 * 2
    # Once in float16 and twice in float32.
    assert sdpa + 4 * scores < eager <= sdpa + 5 * scores
