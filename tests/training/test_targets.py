"""What is trained: the layers of the named parts, as PEFT's files name them."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import cast

import peft
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from idefics_cli.core.errors import IdeficsError, PlanError
from idefics_cli.core.types import Attention, LoadSpec
from idefics_cli.models.families.base import Family
from idefics_cli.models.families.spec import FAMILIES, PartName
from idefics_cli.models.loading.training import load_for_training
from idefics_cli.training.targets import (
    LoraChoice,
    adapter_tensors,
    insert_lora,
    layer_pattern,
    lora_config,
    train_weights,
)
from tests.support.adapters import library_model
from tests.support.training import load_tiny

ALL_PARTS: tuple[PartName, ...] = ("text", "connector", "vision")
# Layers per part of the tiny checkpoints: 7 linear layers in a layer of a text model, 6 in one of
# a vision tower, and none of any head. IDEFICS-1 has 2 layers and one with cross attention.
COUNTS = {
    "idefics": {"text": 3 * 7, "connector": 6, "vision": 2 * 6},
    "idefics2": {"text": 2 * 7, "connector": 3 + 7, "vision": 2 * 6},
    "idefics3": {"text": 2 * 7, "connector": 1, "vision": 2 * 6},
    "smolvlm2": {"text": 2 * 7, "connector": 1, "vision": 2 * 6},
}


def loaded(folder: Path, kind: str, *, attention: Attention = "eager") -> tuple[nn.Module, Family]:
    found = load_tiny(folder, kind, attention=attention)
    return cast("nn.Module", found.model), found.family


@pytest.mark.parametrize("kind", COUNTS)
def test_every_linear_layer_but_the_heads_belongs_to_one_part(kind: str, tmp_path: Path) -> None:
    model, family = loaded(tmp_path, kind)
    linear = {name for name, module in model.named_modules() if isinstance(module, nn.Linear)}
    found: dict[str, int] = {}
    for part in ALL_PARTS:
        targets = insert_lora(loaded(tmp_path, kind)[0], family.spec, LoraChoice((part,), rank=2))
        found[part] = len(targets.layers)
        assert linear.issuperset(targets.layers)
        linear -= set(targets.layers)
    assert found == COUNTS[kind]
    assert linear == {"lm_head"} | ({"lm_head.additional_fc"} if kind == "idefics" else set())


@pytest.mark.parametrize("kind", COUNTS)
def test_all_weights_belong_to_one_part(kind: str, tmp_path: Path) -> None:
    model, family = loaded(tmp_path, kind)
    names = [set(train_weights(model, family.spec, (part,)).parameters) for part in ALL_PARTS]
    assert set.union(*names) == dict(model.named_parameters()).keys()
    assert sum(map(len, names)) == len(set.union(*names))


def test_adapters_are_trained_in_float32_beside_weights_in_bfloat16(tmp_path: Path) -> None:
    load_tiny(tmp_path, "idefics3")
    spec = LoadSpec(str(tmp_path), "idefics3", dtype="bfloat16", attention="eager")
    found = load_for_training(spec)
    targets = insert_lora(cast("nn.Module", found.model), found.family.spec, LoraChoice())
    assert {each.dtype for each in targets.parameters.values()} == {torch.float32}
    trained = {n for n, p in cast("nn.Module", found.model).named_parameters() if p.requires_grad}
    assert trained == targets.parameters.keys()
    assert targets.weights == sum(each.numel() for each in targets.parameters.values())


# PEFT 0.21 asks transformers 5.24 for an attribute by its former name.
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
@pytest.mark.parametrize("is_dora", [False, True])
@pytest.mark.parametrize("kind", COUNTS)
def test_peft_and_transformers_load_what_is_written(
    kind: str, is_dora: bool, tmp_path: Path
) -> None:
    base, folder = tmp_path / "base", tmp_path / "adapter"
    model, family = loaded(base, kind, attention="sdpa")
    choice = LoraChoice(ALL_PARTS, rank=4, alpha=6, is_dora=is_dora)
    targets = insert_lora(model, family.spec, choice)
    torch.manual_seed(5)
    for parameter in targets.parameters.values():
        parameter.data += torch.randn_like(parameter) / 20
    folder.mkdir()
    save_file(adapter_tensors(model), folder / "adapter_model.safetensors")
    config = lora_config(layer_pattern(family.spec, ALL_PARTS), choice, base=str(base))
    config.save_pretrained(str(folder))
    inputs = {"input_ids": torch.tensor([[1, 5, 6, 7]])}
    if kind == "idefics":
        inputs["pixel_values"] = torch.ones(1, 1, 3, 28, 28)
        inputs["image_attention_mask"] = torch.ones(1, 4, 1, dtype=torch.long)

    with torch.no_grad():
        expected = model(**inputs).logits
        by_peft = peft.PeftModel.from_pretrained(library_model(base), str(folder))
        plain = library_model(base)(**inputs).logits
        assert torch.equal(by_peft(**inputs).logits, expected)
        if not is_dora:  # transformers 5.24 loses the lengths of DoRA in any file of PEFT
            by_library = library_model(base)
            by_library.load_adapter(str(folder))
            assert torch.equal(by_library(**inputs).logits, expected)
    assert not torch.allclose(plain, expected, atol=1e-3)


def test_without_peft_the_error_names_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, family = loaded(tmp_path, "idefics2")
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(IdeficsError, match="needs the package `peft`") as caught:
        insert_lora(model, family.spec, LoraChoice())
    assert caught.value.hint == "pip install 'idefics-cli[tune]'"


def test_float16_is_refused_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(PlanError, match="training in float16 ends in NaN"):
        load_for_training(LoadSpec(str(tmp_path), "idefics2", dtype="float16"))


def test_every_family_names_its_parts() -> None:
    assert all(set(family.parts) == set(ALL_PARTS) for family in FAMILIES.values())
