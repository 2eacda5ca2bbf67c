"""Kept quantized weights are the same when they are loaded, and damage is noticed."""

from __future__ import annotations

import json
import os
import shutil
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from idefics_cli.cli.services import Services
from idefics_cli.core.errors import ModelError
from idefics_cli.core.types import LoadSpec
from idefics_cli.models.hub.facts import demo_folder
from idefics_cli.models.kernels.linear import QuantizedLinear
from idefics_cli.models.loading import quantized_store
from idefics_cli.models.loading.layers import KeptLayers
from idefics_cli.models.loading.loader import keep_quantized, load
from tests.support import machines
from tests.support.commands import run
from tests.support.kept_weights import assert_same
from tests.support.kernels import with_kernels

pytest.importorskip("bitsandbytes")

pytestmark = pytest.mark.usefixtures("quiet_bitsandbytes")


@pytest.fixture(params=["nf4", "int4", "8bit"])
def spec(request: pytest.FixtureRequest, tmp_path: Path) -> LoadSpec:
    spec = LoadSpec(
        repo="demo",
        family="idefics2",
        quantization="8bit" if request.param == "8bit" else "4bit",
        format_4bit="int4" if request.param == "int4" else "nf4",
        quantized_folder=str(tmp_path / "kept"),
    )
    return with_kernels(spec)


def numbers(model: object) -> list[str]:
    """Return the full names of the quantized weights of *model*."""
    assert isinstance(model, nn.Module)
    return sorted(
        f"{path}.{name}"
        for path, module in model.named_modules()
        if isinstance(module, QuantizedLinear)
        for name in module.numbers()
    )


def load_all(spec: LoadSpec) -> tuple[object, list[str]]:
    """Load the model as if it were large; return it and the phases that were reported."""
    phases: list[str] = []
    loaded = load(spec, report=lambda phase, share: phases.append(phase), worth_keeping_bytes=0)
    return loaded.model, phases


def test_kept_weights_are_those_that_were_made(spec: LoadSpec) -> None:
    made = load(replace(spec, quantized_folder=None)).model
    place = keep_quantized(spec)
    before = place.stat().st_mtime_ns
    kept, phases = load_all(spec)
    assert "quantizing" not in phases
    if spec.quantization == "4bit" and spec.format_4bit == "nf4":
        assert getattr(kept, "name_or_path") == str(place)  # noqa: B009 # untyped
    else:
        with safe_open(place / "layers.safetensors", framework="pt") as file:
            assert sorted(file.keys()) == numbers(made)
    assert_same(kept, made)
    config = getattr(kept, "config")  # noqa: B009 # untyped
    assert config.perceiver_config.rms_norm_eps == 1e-5
    assert keep_quantized(spec) == place
    assert place.stat().st_mtime_ns == before


def test_our_own_layers_need_no_more_room_than_they_take(
    spec: LoadSpec, needed_bytes: list[int]
) -> None:
    if spec.format_4bit == "nf4" and spec.quantization == "4bit":
        pytest.skip("bitsandbytes does not tell")
    (file,) = keep_quantized(spec).glob("*.safetensors")
    # The file has a table of the tensors too.
    assert needed_bytes[0] < file.stat().st_size < needed_bytes[0] + 20_000


def test_a_large_model_keeps_its_weights_when_it_is_first_loaded(spec: LoadSpec) -> None:
    root = Path(str(spec.quantized_folder))
    load(spec)
    assert not root.exists()
    first, phases = load_all(spec)
    assert "keeping the quantized weights" in phases
    (entry,) = quantized_store.list_stored(root)
    assert (entry.repo, entry.quantization) == ("demo", spec.quantization)
    second, phases = load_all(spec)
    assert "keeping the quantized weights" not in phases
    assert_same(first, second)


