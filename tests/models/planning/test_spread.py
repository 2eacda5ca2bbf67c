"""Models on several devices: transformers places them where the plan says that they fit."""

from __future__ import annotations

import copy
from collections import Counter
from typing import Any, cast

import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForImageTextToText
from transformers.integrations.accelerate import (
    compute_module_sizes,
    get_max_memory,
    infer_auto_device_map,
)
from transformers.quantizers.auto import AutoHfQuantizer

from idefics_cli.core.types import LoadSpec
from idefics_cli.core.units import GIB
from idefics_cli.hardware.machine import Machine
from idefics_cli.models.hub.facts import find_facts
from idefics_cli.models.loading.bitsandbytes import bitsandbytes_config
from idefics_cli.models.loading.weights import accelerate_memory
from idefics_cli.models.planning.plan import PlanChoices, make_plan
from tests.support import machines
from tests.support.machines import A100, H100, RTX_2080_TI, RTX_3070, RTX_4090
from tests.support.real_configs import CONFIGS

Place = int | str


def placed(spec: LoadSpec) -> dict[Place, int]:
    """Return the bytes that each device gets when transformers places the real model."""
    raw = copy.deepcopy(cast(dict[str, Any], CONFIGS[spec.name]))
    config = AutoConfig.for_model(raw.pop("model_type"), **raw)
    with torch.device("meta"):
        model = AutoModelForImageTextToText.from_config(config, dtype=getattr(torch, spec.dtype))
    settings, quantizer = bitsandbytes_config(spec), None
    # Like `_get_device_map` of transformers 5.23 for "sequential".
    memory = get_max_memory(accelerate_memory(spec.max_memory))
    if settings is not None:
        quantizer = AutoHfQuantizer.from_config(settings)
        quantizer._process_model_before_weight_loading(model, device_map=None)
        memory = quantizer.adjust_max_memory(memory)
    places: dict[str, Place] = infer_auto_device_map(
        model,
        max_memory=memory,
        no_split_module_classes=cast(Any, model)._no_split_modules,
        hf_quantizer=quantizer,
    )
    sizes, _ = compute_module_sizes(cast(nn.Module, model), quantizer)
    totals: Counter[Place] = Counter()
    for name, place in places.items():
        totals[place] += sizes[name]
    return dict(totals)


@pytest.mark.parametrize(
    ("model", "machine", "choices"),
    [
        ("idefics-80b", machines.gpus(RTX_4090, RTX_4090), {}),
        ("idefics-80b", machines.gpus(H100, RTX_4090), {"quantization": "8bit"}),
        ("idefics-80b", machines.gpus(A100, A100, A100), {}),
        ("idefics-9b", machines.gpus(*[RTX_3070] * 3), {"quantization": "none"}),
        ("idefics2-8b", machines.gpus(RTX_3070, ram=32), {"quantization": "none"}),
        ("idefics3-8b", machines.gpus(RTX_3070, ram=32), {"quantization": "none"}),
        ("idefics2-8b", machines.gpus(RTX_2080_TI, RTX_2080_TI), {"quantization": "none"}),
        ("idefics-80b", machines.gpus(RTX_4090, RTX_4090, ram=256), {"quantization": "none"}),
    ],
)
def test_what_the_plan_spreads_lands_where_there_is_room(
    model: str, machine: Machine, choices: dict[str, Any]
) -> None:
    plan = make_plan(find_facts(model), PlanChoices(**choices), machine)
    assert plan.spec.device_map == "auto"
    places = placed(plan.spec)
    # Nothing is on the disk, and RAM is used only if the plan says so.
    assert set(places) == {
        int(need.device[5:]) if need.device.startswith("cuda") else "cpu" for need in plan.needs
    }
    for need in plan.needs:
        key: Place = int(need.device[5:]) if need.device.startswith("cuda") else "cpu"
        beside = need.kv_cache + need.working
        assert places[key] + beside <= need.free
        assert places[key] == pytest.approx(need.weights, rel=0.25, abs=2 * GIB)
