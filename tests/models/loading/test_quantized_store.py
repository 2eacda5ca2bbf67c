"""Quantized weights that are kept: loaded again they are the same, and damage is noticed."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from idefics_cli.cli.services import Services
from idefics_cli.core.errors import ModelError
from idefics_cli.core.types import LoadSpec
from idefics_cli.models.hub.facts import demo_folder
from idefics_cli.models.kernels.int4 import kernel as int4_kernel
from idefics_cli.models.kernels.int8.linear import Int8Linear
from idefics_cli.models.loading import layers as quantized_layers
from idefics_cli.models.loading import quantized_store, weights
from idefics_cli.models.loading.loader import keep_quantized, load
from tests.support import machines
from tests.support.commands import run

pytest.importorskip("bitsandbytes")


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    """bitsandbytes tells of its CPU kernels."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(params=["nf4", "int4", "8bit"])
def spec(request: pytest.FixtureRequest, tmp_path: Path) -> LoadSpec:
    return LoadSpec(
        repo="demo",
        family="idefics2",
        quantization="8bit" if request.param == "8bit" else "4bit",
        format_4bit="int4" if request.param == "int4" else "nf4",
        quantized_folder=str(tmp_path / "kept"),
    )


def numbers(spec: LoadSpec) -> Iterator[str]:
    """The names of what is kept of the built-in model."""
    yield from ("lm_head.weight", "lm_head.scale")
    for layer in range(4):
        for part in ("q", "k", "v", "o", "gate", "up", "down"):
            place = "mlp" if len(part) > 1 else "self_attn"
            small = spec.quantization == "4bit"
            # The keys of three heads are no block of 64, which torch's kernel needs.
            if small and not int4_kernel.is_right():
                small = part not in ("k", "v")
            kind = quantized_layers._four_bit() if small else Int8Linear
            for name in kind.NUMBERS:
                yield f"model.text_model.layers.{layer}.{place}.{part}_proj.{name}"


def tensors(model: object) -> dict[str, torch.Tensor]:
    assert isinstance(model, nn.Module)
    found = {**model.state_dict(), **dict(model.named_buffers())}
    return {name: value for name, value in found.items() if isinstance(value, torch.Tensor)}


def assert_same(one: object, other: object) -> None:
    ours, theirs = tensors(one), tensors(other)
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        assert (tensor.dtype, tensor.shape) == (theirs[name].dtype, theirs[name].shape), name
        assert torch.equal(tensor, theirs[name]), name


def phases(spec: LoadSpec) -> tuple[object, list[str]]:
    told: list[str] = []
    return load(spec, report=lambda phase, share: told.append(phase)).model, told


