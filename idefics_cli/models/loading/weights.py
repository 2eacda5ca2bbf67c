"""The weights of a model: from its files, quantized on the way, or as they were kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open
from torch import Tensor, nn

from idefics_cli.core.errors import ModelError
from idefics_cli.core.types import LoadSpec, Progress
from idefics_cli.models.families.classes import config_class, model_class
from idefics_cli.models.families.protocols import Config, Model
from idefics_cli.models.families.spec import find_family
from idefics_cli.models.kernels import attention as cpu_attention
from idefics_cli.models.kernels import packed, rms_norm, widened
from idefics_cli.models.loading import layers as quantized_layers
from idefics_cli.models.loading import quantized_store
from idefics_cli.models.loading.bitsandbytes import bitsandbytes_config
from idefics_cli.models.planning.quantization import is_own

# Of files that take 15 seconds to quantize on a CPU.
_WORTH_KEEPING_BYTES = 2 * 2**30


def load_weights(folder: Path, spec: LoadSpec, config: Config, *, report: Progress) -> Model:
    """Return the model of *spec* in eval mode, on its device or devices.

    What is quantized on a CPU, slowly, is kept in `spec.quantized_folder` and taken from
    there the next time.

    Args:
        folder: With the files of the model.
        spec: What to load, and how.
        config: Of the model.
        report: Told what is going on.

    Raises:
        ModelError: If the files lack weights.
    """
    place = _place(folder, spec, config)
    if place is not None and place.exists():
        kept = _kept(place, folder, spec, config)
        if kept is not None:
            return kept
    model = _from_files(folder, spec, config, report=report)
    if place is not None and _size(folder) >= _WORTH_KEEPING_BYTES:
        report("keeping the quantized weights", None)
        try:
            _save(model, place, folder, spec)
        except ModelError as error:
            # The model is loaded, and works without; `idefics models quantize` tells.
            logging.getLogger(__name__).info("%s", error)
    return model


def store_quantized(folder: Path, spec: LoadSpec, config: Config, *, report: Progress) -> Path:
    """Keep the quantized weights of *spec*, unless they are kept already, and return where.

    Raises:
        ModelError: If there is nothing to keep, no room, or the files lack weights.
    """
    place = _place(folder, spec, config)
    if place is None:
        raise ModelError(
            f"there is nothing to keep for `{spec.name or spec.repo}` in {spec.quantization} "
            f"on {spec.device}",
            hint="only what is quantized on a CPU takes long to make",
        )
    if not quantized_store.is_whole(place):
        report("quantizing", None)
        _save(_from_files(folder, spec, config, report=report), place, folder, spec)
    return place


def _place(folder: Path, spec: LoadSpec, config: Config) -> Path | None:
    """Return where the quantized weights of *spec* are kept; None if they are not."""
    alone = spec.device == "cpu" and spec.device_map is None and spec.quantization != "none"
    if spec.quantized_folder is None or not alone or _is_stored(config):
        return None
    return quantized_store.place(Path(spec.quantized_folder), folder, spec)


def _kept(place: Path, folder: Path, spec: LoadSpec, config: Config) -> Model | None:
    """Return the model whose weights are in *place*; None, and no *place*, if they are damaged."""
    if quantized_store.is_whole(place):
        try:
            if _is_own(spec, config):
                layers = quantized_layers.open_layers(place)
                return _from_files(folder, spec, config, layers=layers)
            kept = config_class(config.model_type).from_pretrained(place)
            return _from_files(place, spec, cast("Config", kept))
        except (ModelError, OSError, ValueError, KeyError, RuntimeError) as error:
            # As an older bitsandbytes may have written it; it is made again.
            logging.getLogger(__name__).info("%s", error)
    quantized_store.discard(place)
    return None


def _save(model: Model, place: Path, folder: Path, spec: LoadSpec) -> None:
    if is_own(spec.quantization, spec.device, format_4bit=spec.format_4bit):
        layers = quantized_layers.Layers(cast("nn.Module", model))
        quantized_store.save(layers, place, spec, needed_bytes=layers.size_bytes)
        return
    saves = cast("quantized_store.Saves", model)
    # Quantized weights take less than the files that they were made from, unless the rest grows
    # to float32.
    quantized_store.save(saves, place, spec, needed_bytes=_size(folder))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _is_stored(config: Config) -> bool:
    """Tell whether the files of *config* hold weights that bitsandbytes made."""
    return getattr(config, "quantization_config", None) is not None


def _is_own(spec: LoadSpec, config: Config) -> bool:
    own = is_own(spec.quantization, spec.device, format_4bit=spec.format_4bit)
    return own and not _is_stored(config)


def _from_files(
    folder: Path,
    spec: LoadSpec,
    config: Config,
    *,
    layers: Mapping[str, Tensor] | None = None,
    report: Progress | None = None,
) -> Model:
    """Return the model in *folder*.

    Args:
        folder: With its files.
        spec: How to load it.
        config: Of the model.
        layers: What we quantized before; None quantizes, where that is ours to do.
        report: Told how far that is.

    Raises:
        ModelError: If weights are missing.
        KeyError: If *layers* lacks one.
    """
    model, found = model_class(config.model_type).from_pretrained(
        folder, output_loading_info=True, **_arguments(folder, spec, config)
    )
    if missing := sorted(found["missing_keys"]):
        # The library fills them with random numbers and only warns.
        raise ModelError(
            f"`{spec.name or spec.repo}` lacks {len(missing)} of its weights, as `{missing[0]}`",
            hint="its files are incomplete; `idefics models pull` fetches them again",
        )
    if _is_own(spec, config):
        quantized_layers.quantize(
            model,
            spec.quantization,
            skipped=find_family(spec.family).unquantized,
            dtype=getattr(torch, spec.dtype),
            kept=layers,
            report=report,
        )
    if spec.device == "cpu" and spec.device_map is None:
        if spec.dtype == "bfloat16":
            _prepare_bfloat16(model, spec)
        rms_norm.replace(model, find_family(spec.family).rms_norms)
    # bitsandbytes' packed CPU kernels are used in eval mode only.
    return cast("Model", model.eval())


def _arguments(folder: Path, spec: LoadSpec, config: Config) -> dict[str, object]:
    """Return the arguments of `from_pretrained`."""
    arguments: dict[str, object] = {
        "config": config,
        # Without it transformers obeys config.json, which says float32 for several 8B models.
        "dtype": getattr(torch, spec.dtype),
        "attn_implementation": _attention(spec),
        "use_safetensors": True,
    }
    own = _is_own(spec, config)
    settings = None if own else bitsandbytes_config(spec)
    if own:
        # As in the files, so that they are only mapped.
        arguments["dtype"] = _dtype_of_files(folder) or arguments["dtype"]
    if settings is not None:
        arguments["quantization_config"] = settings
        # It warns on every call of every layer that the CPU works in float16.
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    if spec.device_map is not None:
        # transformers' "auto" halves a model between two GPUs however unlike they are, and puts
        # the rest on the disk; the plan's limits are made for filling one after the other.
        arguments["device_map"] = "sequential"
        arguments["max_memory"] = _accelerate_memory(spec.max_memory)
    elif settings is not None or spec.device != "cpu":
        # Weights go straight to the device, without a copy in RAM.
        arguments["device_map"] = {"": spec.device}
    return arguments


def _prepare_bfloat16(model: nn.Module, spec: LoadSpec) -> None:
    """Let the linear layers that are left in bfloat16 multiply as this processor does best."""
    if widened.is_needed():
        widened.widen(model, many_rows_in=find_family(spec.family).patch_modules)
    elif spec.quantization == "none" and cpu_attention.has_native_bf16() and packed.has_kernel():
        # Vision has so many rows that it gains nothing.
        spared = [name for name in find_family(spec.family).unquantized if name != "lm_head"]
        packed.pack(model, skipped=spared)


def _dtype_of_files(folder: Path) -> torch.dtype | None:
    """Return the dtype of the first weight in *folder*, if it has any that a model runs in."""
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for key in file.keys():  # noqa: SIM118  # it is no dict
                name = file.get_slice(key).get_dtype()
                return {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}.get(
                    name
                )
    return None


def _attention(spec: LoadSpec) -> str:
    """Return the name under which transformers knows the attention of *spec*."""
    on_cpu = spec.device == "cpu" and spec.device_map is None
    return cpu_attention.register() if on_cpu and spec.attention == "sdpa" else spec.attention


def _accelerate_memory(memory: Mapping[str, int] | None) -> dict[int | str, int] | None:
    if memory is None:
        return None
    return {int(key) if key.isdigit() else key: size for key, size in memory.items()}
