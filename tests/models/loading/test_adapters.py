"""Adapters give the weights that PEFT gives, and what does not fit is an error."""

from __future__ import annotations

import errno
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from idefics_cli.core.errors import ModelError, UsageError
from idefics_cli.core.types import LoadSpec
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.models.hub.adapters import CONFIG, WEIGHTS, find_adapter
from idefics_cli.models.hub.facts import demo_folder
from idefics_cli.models.loading.adapters import BesideLayer, apply_adapter
from idefics_cli.models.loading.loader import load
from idefics_cli.models.loading.merging import write_merged
from tests.support import tiny
from tests.support.adapters import library_model, train
from tests.support.kernels import spec_of
from tests.support.prompts import CONVERSATIONS, as_request

peft = pytest.importorskip("peft")

# PEFT 0.21 uses what transformers 5.24 renames.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*deprecated.*:FutureWarning"),
    pytest.mark.filterwarnings("ignore:.*invalid shape"),  # biases are no matrices
]

VARIANTS: dict[str, dict[str, object]] = {
    "plain": {},
    "rank-stabilized": {"use_rslora": True},
    "dora": {"use_dora": True},
    "patterns": {"rank_pattern": {"q_proj": 2}, "alpha_pattern": {"layers.0.self_attn.v_proj": 9}},
    "bias": {"lora_bias": True, "target_modules": r".*vision_model.*\.(fc1|fc2|q_proj)"},
    "connector": {"modules_to_save": ["modality_projection"]},
}


