"""A GPU keeps what it quantized from files in float32. The CPU stands in for the GPU."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from zlib import crc32

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from idefics_cli.core.errors import ModelError
from idefics_cli.core.types import LoadSpec, Quantization
from idefics_cli.models.families.classes import model_class
from idefics_cli.models.families.protocols import Model
from idefics_cli.models.hub.facts import demo_folder
from idefics_cli.models.kernels.linear import QuantizedLinear
from idefics_cli.models.loading import quantized_store, weights
from idefics_cli.models.loading.layers import ChosenKernels
from idefics_cli.models.loading.loader import load_config
from idefics_cli.models.loading.weights import Source, load_weights, store_quantized
from tests.support import tiny
from tests.support.kept_weights import assert_same, tensors
from tests.support.kernels import HERE

bitsandbytes = pytest.importorskip("bitsandbytes")

pytestmark = pytest.mark.usefixtures("quiet_bitsandbytes")

DEVICE = "cuda:0"
METHODS: tuple[Quantization, ...] = ("4bit", "8bit")


@pytest.fixture(autouse=True)
def read(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """Load on the CPU what goes to the GPU; return the folders that are read."""
    folders: list[Path] = []

    class OnCpu:
        def __init__(self, model_type: str) -> None:
            self._class = model_class(model_type)

        def from_pretrained(self, folder: Path, **options: Any) -> object:
            assert options["device_map"] == {"": DEVICE}
            folders.append(folder)
            return self._class.from_pretrained(folder, **{**options, "device_map": {"": "cpu"}})

    monkeypatch.setattr(weights, "model_class", OnCpu)
    return folders


@pytest.fixture
def source_of(tmp_path: Path) -> Callable[..., Source]:
    def get(folder: Path, **changes: Any) -> Source:
        config = load_config(folder)
        spec = LoadSpec(
            repo=str(folder),
            family=config.model_type,
            quantization="4bit",
            dtype="bfloat16",
            device=DEVICE,
            quantized_folder=str(tmp_path / "kept"),
        )
        spec = replace(spec, **changes)
        return Source(folder, config, spec, ChosenKernels(spec.kernels, HERE))

    return get


SourceOf = Callable[..., Source]


def load(source: Source) -> tuple[Model, list[str]]:
    """Load *source* as if it were large; return the model, and the phases that were reported."""
    phases: list[str] = []
    model = load_weights(
        source, report=lambda phase, share: phases.append(phase), worth_keeping_bytes=0
    )
    return model, phases


def quantized_layers(model: object) -> int:
    assert isinstance(model, nn.Module)
    assert not any(isinstance(module, QuantizedLinear) for module in model.modules())
    kinds = (bitsandbytes.nn.Linear4bit, bitsandbytes.nn.Linear8bitLt)
    return sum(isinstance(module, kinds) for module in model.modules())


@pytest.mark.parametrize("quantization", METHODS)
@pytest.mark.parametrize("kind", tiny.LAYERED)
def test_the_second_start_reads_what_the_first_one_quantized(
    kind: str,
    quantization: Quantization,
    checkpoint: Callable[[str], Path],
    source_of: SourceOf,
    read: list[Path],
) -> None:
    source = source_of(checkpoint(kind), quantization=quantization)
    kept = source.kept_folder
    assert kept is not None
    first, phases = load(source)
    assert phases[-1] == "keeping the quantized weights"
    assert quantized_layers(first) > 0
    second, phases = load(source)
    assert phases == []
    assert read == [source.folder, kept]
    assert_same(second, first)
    assert quantized_layers(second) == quantized_layers(first)


def test_modules_that_stay_in_float32_are_those_of_the_first_start(
    checkpoint: Callable[[str], Path], source_of: SourceOf
) -> None:
    wide = ("model.vision_model", "model.connector")
    source = source_of(checkpoint("idefics2"), dtype="float16", float32_modules=wide)
    first, _ = load(source)
    second, phases = load(source)
    assert phases == []
    assert_same(second, first)
    dtypes = {name: tensor.dtype for name, tensor in tensors(second).items()}
    assert dtypes["model.connector.modality_projection.gate_proj.weight"] == torch.float32
    assert dtypes["model.text_model.embed_tokens.weight"] == torch.float16


def test_large_weights_are_written_in_several_files(
    checkpoint: Callable[[str], Path], source_of: SourceOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "FILE_BYTES", 40_000)
    source = source_of(checkpoint("idefics2"))
    first, _ = load(source)
    folder = source.kept_folder
    assert folder is not None
    assert len(list(folder.glob("*.safetensors"))) > 5
    second, phases = load(source)
    assert phases == []
    assert_same(second, first)


def test_the_room_that_is_needed_is_that_of_the_quantized_weights(
    checkpoint: Callable[[str], Path], source_of: SourceOf, needed_bytes: list[int]
) -> None:
    source = source_of(checkpoint("idefics2"))
    load(source)
    folder = source.kept_folder
    assert folder is not None
    (file,) = folder.glob("*.safetensors")
    written = sum(tensor.nbytes for tensor in load_file(file).values())
    # A head that shares its weight with the embedding is counted twice.
    assert written <= needed_bytes[0] <= source.size_bytes


@pytest.mark.parametrize("damage", ["a flipped bit", "cut off", "unreadable"])
def test_damaged_weights_are_quantized_again_with_a_warning(
    damage: str,
    checkpoint: Callable[[str], Path],
    source_of: SourceOf,
    read: list[Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    source = source_of(checkpoint("idefics2"))
    first, _ = load(source)
    folder = source.kept_folder
    assert folder is not None
    (file,) = folder.glob("*.safetensors")
    if damage == "unreadable":
        # The weights of another version, with a right manifest.
        states = {name: tensor for name, tensor in load_file(file).items() if "absmax" not in name}
        save_file(states, file, {"format": "pt"})
        about = json.loads((folder / "idefics.json").read_text())
        data = file.read_bytes()
        about["files"][file.name] = [len(data), crc32(data)]
        (folder / "idefics.json").write_text(json.dumps(about))
    else:
        data = file.read_bytes()
        middle = len(data) // 2
        flipped = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
        file.write_bytes(flipped if damage == "a flipped bit" else data[:-100])
    again, phases = load(source)
    assert "keeping the quantized weights" in phases
    assert "the kept weights are quantized again: " in caplog.text
    assert_same(again, first)
    assert quantized_store.is_whole(folder)


def test_weights_that_are_read_no_faster_are_not_kept(
    checkpoint: Callable[[str], Path], source_of: SourceOf, tmp_path: Path
) -> None:
    folder = checkpoint("idefics2")
    on_gpu, on_cpu = source_of(folder), source_of(folder, device="cpu")
    folders = {on_gpu.kept_folder, on_cpu.kept_folder}
    assert len(folders) == 2
    assert None not in folders
    assert source_of(folder, quantization="none").kept_folder is None
    assert source_of(folder, device_map="auto").kept_folder is None
    assert source_of(folder, device="mps").kept_folder is None
    # The built-in model is in bfloat16.
    assert source_of(demo_folder(), device="cpu").kept_folder is not None
    of_bfloat16 = source_of(demo_folder())
    assert of_bfloat16.kept_folder is None
    with pytest.raises(ModelError, match="nothing to keep"):
        store_quantized(of_bfloat16, report=lambda phase, share: None)
    load(of_bfloat16)
    assert not (tmp_path / "kept").exists()