def test_kept_weights_are_those_that_were_made(
    spec: LoadSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = load(replace(spec, quantized_folder=None)).model
    place = keep_quantized(spec)
    before = place.stat().st_mtime_ns
    read: list[object] = []
    original = weights._from_files

    def watched(folder: Path, *rest: Any, **named: Any) -> Any:
        read.append(folder if folder == place else sorted(named["layers"]))
        return original(folder, *rest, **named)

    monkeypatch.setattr(weights, "_from_files", watched)
    kept = load(spec).model
    nf4 = spec.quantization == "4bit" and spec.format_4bit == "nf4"
    assert read == [place if nf4 else sorted(numbers(spec))]
    assert_same(kept, made)
    assert getattr(kept, "config").perceiver_config.rms_norm_eps == 1e-5  # noqa: B009
    assert keep_quantized(spec) == place
    assert place.stat().st_mtime_ns == before


def test_our_own_layers_need_no_more_room_than_they_take(
    spec: LoadSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    if spec.format_4bit == "nf4" and spec.quantization == "4bit":
        pytest.skip("bitsandbytes does not tell")
    needed: list[int] = []
    original = quantized_store.save

    def watched(*arguments: Any, needed_bytes: int) -> None:
        needed.append(needed_bytes)
        original(*arguments, needed_bytes=needed_bytes)

    monkeypatch.setattr(quantized_store, "save", watched)
    (file,) = keep_quantized(spec).glob("*.safetensors")
    # Beside the numbers there is a table of where they are.
    assert needed[0] < file.stat().st_size < needed[0] + 20_000


def test_a_large_model_keeps_its_weights_when_it_is_first_loaded(
    spec: LoadSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(str(spec.quantized_folder))
    _, told = phases(spec)
    assert not root.exists()
    monkeypatch.setattr(weights, "_WORTH_KEEPING_BYTES", 0)
    first, told = phases(spec)
    assert "keeping the quantized weights" in told
    (entry,) = quantized_store.stored(root)
    assert (entry.repo, entry.quantization) == ("demo", spec.quantization)
    second, told = phases(spec)
    assert "keeping the quantized weights" not in told
    assert_same(first, second)


@pytest.mark.parametrize("damage", ["a flipped bit", "cut off", "no manifest", "a file is gone"])
def test_what_is_damaged_is_made_again(
    spec: LoadSpec, damage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "_WORTH_KEEPING_BYTES", 0)
    place = keep_quantized(spec)
    (weight,) = place.glob("*.safetensors")
    data = bytearray(weight.read_bytes())
    if damage == "a flipped bit":
        data[len(data) // 2] ^= 1
        weight.write_bytes(data)
    elif damage == "cut off":
        weight.write_bytes(data[:-100])
    elif damage == "no manifest":
        (place / "idefics.json").unlink()
    else:
        weight.unlink()
    assert not quantized_store.is_whole(place)
    model, told = phases(spec)
    assert "keeping the quantized weights" in told
    assert quantized_store.is_whole(place)
    assert_same(model, load(replace(spec, quantized_folder=None)).model)


def test_another_file_method_or_dtype_has_another_place(spec: LoadSpec, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(demo_folder(), source)
    root = tmp_path / "kept"
    here = quantized_store.place(root, source, spec)
    assert here == quantized_store.place(root, source, spec)
    other = replace(spec, quantization="8bit" if spec.quantization == "4bit" else "4bit")
    others = {
        quantized_store.place(root, source, replace(spec, dtype="bfloat16")),
        quantized_store.place(root, source, other),
    }
    os.utime(source / "model.safetensors", ns=(1, 1))
    others.add(quantized_store.place(root, source, spec))
    assert len(others | {here}) == 4


class Broken:
    """A model that fails when half of it is written."""

    def save_pretrained(self, save_directory: Path) -> None:
        save_directory.mkdir()
        (save_directory / "half.safetensors").write_bytes(b"1234")
        raise OSError("no space left on device")


def test_a_failed_write_leaves_nothing_behind(spec: LoadSpec, tmp_path: Path) -> None:
    place = tmp_path / "kept/demo--4bit--0"
    with pytest.raises(ModelError, match="no space left"):
        quantized_store.save(Broken(), place, spec, needed_bytes=0)
    with pytest.raises(ModelError, match="no room"):
        quantized_store.save(Broken(), place, spec, needed_bytes=2**60)
    assert not list((tmp_path / "kept").iterdir())


def test_what_a_crash_left_is_swept_after_a_day(spec: LoadSpec, tmp_path: Path) -> None:
    old, new = (tmp_path / f"kept/.partial-{n}-demo" for n in (1, 2))
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "idefics.json").write_text("{}")
    os.utime(old, (0, 0))
    assert not list(quantized_store.stored(tmp_path / "kept"))
    with pytest.raises(ModelError):
        quantized_store.save(Broken(), tmp_path / "kept/x", spec, needed_bytes=0)
    assert (old.exists(), new.exists()) == (False, True)


def test_the_command_keeps_lists_and_removes(tmp_path: Path) -> None:
    services = Services(environ={"XDG_CACHE_HOME": str(tmp_path)}, probe=lambda: machines.cpu(24))
    ran = run("models", "quantize", "demo", services=services)
    assert ran.code == 0, ran.err
    folder = Path(ran.out.strip())
    assert folder.parent == tmp_path / "idefics/quantized"
    assert quantized_store.is_whole(folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    rows = json.loads(run("models", "--json", services=services).out)
    assert {row["name"]: row["quantized_bytes"] for row in rows}["demo"] == size
    assert "built in + " in run("models", services=services).out
    ran = run("models", "quantize", "demo", "--remove", services=services)
    assert (ran.code, ran.out) == (0, "")
    assert "freed" in ran.err
    assert not folder.exists()
    ran = run("models", "quantize", "demo", "--quantization", "none", services=services)
    assert ran.code == 1
    assert "nothing to keep" in ran.err