@pytest.mark.parametrize(
    ("spec", "damage"),
    [
        ("8bit", "a flipped bit"),
        ("8bit", "cut off"),
        ("8bit", "no manifest"),
        ("8bit", "a file is gone"),
        ("nf4", "a flipped bit"),
        ("int4", "a flipped bit"),
    ],
    indirect=["spec"],
)
def test_what_is_damaged_is_made_again_with_a_warning(
    spec: LoadSpec, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
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
    model, phases = load_all(spec)
    assert "keeping the quantized weights" in phases
    assert "quantized again: they are damaged or incomplete" in caplog.text
    assert quantized_store.is_whole(place)
    assert_same(model, load(replace(spec, quantized_folder=None)).model)


def reshaped(tensor: Tensor, damage: str) -> Tensor:
    """Return *tensor* with another shape or dtype."""
    if damage == "shorter":
        return tensor[:-1].clone()
    if damage == "longer":
        return torch.cat([tensor, tensor])
    return tensor.flatten() if damage == "flat" else tensor.float()


@pytest.mark.parametrize("spec", ["8bit", "int4"], indirect=True)
@pytest.mark.parametrize("damage", ["shorter", "longer", "flat", "another dtype"])
def test_whole_files_with_a_tensor_of_another_form_are_made_again(
    spec: LoadSpec, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    place = keep_quantized(spec)
    (file,) = place.glob("*.safetensors")
    tensors = load_file(file)
    name = next(name for name, tensor in tensors.items() if tensor.dim() > 1)
    save_file({**tensors, name: reshaped(tensors[name], damage)}, file)
    data = file.read_bytes()
    (place / "idefics.json").write_bytes(_about(**{file.name: [len(data), zlib.crc32(data)]}))
    assert quantized_store.is_whole(place)

    model, phases = load_all(spec)

    assert "keeping the quantized weights" in phases
    assert "quantized again" in caplog.text
    assert_same(model, load(replace(spec, quantized_folder=None)).model)


def test_a_file_that_is_damaged_with_a_right_checksum_is_made_again(
    spec: LoadSpec, caplog: pytest.LogCaptureFixture
) -> None:
    place = keep_quantized(spec)
    (file,) = place.glob("*.safetensors")
    file.write_bytes(data := file.read_bytes()[:-50])
    about = json.loads((place / "idefics.json").read_bytes())
    listed = {**about["files"], file.name: [len(data), zlib.crc32(data)]}
    (place / "idefics.json").write_bytes(_about(**listed))
    assert quantized_store.is_whole(place)

    _, phases = load_all(spec)

    assert "keeping the quantized weights" in phases
    assert "quantized again" in caplog.text


def _about(**files: object) -> bytes:
    return json.dumps({"repo": "demo", "quantization": "4bit", "files": files}).encode()


@pytest.mark.parametrize(
    "manifest",
    [
        b"[" * 100_000,
        b'{"files":' * 100_000,
        b"1" * 5000,
        b'{"repo": [1], "quantization": {}, "files": []}',
        _about(**{"/dev/zero": [0, 0]}),
        _about(**{"../idefics.json": [0, 0]}),
        _about(**{"\0": [0, 0]}),
        _about(pipe=[0, 0]),
        _about(folder=[0, 0]),
        _about(gone=[0, 0]),
        _about(**{"idefics.json": 5}),
    ],
    ids=lambda manifest: str(manifest[:40]),
)
def test_a_manifest_of_any_content_is_read_or_refused(tmp_path: Path, manifest: bytes) -> None:
    folder = tmp_path / "demo--4bit--0"
    (folder / "folder").mkdir(parents=True)
    os.mkfifo(folder / "pipe")
    (folder / "dangling").symlink_to("nowhere")
    (folder / "idefics.json").write_bytes(manifest)
    assert not quantized_store.is_whole(folder)
    (entry,) = quantized_store.list_stored(tmp_path)
    assert entry.folder == folder


def test_another_file_method_or_dtype_has_another_place(spec: LoadSpec, tmp_path: Path) -> None:
    source = tmp_path / "source"
    shutil.copytree(demo_folder(), source)
    root = tmp_path / "kept"
    here = quantized_store.find_folder(root, source, spec)
    assert here == quantized_store.find_folder(root, source, spec)
    other = replace(spec, quantization="8bit" if spec.quantization == "4bit" else "4bit")
    others = {
        quantized_store.find_folder(root, source, replace(spec, dtype="bfloat16")),
        quantized_store.find_folder(root, source, spec, layout=("another",)),
        quantized_store.find_folder(root, source, other),
    }
    os.utime(source / "model.safetensors", ns=(1, 1))
    others.add(quantized_store.find_folder(root, source, spec))
    assert len(others | {here}) == 5


class Broken:
    """A model that raises an error while it is written."""

    def save_pretrained(self, save_directory: Path) -> None:
        save_directory.mkdir()
        (save_directory / "half.safetensors").write_bytes(b"1234")
        raise OSError("no space left on device")


def test_a_failed_write_leaves_nothing_behind(spec: LoadSpec, tmp_path: Path) -> None:
    place = tmp_path / "kept/demo--4bit--0"
    with pytest.raises(ModelError, match="no space left"):
        quantized_store.save_weights(Broken(), place, spec, needed_bytes=0)
    with pytest.raises(ModelError, match="no room"):
        quantized_store.save_weights(Broken(), place, spec, needed_bytes=2**60)
    assert not list((tmp_path / "kept").iterdir())


def test_a_disk_that_fills_up_is_no_error_when_a_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(layers: KeptLayers, save_directory: Path) -> None:
        save_directory.mkdir(parents=True)
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr(KeptLayers, "save_pretrained", full)
    root = tmp_path / "kept"
    spec = with_kernels(
        LoadSpec(repo="demo", family="idefics2", quantization="8bit", quantized_folder=str(root))
    )
    load_all(spec)
    assert "the next start quantizes again: cannot store quantized weights in" in caplog.text
    with pytest.raises(ModelError, match="No space left"):
        keep_quantized(spec)
    assert not list(root.iterdir())


def test_what_a_crash_left_is_swept_after_a_day(spec: LoadSpec, tmp_path: Path) -> None:
    old, new = (tmp_path / f"kept/.partial-{n}-demo" for n in (1, 2))
    for folder in (old, new):
        folder.mkdir(parents=True)
        (folder / "idefics.json").write_text("{}")
    os.utime(old, (0, 0))
    assert not list(quantized_store.list_stored(tmp_path / "kept"))
    with pytest.raises(ModelError):
        quantized_store.save_weights(Broken(), tmp_path / "kept/x", spec, needed_bytes=0)
    assert (old.exists(), new.exists()) == (False, True)


def test_the_command_keeps_lists_and_removes(tmp_path: Path) -> None:
    services = Services(
        environ={"XDG_CACHE_HOME": str(tmp_path)}, probe=lambda: machines.cpu(24, cores=2)
    )
    ran = run("models", "quantize", "demo", services=services)
    assert ran.code == 0, ran.err
    folder = Path(ran.out.strip())
    assert folder.parent == tmp_path / "idefics/quantized"
    assert quantized_store.is_whole(folder)
    size = sum(path.stat().st_size for path in folder.iterdir())
    rows = json.loads(run("models", "--json", services=services).out)
    assert {row["name"]: row["quantized_bytes"] for row in rows}["demo"] == size
    table = run("models", services=services).out.splitlines()
    (line,) = (line for line in table if line.startswith("demo "))
    assert line.endswith(" quantized")
    ran = run("models", "quantize", "demo", "--remove", services=services)
    assert (ran.code, ran.out) == (0, "")
    assert "freed" in ran.err
    assert not folder.exists()
    ran = run("models", "quantize", "demo", "--quantization", "none", services=services)
    assert ran.code == 1
    assert "nothing to keep" in ran.err
