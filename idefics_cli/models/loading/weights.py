"""The weights of a model: read from its files and quantized, or read from an earlier start's copy.

"Kept" weights are quantized weights that an earlier start wrote to `quantized_store`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from idefics_cli.core.errors import ModelError
from idefics_cli.core.types import LoadSpec, Progress
from idefics_cli.models.families.classes import config_class, model_class
from idefics_cli.models.families.protocols import Config, Model
from idefics_cli.models.families.spec import find_family
from idefics_cli.models.hub.weights import STORED_DTYPES, weight_paths
from idefics_cli.models.loading import quantized_store
from idefics_cli.models.loading.adapters import apply_adapter
from idefics_cli.models.loading.bitsandbytes import bitsandbytes_config
from idefics_cli.models.loading.errors import fetch_again
from idefics_cli.models.loading.float16 import keep_in_float32, repeat_keys_on_old_gpus
from idefics_cli.models.loading.layers import (
    ChosenKernels,
    KeptLayers,
    install,
    open_layers,
    pack,
    quantize,
)
from idefics_cli.models.loading.patch_layout import lay_out_patches
from idefics_cli.models.loading.patch_positions import compute_positions_exactly
from idefics_cli.models.loading.unfilled import Unfilled
from idefics_cli.models.planning.quantization import is_own

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# Quantized weights are kept on the disk if the files of the model have at least this size, which a
# core takes half a second to quantize. With kept weights, SmolVLM-500M (1 GB) starts in 4 bit in
# less time than in bfloat16, and loads in 0.5 GB of memory instead of 1.4. Smaller models are
# quantized at each start.
WORTH_KEEPING_BYTES = 2**28
# `_SmallFiles` writes files of at most this size: to write weights of a GPU, safetensors first
# copies all weights of a file into RAM.
FILE_BYTES = 2**30

# Names of the weights of a layer. The pattern leaves out buffers that earlier versions of
# transformers saved, such as `rotary_emb.inv_freq`.
_OF_A_LAYER = re.compile(r"\.layers\.\d+\..*_proj\.weight$")

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Source:
    """All that is needed to load the weights of a model.

    Attributes:
        folder: Folder with the files of the model.
        config: The config of the model.
        spec: All choices for the model.
        kernels: The kernels that *spec* names, checked on this machine.
    """

    folder: Path
    config: Config
    spec: LoadSpec
    kernels: ChosenKernels

    @property
    def is_stored(self) -> bool:
        """Whether the files hold weights that bitsandbytes quantized."""
        return getattr(self.config, "quantization_config", None) is not None

    @property
    def packs(self) -> bool:
        """Whether weights go from the files to 12 bits, without a model in float32 between."""
        # An adapter is merged into weights in float32, so all must be in float32 first.
        return self.kernels.packs and self.spec.adapter is None

    @property
    def is_on_cpu(self) -> bool:
        """Whether the CPU holds the whole model."""
        return self.spec.device == "cpu" and self.spec.device_map is None

    @property
    def size_bytes(self) -> int:
        """Size of all files with weights."""
        return sum(path.stat().st_size for path in self.folder.glob("*.safetensors"))

    @property
    def kept_folder(self) -> Path | None:
        """Folder of the kept weights; None if weights of this kind are not kept."""
        spec = self.spec
        if spec.quantized_folder is None or spec.quantization == "none" or self.is_stored:
            return None
        if spec.adapter is not None and not self.kernels.quantizes:
            return None  # bitsandbytes cannot write layers with an adapter beside them
        if not self.is_on_cpu and not self._is_long_read:
            return None
        # Weights that a GPU has quantized get their own folder, because a GPU may round
        # differently.
        layout: tuple[str | int | None, ...] = () if self.is_on_cpu else ("cuda",)
        if self.kernels.quantizes:
            layout = self.kernels.layout()
        root = Path(spec.quantized_folder)
        return quantized_store.find_folder(root, self.folder, spec, layout=layout)

    @property
    def _is_long_read(self) -> bool:
        """Whether one CUDA GPU quantizes files in float32.

        It does so while it reads them, so the time is that of reading: 33.6 GB for idefics2-8b.
        Kept weights of 4 bit are a sixth of that. Of files in 16 bit they are a third, and are not
        read faster, because their checksum is read first.
        """
        is_gpu = self.spec.device.startswith("cuda") and self.spec.device_map is None
        return is_gpu and _dtype_of_files(self.folder) is torch.float32


def load_weights(
    source: Source, *, report: Progress, worth_keeping_bytes: int = WORTH_KEEPING_BYTES
) -> Model:
    """Return the model of *source* in eval mode, on its device or devices.

    Quantizing on a CPU is slow, and so is reading files in float32. So the result is kept, and the
    next start loads it.

    Args:
        source: What to load.
        report: Called with the phase of loading.
        worth_keeping_bytes: Weights are kept if the files have at least this many bytes.

    Raises:
        ModelError: If the files lack weights.
    """
    repeat_keys_on_old_gpus()
    folder = source.kept_folder
    if folder is not None and folder.exists():
        kept = _load_kept(folder, source)
        if kept is not None:
            return kept
    model = _from_files(source, report=report)
    if folder is not None and source.size_bytes >= worth_keeping_bytes:
        report("keeping the quantized weights", None)
        try:
            _save(model, folder, source)
        except ModelError as error:
            # The model is loaded and works, so this is no error here. `idefics models quantize`
            # reports it as one.
            _log.warning("the next start quantizes again: %s", error)
    return model


def store_quantized(source: Source, *, report: Progress) -> Path:
    """Keep the quantized weights of *source*, unless they are kept already; return the folder.

    Raises:
        ModelError: If there is nothing to keep, no room, or the files lack weights.
    """
    spec, folder = source.spec, source.kept_folder
    if folder is None:
        raise ModelError(
            f"there is nothing to keep for `{spec.name or spec.repo}` in {spec.quantization} "
            f"on {spec.device}",
            hint="only what is quantized on a CPU, or from files in float32, takes long to make",
        )
    if not quantized_store.is_whole(folder):
        report("quantizing", None)
        _save(_from_files(source, report=report), folder, source)
    return folder


def _load_kept(folder: Path, source: Source) -> Model | None:
    """Return the model with the weights in *folder*; remove damaged weights and return None."""
    problem: object = "they are damaged or incomplete"
    if quantized_store.is_whole(folder):
        try:
            if source.kernels.quantizes:
                return _from_files(source, kept=open_layers(folder))
            config = config_class(source.config.model_type).from_pretrained(folder)
            return _from_files(replace(source, folder=folder, config=cast("Config", config)))
        except (ModelError, OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
            # An older bitsandbytes may have written the weights. They are then quantized again.
            problem = error
    _log.warning("the kept weights are quantized again: %s", problem)
    quantized_store.remove_folder(folder)
    return None


def _save(model: Model, folder: Path, source: Source) -> None:
    layers = KeptLayers(cast("nn.Module", model)) if source.kernels.quantizes else None
    files = layers or _SmallFiles(model)
    try:
        quantized_store.save_weights(files, folder, source.spec, needed_bytes=files.size_bytes)
    except SafetensorError as error:  # what safetensors raises for a full disk is no OSError
        raise ModelError(f"cannot store quantized weights in `{folder.parent}`: {error}") from error


class _SmallFiles:
    """Writes a model of transformers in files of at most `FILE_BYTES`."""

    def __init__(self, model: Model) -> None:
        self._model = model

    @property
    def size_bytes(self) -> int:
        """Size of all weights."""
        states = cast("nn.Module", self._model).state_dict().values()
        return sum(state.nbytes for state in states if isinstance(state, Tensor))

    def save_pretrained(self, save_directory: Path) -> object:
        """Write all files; see `quantized_store.Savable`."""
        saves = cast("PreTrainedModel", self._model)
        return saves.save_pretrained(save_directory, max_shard_size=FILE_BYTES)


def _from_files(
    source: Source,
    *,
    kept: Mapping[str, Tensor] | None = None,
    report: Progress | None = None,
) -> Model:
    """Return the model of *source*.

    Args:
        source: What to load.
        kept: Kept weights of the layers; None quantizes them, if the plan names kernels for this.
        report: Called with the share of the layers that is quantized.

    Raises:
        ModelError: If weights are missing.
        KeyError: If *kept* lacks a layer.
    """
    spec, family = source.spec, find_family(source.spec.family)
    made = model_class(source.config.model_type)
    with Unfilled():
        model, found = made.from_pretrained(
            source.folder, output_loading_info=True, trust_remote_code=False, **_arguments(source)
        )
    _check_found(found, spec)
    if spec.adapter is not None:
        apply_adapter(model, spec.adapter)
    dtype = getattr(torch, spec.dtype)
    if source.packs:
        pack(model, source.kernels, family, dtype=dtype)
    elif source.kernels.quantizes:
        quantize(model, source.kernels, family, dtype=dtype, kept=kept, report=report)
    install(model, source.kernels, family)
    _use_float32_where_needed(cast("Model", model), spec)
    # bitsandbytes uses its packed CPU kernels only in eval mode.
    return cast("Model", model.eval())


def _check_found(found: Mapping[str, Iterable[str]], spec: LoadSpec) -> None:
    """Check that config.json and the files list the same weights.

    Args:
        found: What `from_pretrained` says about the weights that it loaded.
        spec: The model.

    Raises:
        ModelError: If weights are missing, or belong to layers that the model does not have.
    """
    name = spec.name or spec.repo
    if missing := sorted(found["missing_keys"]):
        # transformers would fill missing weights with random numbers, and only warn.
        raise ModelError(
            f"`{name}` lacks {len(missing)} of its weights, such as `{missing[0]}`",
            hint=f"its files are incomplete; {fetch_again(spec)}",
        )
    if further := sorted(key for key in found["unexpected_keys"] if _OF_A_LAYER.search(key)):
        raise ModelError(
            f"`{name}` has weights for more layers than config.json says, such as `{further[0]}`",
            hint="copy config.json and the weights from one checkpoint",
        )


def _use_float32_where_needed(model: Model, spec: LoadSpec) -> None:
    keep_in_float32(model, spec.float32_modules)
    compute_positions_exactly(model)
    lay_out_patches(model)


def _arguments(source: Source) -> dict[str, object]:
    """Return the arguments of `from_pretrained`."""
    spec = source.spec
    arguments: dict[str, object] = {
        "config": source.config,
        # Without this argument, transformers takes the dtype of config.json, which is float32 for
        # several 8B models.
        "dtype": getattr(torch, spec.dtype),
        "attn_implementation": source.kernels.attention() or spec.attention,
        "use_safetensors": True,
    }
    settings = None
    if source.kernels.quantizes or source.packs:
        # With the dtype of the files, the weights are mapped and not copied. `quantize` and `pack`
        # then convert one layer at a time.
        arguments["dtype"] = _dtype_of_files(source.folder) or arguments["dtype"]
    else:
        settings = _bitsandbytes(source)
    if settings is not None:
        arguments["quantization_config"] = settings
        # bitsandbytes would warn at every call of every layer that the CPU computes in float16.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if spec.device_map is not None:
        # "sequential" fills one device after the other, as the limits of the plan expect. "auto"
        # of transformers divides a model equally between two GPUs, even if their memories differ,
        # and puts the rest on the disk.
        arguments["device_map"] = "sequential"
        arguments["max_memory"] = accelerate_memory(spec.max_memory)
    elif settings is not None or spec.device != "cpu":
        # With this map, weights go straight to the device, without a copy in RAM.
        arguments["device_map"] = {"": spec.device}
    return arguments


def _bitsandbytes(source: Source) -> object | None:
    """Return the settings of bitsandbytes, or None if it quantizes nothing.

    Raises:
        ModelError: If the plan needs kernels of ours for its quantization, but names none.
    """
    spec = source.spec
    if not source.is_stored and is_own(
        spec.quantization, spec.device, format_4bit=spec.format_4bit
    ):
        raise ModelError(
            f"the plan for {spec.quantization} on a CPU names no kernel",
            hint="`choose_kernels` names those for a machine",
        )
    return bitsandbytes_config(spec)


def _dtype_of_files(folder: Path) -> torch.dtype | None:
    """Return the dtype of the weights in *folder*, float32 if they have several.

    Returns:
        None if models do not run in the dtype of a weight.
    """
    names = set()
    for path in weight_paths(folder, folder.name):  # other files may lie beside them
        with safe_open(path, framework="pt") as file:
            names |= {file.get_slice(key).get_dtype() for key in file.keys()}  # noqa: SIM118 # not a dict
    floats = {name for name in names if name.startswith(("F", "BF"))}
    if not floats or not floats <= STORED_DTYPES.keys():
        return None
    return getattr(torch, STORED_DTYPES[floats.pop()]) if len(floats) == 1 else torch.float32


def accelerate_memory(memory: Mapping[str, int] | None) -> dict[int | str, int] | None:
    """Return `LoadSpec.max_memory` as accelerate takes it: with an int as the key of a GPU."""
    if memory is None:
        return None
    return {int(key) if key.isdigit() else key: size for key, size in memory.items()}
