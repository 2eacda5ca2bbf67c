"""The weights of a model: from its files, quantized on the way, or as they were kept."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from safetensors import safe_open

from idefics_cli.core.errors import ModelError
from idefics_cli.core.types import LoadSpec, Progress
from idefics_cli.models import cpu_attention, int8, packed, quantization, quantized_store
from idefics_cli.models.classes import config_class, model_class
from idefics_cli.models.library import Config, Model

# Of files that take 15 seconds to quantize on a CPU.
_WORTH_KEEPING_BYTES = 2 * 2**30


def load_weights(folder: Path, spec: LoadSpec, config: Config, *, report: Progress) -> Model:
    """Return the model of *spec* in eval mode, on its device or devices.

    What bitsandbytes makes on a CPU, slowly, is kept in `spec.quantized_folder` and taken from
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
        kept = _kept(place, spec, config)
        if kept is not None:
            return kept
    model = _from_files(folder, spec, config)
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
            hint="only `--quantization 4bit` on a CPU takes long to make",
        )
    if not quantized_store.is_whole(place):
        report("quantizing", None)
        _save(_from_files(folder, spec, config), place, folder, spec)
    return place


def _place(folder: Path, spec: LoadSpec, config: Config) -> Path | None:
    """Return where the quantized weights of *spec* are kept; None if they are not."""
    alone = spec.device == "cpu" and spec.device_map is None and spec.quantization == "4bit"
    is_stored = getattr(config, "quantization_config", None) is not None
    if spec.quantized_folder is None or not alone or is_stored:
        return None
    return quantized_store.place(Path(spec.quantized_folder), folder, spec)


def _kept(place: Path, spec: LoadSpec, config: Config) -> Model | None:
    """Return the model in *place*; None, and no *place*, if that is damaged."""
    if quantized_store.is_whole(place):
        try:
            kept = config_class(config.model_type).from_pretrained(place)
            return _from_files(place, spec, cast("Config", kept))
        except (ModelError, OSError, ValueError, KeyError, RuntimeError) as error:
            # As an older bitsandbytes may have written it; it is made again.
            logging.getLogger(__name__).info("%s", error)
    quantized_store.discard(place)
    return None


def _save(model: Model, place: Path, folder: Path, spec: LoadSpec) -> None:
    saves = cast("quantized_store.Saves", model)
    # Quantized weights take less than the files that they were made from, unless the rest grows
    # to float32.
    quantized_store.save(saves, place, spec, needed_bytes=_size(folder))


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def _from_files(folder: Path, spec: LoadSpec, config: Config) -> Model:
    arguments: dict[str, object] = {
        "config": config,
        # Without it transformers obeys config.json, which says float32 for several 8B models.
        "dtype": getattr(torch, spec.dtype),
        "attn_implementation": _attention(spec),
        "use_safetensors": True,
    }
    is_stored = getattr(config, "quantization_config", None) is not None
    is_own = quantization.is_own(spec.quantization, spec.device) and not is_stored
    settings = None if is_own else quantization.bitsandbytes_config(spec)
    if is_own:
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
    model, found = model_class(config.model_type).from_pretrained(
        folder, output_loading_info=True, **arguments
    )
    if missing := sorted(found["missing_keys"]):
        # The library fills them with random numbers and only warns.
        raise ModelError(
            f"`{spec.name or spec.repo}` lacks {len(missing)} of its weights, as `{missing[0]}`",
            hint="its files are incomplete; `idefics models pull` fetches them again",
        )
    if is_own:
        int8.shrink(
            model, skipped=quantization.SKIPPED[spec.family], dtype=getattr(torch, spec.dtype)
        )
    if _packs(spec):
        # Vision has so many rows that it gains nothing.
        spared = [name for name in quantization.SKIPPED[spec.family] if name != "lm_head"]
        packed.pack(model, skipped=spared)
    # bitsandbytes' packed CPU kernels are used in eval mode only.
    return cast("Model", model.eval())


def _packs(spec: LoadSpec) -> bool:
    alone = spec.device == "cpu" and spec.device_map is None
    whole = spec.quantization == "none" and spec.dtype == "bfloat16"
    return alone and whole and cpu_attention.has_native_bf16() and packed.has_kernel()


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