def answers(spec: LoadSpec) -> list[tuple[int, ...]]:
    """Return the greedy tokens of a model for prompts with zero, one and two pictures."""
    with LocalEngine(spec) as engine:
        prepared = [as_request(engine, turns) for turns in list(CONVERSATIONS.values())[:3]]
        return [completion.token_ids for completion in engine.complete(prepared)]


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize(
    ("kind", "variant"),
    [*((kind, "plain") for kind in tiny.KINDS), *(("idefics2", name) for name in VARIANTS)],
)
def test_merged_weights_are_those_of_peft(
    kind: str, variant: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = checkpoint(kind)
    adapted = train(library_model(folder), tmp_path, **VARIANTS[variant])
    expected = weights_of(adapted.merge_and_unload())
    ours, base = library_model(folder), weights_of(library_model(folder))
    apply_adapter(ours, find_adapter(str(tmp_path)))
    found = weights_of(ours)
    changed = {name for name in base if not torch.equal(base[name], expected[name])}
    assert {name for name in base if not torch.equal(base[name], found[name])} == changed
    assert len(changed) >= 6
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", tiny.LAYERED)
@pytest.mark.parametrize("quantization", ["none", "8bit"])
def test_answers_are_those_of_the_merged_checkpoint(
    kind: str, quantization: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, merged = checkpoint(kind), tmp_path / "merged"
    shutil.copytree(folder, merged)
    train(library_model(folder), tmp_path / "a").merge_and_unload().save_pretrained(merged)
    spec = spec_of(folder, quantization=quantization)
    with_adapter = answers(replace(spec, adapter=find_adapter(str(tmp_path / "a"))))
    assert with_adapter == answers(spec_of(merged, quantization=quantization))
    assert with_adapter != answers(spec)


def test_beside_layers_of_4_bit_the_adapter_is_exact(
    tmp_path: Path, quiet_bitsandbytes: None
) -> None:
    pytest.importorskip("bitsandbytes")
    # On a CPU, bitsandbytes cannot compute layers as narrow as those of the tiny models.
    folder = demo_folder()
    adapted = train(library_model(folder), tmp_path)
    spec = spec_of(folder, quantization="4bit", format_4bit="nf4")
    plain, model = (
        cast("nn.Module", load(replace(spec, adapter=adapter)).model)
        for adapter in (None, find_adapter(str(tmp_path)))
    )
    name = "model.text_model.layers.0.self_attn.q_proj"
    layer = model.get_submodule(name)
    assert isinstance(layer, BesideLayer)
    given = torch.randn(2, 5, layer.down.shape[1])
    trained = adapted.get_submodule(f"base_model.model.{name}")
    with torch.inference_mode():
        down, up = (part["default"].weight.float() for part in (trained.lora_A, trained.lora_B))
        added = 6 / 4 * given @ down.T @ up.T
        expected = plain.get_submodule(name)(given) + added
        torch.testing.assert_close(layer(given), expected, rtol=1e-4, atol=1e-4)
    answers(replace(spec, adapter=find_adapter(str(tmp_path))))


def test_quantized_weights_of_another_adapter_are_not_taken(
    checkpoint: Callable[[str], Path], trained: Path, tmp_path: Path
) -> None:
    folder = checkpoint("idefics2")
    spec = spec_of(folder, quantization="8bit", quantized_folder=str(tmp_path / "kept"))
    found = []
    for adapter in (None, find_adapter(str(trained))):
        for _ in range(2):
            with LocalEngine(
                replace(spec, adapter=adapter), load=partial(load, worth_keeping_bytes=0)
            ) as engine:
                prepared = as_request(engine, CONVERSATIONS["one image"])
                found.append(engine.complete([prepared])[0].token_ids)
    assert found[0] == found[1] != found[2] == found[3]
    assert len(list((tmp_path / "kept").iterdir())) == 2


@pytest.fixture(scope="module")
def trained(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of the tiny model of Idefics2, which no test changes."""
    folder = tmp_path_factory.mktemp("trained")
    train(library_model(checkpoint("idefics2")), folder)
    return folder


@pytest.fixture
def copied(trained: Path, tmp_path: Path) -> Path:
    """A copy of `trained`."""
    return shutil.copytree(trained, tmp_path / "copied")


Damage = Callable[[dict[str, Tensor], dict[str, Any]], object]
Q_PROJ = "base_model.model.model.text_model.layers.0.self_attn.q_proj"
DAMAGES: dict[str, tuple[Damage, str]] = {
    "other module": (
        lambda t, c: t.update({Q_PROJ.replace("q_proj", "x_proj") + ".lora_A.weight": t["A"]}),
        "it has no linear layer model.text_model.layers.0.self_attn.x_proj",
    ),
    "other key": (lambda t, c: t.update({"a.b": t["A"]}), "it has no weight a.b of this shape"),
    "other shape": (
        lambda t, c: t.update({f"{Q_PROJ}.lora_A.weight": torch.ones(4, 7)}),
        "self_attn.q_proj, lora_A must be 4x",
    ),
    "half": (lambda t, c: t.pop(f"{Q_PROJ}.lora_B.weight"), "self_attn.q_proj has lora_A"),
    "not finite": (
        lambda t, c: t[f"{Q_PROJ}.lora_A.weight"].fill_(math.nan),
        "lora_A.weight` has numbers that are not finite",
    ),
    "empty": (lambda t, c: t.clear(), "adapter_model.safetensors is empty"),
    "no dora": (lambda t, c: c.update(use_dora=True), "adapter_config.json does not say what"),
    "other kind": (lambda t, c: c.update(peft_type="IA3"), "is of the kind IA3"),
    "no alpha": (lambda t, c: c.pop("lora_alpha"), "has no number `lora_alpha`"),
    "regex": (lambda t, c: c.update(alpha_pattern={"(a+)+$": 1}), "has an entry `(a+)+$`"),
    "unknown setting": (
        lambda t, c: c.update(trainable_token_indices=[1]),
        "uses `trainable_token_indices`",
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_an_adapter_that_does_not_fit_is_an_error(
    name: str, checkpoint: Callable[[str], Path], copied: Path
) -> None:
    model = library_model(checkpoint("idefics2"))
    tensors = load_file(copied / WEIGHTS)
    config = json.loads((copied / CONFIG).read_text())
    damage, message = DAMAGES[name]
    tensors["A"] = tensors[f"{Q_PROJ}.lora_A.weight"].clone()
    damage(tensors, config)
    tensors.pop("A", None)
    save_file(tensors, copied / WEIGHTS)
    (copied / CONFIG).write_text(json.dumps(config))
    with pytest.raises(ModelError) as caught:
        apply_adapter(model, find_adapter(str(copied)))
    assert message in str(caught.value)
    assert caught.value.hint


def test_a_file_cut_short_is_an_error(checkpoint: Callable[[str], Path], copied: Path) -> None:
    path = copied / WEIGHTS
    path.write_bytes(path.read_bytes()[:-100])
    adapter = find_adapter(str(copied))
    with pytest.raises(ModelError, match="cannot be read"):
        apply_adapter(library_model(checkpoint("idefics2")), adapter)


def test_the_model_of_another_family_is_an_error(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    train(library_model(checkpoint("idefics")), tmp_path)
    with pytest.raises(ModelError, match="does not fit this model: it has no linear layer"):
        apply_adapter(library_model(checkpoint("smolvlm")), find_adapter(str(tmp_path)))


def test_the_digest_changes_with_each_file(copied: Path) -> None:
    digests = [find_adapter(str(copied)).digest]
    for name in (CONFIG, WEIGHTS):
        path = copied / name
        path.write_bytes(path.read_bytes().replace(b"q_proj", b"k_proj", 1) + b" ")
        digests.append(find_adapter(str(copied)).digest)
    assert len(set(digests)) == 3


@pytest.mark.parametrize("kind", ["idefics", "idefics2", "idefics3", "smolvlm"])
def test_a_merged_model_is_written_for_transformers(
    kind: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder, target = checkpoint(kind), tmp_path / "merged"
    expected = weights_of(train(library_model(folder), tmp_path / "a").merge_and_unload())
    spec = replace(spec_of(folder), adapter=find_adapter(str(tmp_path / "a")))
    write_merged(spec, folder, target, report=lambda phase, share: None)
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    found = weights_of(library_model(target))
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-5, atol=1e-6)
    assert answers(spec) == answers(spec_of(target))


def test_a_merged_head_is_no_longer_tied_to_the_embedding(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    model = library_model(checkpoint("smolvlm"))
    model.config.tie_word_embeddings = model.config.get_text_config().tie_word_embeddings = True
    model.tie_weights()
    tied = tmp_path / "tied"
    shutil.copytree(checkpoint("smolvlm"), tied)
    model.save_pretrained(tied)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT advises against an adapter of a tied head
        train(library_model(tied), tmp_path / "a", target_modules=["lm_head"])
    spec = replace(spec_of(tied), adapter=find_adapter(str(tmp_path / "a")))
    write_merged(spec, tied, tmp_path / "merged", report=lambda phase, share: None)
    assert answers(spec) == answers(spec_of(tmp_path / "merged")) != answers(spec_of(tied))


def test_a_folder_in_use_and_quantized_weights_are_not_merged_into(
    checkpoint: Callable[[str], Path], trained: Path, tmp_path: Path
) -> None:
    folder = checkpoint("idefics2")
    spec = replace(spec_of(folder), adapter=find_adapter(str(trained)))
    with pytest.raises(UsageError, match="exists already"):
        write_merged(spec, folder, trained, report=lambda phase, share: None)
    quantized = tmp_path / "quantized"
    shutil.copytree(folder, quantized)
    config = json.loads((quantized / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (quantized / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelError, match="are quantized"):
        write_merged(spec, quantized, tmp_path / "m", report=lambda phase, share: None)
    assert not (tmp_path / "m").exists()


def test_a_full_disk_leaves_no_folder(
    checkpoint: Callable[[str], Path],
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = checkpoint("idefics2")
    spec = replace(spec_of(folder), adapter=find_adapter(str(trained)))

    def copyfile(*paths: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(shutil, "copyfile", copyfile)
    with pytest.raises(ModelError, match=r"cannot write .*No space left"):
        write_merged(spec, folder, tmp_path / "m", report=lambda phase, share: None)
    assert list(tmp_path.iterdir()) == []
