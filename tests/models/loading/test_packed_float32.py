"""Float32 models keep weights that are bfloat16 numbers in 12 bits, and compute as before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from idefics_cli.core.types import KernelChoice, LoadSpec
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.models.hub.adapters import find_adapter
from idefics_cli.models.hub.weights import read_weights
from idefics_cli.models.kernels.bf16_12bit.linear import CompactLinear, ExactCompactLinear
from idefics_cli.models.kernels.text_step.step import TextStep
from idefics_cli.models.loading.loader import load
from idefics_cli.models.loading.training import load_for_training
from tests.support import tiny
from tests.support.adapters import library_model, train
from tests.support.kernels import packs_float32, relative_error, spec_of
from tests.support.prompts import CONVERSATIONS, NEW_TOKENS, as_request, open_engine, picture
from tests.support.reference import load_reference

pytestmark = packs_float32

Change = Callable[[dict[str, Tensor]], None]
CopyOf = Callable[..., Path]
GATE, UP = "mlp.gate_proj.weight", "mlp.up_proj.weight"


@pytest.fixture
def copy_of(checkpoint: Callable[[str], Path], tmp_path: Path) -> CopyOf:
    """Return a function that copies a checkpoint, with all weights rounded to bfloat16."""

    def copy(kind: str, change: Change | None = None, *, dtype: torch.dtype) -> Path:
        folder = tmp_path / "copy"
        shutil.copytree(checkpoint(kind), folder)
        path = folder / "model.safetensors"
        rounded = {key: each.to(torch.bfloat16) for key, each in load_file(path).items()}
        stored = {key: each.to(dtype) for key, each in rounded.items()}
        if change is not None:
            change(stored)
        save_file(stored, path, metadata={"format": "pt"})
        return folder

    return copy


def layers(model: object, kind: type[nn.Module]) -> set[str]:
    assert isinstance(model, nn.Module)
    return {name for name, module in model.named_modules() if type(module) is kind}


def logits(spec: LoadSpec) -> Tensor:
    """Return the logits of a text of more rows than a decode step, without a picture."""
    model = load(spec).model
    ids = torch.arange(5, 17).repeat(3)[None]
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if spec.family == "idefics":
        inputs["pixel_values"] = torch.zeros(1, 1, 3, 28, 28)
        inputs["image_attention_mask"] = torch.zeros(1, ids.shape[1], 1, dtype=torch.long)
    with torch.inference_mode():
        found: Tensor = model(**inputs).logits
    return found


def plain(spec: LoadSpec) -> LoadSpec:
    return replace(spec, kernels=KernelChoice())


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        *((kind, torch.bfloat16) for kind in tiny.LAYERED),
        ("idefics", torch.float32),
        ("idefics3", torch.float32),
    ],
    ids=str,
)
def test_answers_and_logits_are_those_of_float32(
    kind: str, dtype: torch.dtype, copy_of: CopyOf
) -> None:
    folder = copy_of(kind, dtype=dtype)
    reference = load_reference(folder, kind)
    with open_engine(folder, kind) as engine:
        assert layers(engine.loaded.model, ExactCompactLinear)
        assert engine.loaded.model.model.dtype == torch.float32
        for turns in list(CONVERSATIONS.values())[:3]:
            theirs = reference.inputs(
                [(role, [picture(i) for i in images], text) for role, images, text in turns]
            )
            (answer,) = engine.complete([as_request(engine, turns)])
            assert list(answer.token_ids) == reference.generate(theirs, max_new_tokens=NEW_TOKENS)
    spec = spec_of(folder, dtype="float32")
    assert relative_error(logits(spec), logits(plain(spec))) < 1e-5


@pytest.mark.parametrize("kind", tiny.LAYERED)
def test_all_but_the_packed_weights_is_as_in_the_whole_model(kind: str, copy_of: CopyOf) -> None:
    spec = spec_of(copy_of(kind, dtype=torch.bfloat16), dtype="float32")
    ours, whole = load(spec).model, load(plain(spec)).model
    assert isinstance(ours, nn.Module)
    assert isinstance(whole, nn.Module)
    packed = layers(ours, ExactCompactLinear)
    given = {**dict(ours.named_parameters()), **dict(ours.named_buffers())}
    for name, tensor in {**dict(whole.named_parameters()), **dict(whole.named_buffers())}.items():
        if name.rpartition(".")[0] in packed and name.endswith(".weight"):
            assert name not in given
        else:
            assert given[name].dtype == tensor.dtype, name
            assert torch.equal(given[name], tensor), name


@pytest.mark.parametrize("kind", ["idefics2", "idefics3", "smolvlm"])
def test_a_token_runs_through_such_layers_in_one_call(
    kind: str, copy_of: CopyOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    run = TextStep.__call__

    def counted(step: TextStep, states: Tensor, *arguments: object) -> Tensor:
        calls.append(len(states))
        return run(step, states, *arguments)  # type: ignore[arg-type] # as given

    monkeypatch.setattr(TextStep, "__call__", counted)
    with open_engine(copy_of(kind, dtype=torch.bfloat16), kind) as engine:
        assert answered(engine)
        assert calls


def answered(engine: LocalEngine) -> tuple[int, ...]:
    (answer,) = engine.complete([as_request(engine, CONVERSATIONS["one image"])])
    return tuple(answer.token_ids)


def test_weights_that_are_no_bfloat16_numbers_stay_in_float32(
    checkpoint: Callable[[str], Path],
) -> None:
    spec = spec_of(checkpoint("idefics2"), dtype="float32")
    assert spec.kernels.text == ("float32_12bit",)
    model = load(spec).model
    assert not layers(model, ExactCompactLinear)
    assert torch.equal(
        logits(replace(spec, kernels=replace(spec.kernels, norm=()))),
        logits(replace(spec, kernels=replace(spec.kernels, norm=(), text=(), head=()))),
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_each_layer_is_decided_by_its_own_weights(dtype: torch.dtype, copy_of: CopyOf) -> None:
    def change(stored: dict[str, Tensor]) -> None:
        for key in stored:
            if key.endswith(GATE) and "text_model" in key:
                # In a file of bfloat16 weights, these stay in float32.
                stored[key] = stored[key].float() * (1 + 2.0**-12)

    folder = copy_of("idefics3", change, dtype=dtype)
    spec = spec_of(folder, dtype="float32")
    model = load(spec).model
    text = {n for n in layers(model, nn.Linear) if n.startswith("model.text_model")}
    assert text == {n for n in text if n.endswith("gate_proj")}
    assert len(text) > 1
    packed = layers(model, ExactCompactLinear)
    assert {n.replace("gate_proj", "up_proj") for n in text} <= packed
    assert relative_error(logits(spec), logits(plain(spec))) < 1e-5
    assert read_weights(folder, "mixed").dtype == ("float32" if dtype == torch.float32 else None)


def test_a_file_that_is_not_of_the_model_changes_nothing(copy_of: CopyOf) -> None:
    folder = copy_of("idefics3", dtype=torch.bfloat16)
    spec = spec_of(folder, dtype="float32")
    before = logits(spec)
    (folder / "beside.safetensors").touch()
    assert torch.equal(logits(spec), before)


def test_a_damaged_weight_shows(copy_of: CopyOf) -> None:
    def damage(stored: dict[str, Tensor]) -> None:
        key = next(key for key in stored if key.endswith(UP) and "text_model" in key)
        stored[key][1, 2] = torch.nan

    spec = spec_of(copy_of("idefics2", damage, dtype=torch.bfloat16), dtype="float32")
    assert layers(load(spec).model, ExactCompactLinear)
    assert not logits(spec).isfinite().any()


@pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning")
def test_an_adapter_is_merged_in_float32(copy_of: CopyOf, tmp_path: Path) -> None:
    folder = copy_of("idefics3", dtype=torch.bfloat16)
    train(library_model(folder), tmp_path / "adapter", target_modules=r".*text_model.*gate_proj")
    record = tmp_path / "adapter" / "adapter_config.json"
    settings = json.loads(record.read_text())
    record.write_text(json.dumps({**settings, "base_model_name_or_path": str(folder)}))
    spec = replace(
        spec_of(folder, dtype="float32"), adapter=find_adapter(str(tmp_path / "adapter"))
    )
    model = load(spec).model
    merged = {n for n in layers(model, nn.Linear) if n.endswith("gate_proj") and "text" in n}
    assert merged
    assert relative_error(logits(spec), logits(plain(spec))) < 1e-5
    assert relative_error(logits(spec), logits(replace(spec, adapter=None))) > 1e-3


def test_training_gets_weights_with_gradients(copy_of: CopyOf) -> None:
    spec = spec_of(copy_of("idefics3", dtype=torch.bfloat16), dtype="float32")
    model = load_for_training(spec).model
    assert isinstance(model, nn.Module)
    assert not [each for each in model.modules() if isinstance(each, CompactLinear)]
    assert {each.dtype for each in model.parameters()} == {torch.float32}
