"""LoRA adapters in the file format of PEFT: which there are, and what their files say; no torch."""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from idefics_cli.core.adapters import LoraAdapter
from idefics_cli.core.errors import ModelError
from idefics_cli.core.text import abbreviated
from idefics_cli.models.families.geometry import Json, section
from idefics_cli.models.families.spec import Shape
from idefics_cli.models.hub.cache import is_offline, snapshot
from idefics_cli.models.hub.download import fetch_adapter
from idefics_cli.models.hub.errors import not_cached
from idefics_cli.models.hub.files import check_files, read_json
from idefics_cli.models.hub.names import is_hub_id, local_folder
from idefics_cli.models.hub.weights import read_header

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
RECORD, REPLAY = "idefics.json", "replay.json"
"""What `idefics tune` writes about a run; folders of other programs have no such files."""
_MODULE = re.compile(r"\^?[\w.]+")
_CHUNK = 2**22
_QUERY = re.compile(r"\.layers\.(\d{1,9})\.self_attn\.q_proj\.lora_A\.")
_OTHER_PARTS = re.compile("vision|connector|perceiver")
_CHANGED_BY_COPIES = (
    "_name_or_path",
    "dtype",
    "quantization_config",
    "torch_dtype",
    "transformers_version",
)
# These settings of PEFT change the result, but this program does not implement them.
_UNKNOWN = ("layer_replication", "trainable_token_indices", "target_parameters", "fan_in_fan_out")


@dataclass(frozen=True, slots=True)
class LoraSettings:
    """What adapter_config.json says about the computation.

    Attributes:
        alpha: Numerator of the scale, unless *alphas* has another for a module.
        alphas: Numerators for modules, by the end of their names.
        is_rank_stabilized: Whether the scale is alpha / sqrt(rank) and not alpha / rank.
        is_dora: Whether the rows of the result get the lengths that the adapter has learned.
    """

    alpha: float
    alphas: Mapping[str, float]
    is_rank_stabilized: bool
    is_dora: bool

    def scale(self, module: str, rank: int) -> float:
        """Return the factor of the product of the matrices of *module*, which is named in full."""
        alpha = next((n for key, n in self.alphas.items() if _matches(key, module)), self.alpha)
        return alpha / math.sqrt(rank) if self.is_rank_stabilized else alpha / rank


def find_adapter(name: str, *, offline: bool = False) -> LoraAdapter:
    """Return the adapter *name*, which is downloaded if it is not here.

    Args:
        name: Path of a folder or Hub id.
        offline: Whether the network must not be used.

    Raises:
        ModelError: If there is no such adapter, or it is broken.
    """
    folder = _find_folder(name, offline=offline)
    check_files(folder, name)
    config = _read_config(folder, name)
    _settings_of(config, name)
    if not (folder / WEIGHTS).exists():
        raise ModelError(
            f"the adapter `{name}` has no {WEIGHTS}",
            hint="pickled `.bin` weights can run code, so they are not read; save the adapter "
            "again with a current PEFT",
        )
    base = config.get("base_model_name_or_path")
    found = LoraAdapter(name, str(folder), _digest(folder), base if isinstance(base, str) else "")
    return _with_record(found, folder)


def config_digest(folder: Path) -> str:
    """Return a SHA-256 of config.json of the model in *folder*, in hexadecimal.

    Fields that a copy in another dtype or with quantized weights changes are left out.

    Raises:
        ModelError: If the file cannot be read.
    """
    config = _lasting(read_json(folder / "config.json", str(folder)))
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _lasting(value: object) -> object:
    if not isinstance(value, dict):
        return value
    return {key: _lasting(each) for key, each in value.items() if key not in _CHANGED_BY_COPIES}


def is_adapter(folder: Path) -> bool:
    """Return whether *folder* holds an adapter, and no weights of a whole model."""
    return (folder / CONFIG).exists() and not any(folder.glob("model*.safetensors"))


def read_settings(folder: Path, name: str) -> LoraSettings:
    """Return the settings of the adapter in *folder*; *name* is for errors.

    Raises:
        ModelError: If the adapter is of a kind that this tool does not run.
    """
    return _settings_of(_read_config(folder, name), name)


def check_width(adapter: LoraAdapter, shape: Shape, model: str) -> None:
    """Check that *adapter* is for layers as wide as those of *model*, and for no more layers.

    The loader compares all names and shapes; this check needs no file of the model.

    Args:
        adapter: The adapter.
        shape: The architecture of the model.
        model: The name of the model in messages.

    Raises:
        ModelError: If the adapter does not fit, or its file is broken.
    """
    header = read_header(Path(adapter.folder) / WEIGHTS, adapter.name)
    for key, entry in header.items():
        if (found := _QUERY.search(key)) is None or _OTHER_PARTS.search(key):
            continue
        sizes = entry.get("shape") if isinstance(entry, dict) else None
        if isinstance(sizes, list) and len(sizes) == 2 and sizes[1] != shape.hidden:
            fault = f"it is for layers that are {sizes[1]} wide, and those of the model are"
            raise misfit_error(adapter, model, f"{fault} {shape.hidden}")
        if int(found[1]) >= shape.layers:
            fault = f"it is for layer {found[1]}, and the model has {shape.layers} layers"
            raise misfit_error(adapter, model, fault)


def misfit_error(adapter: LoraAdapter, model: str, fault: str) -> ModelError:
    """Return the error for an *adapter* that was made for another model than *model*."""
    base = f": it was made for `{adapter.base}`" if adapter.base else ""
    return ModelError(
        f"the adapter `{adapter.name}` does not fit {model}: {fault}",
        hint=f"an adapter works with the model for which it was made{base}",
    )


def read_record(folder: Path, name: str) -> Json:
    """Return what `idefics tune` wrote about the run of *folder*; empty if it has none.

    Raises:
        ModelError: If the file cannot be read. The message names *name*.
    """
    return read_json(folder / RECORD, name)


def is_trained(record: Json) -> bool:
    """Whether the run of *record* has ended, or there was none."""
    return record.get("finished") is not False


def untrained_error(name: str) -> ModelError:
    """Return the error for the folder *name* of a run that has written no weights yet."""
    return ModelError(
        f"the training of `{name}` has not ended, and has written no weights yet",
        hint="the same `idefics tune` goes on",
    )


def _with_record(adapter: LoraAdapter, folder: Path) -> LoraAdapter:
    """Return *adapter* with what `idefics tune` wrote about its training; other values are left."""
    record = read_record(folder, adapter.name)
    run = section(record, "run")
    edge, splitting = run.get("longest_edge"), run.get("splitting")
    prompt, digest = run.get("prompt"), run.get("base_config")
    return replace(
        adapter,
        base_config=digest if isinstance(digest, str) else None,
        splitting=splitting if isinstance(splitting, bool) else None,
        longest_edge=edge if type(edge) is int and edge > 0 else None,
        prompt=prompt if isinstance(prompt, str) and prompt.strip() else None,
        is_whole=is_trained(record),
    )


def _settings_of(config: Json, name: str) -> LoraSettings:
    kind = config.get("peft_type")
    if kind != "LORA":
        raise ModelError(
            f"the adapter `{name}` is of the kind {kind or 'unknown'}", hint="only LoRA works"
        )
    for key in _UNKNOWN:
        if config.get(key):
            raise ModelError(
                f"the adapter `{name}` uses `{key}`, which this tool does not compute",
                hint="merge it with PEFT: `merge_and_unload()`, then `save_pretrained(...)`",
            )
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float) or not math.isfinite(alpha):
        raise ModelError(
            f"{CONFIG} of `{name}` has no number `lora_alpha`", hint="copy the file again"
        )
    return LoraSettings(
        alpha,
        _alphas(config, name),
        is_rank_stabilized=config.get("use_rslora") is True,
        is_dora=config.get("use_dora") is True,
    )


def check_name(name: str) -> None:
    """Check that *name* is a folder, or can be a Hub id.

    Raises:
        ModelError: If it is neither.
    """
    if local_folder(name) is None and not is_hub_id(name):
        raise ModelError(
            f"there is no adapter `{name}`", hint="give a folder, or a Hub id `owner/name`"
        )


def _find_folder(name: str, *, offline: bool) -> Path:
    check_name(name)
    if (local := local_folder(name)) is not None:
        return local
    folder = snapshot(name)
    if folder is not None and (folder / CONFIG).exists() and (folder / WEIGHTS).exists():
        return folder
    if offline or is_offline():
        raise not_cached(name)
    return fetch_adapter(name)


def _read_config(folder: Path, name: str) -> Json:
    if not (folder / CONFIG).exists():
        hint = "a folder with an adapter holds adapter_config.json and adapter_model.safetensors"
        if (folder / "config.json").exists():
            hint = f"it is a whole model: `-m {name}`"
        elif not is_trained(read_record(folder, name)):
            raise untrained_error(name)
        raise ModelError(f"`{name}` is no adapter: it has no {CONFIG}", hint=hint)
    return read_json(folder / CONFIG, name)


def _alphas(config: Json, name: str) -> Mapping[str, float]:
    """Return `alpha_pattern` of *config*.

    PEFT takes each key for a regular expression. One from a stranger can take for ever, so only
    names are accepted, which are what PEFT's users write.
    """
    alphas: dict[str, float] = {}
    for key, number in section(config, "alpha_pattern").items():
        if not _MODULE.fullmatch(key) or not isinstance(number, int | float):
            raise ModelError(
                f"`alpha_pattern` in {CONFIG} of `{name}` has an entry `{abbreviated(key)}`, which "
                "is no name of a module with a number",
                hint="merge it with PEFT: `merge_and_unload()`, then `save_pretrained(...)`",
            )
        alphas[key] = number
    return alphas


def _matches(key: str, module: str) -> bool:
    """Return whether *key* names *module*, as PEFT finds it (0.21, `get_pattern_key`)."""
    if key.startswith("^"):
        return module == key[1:]
    return module == key or module.endswith(f".{key}")


def _digest(folder: Path) -> str:
    """Return the SHA-256 of the files of the adapter."""
    digest = hashlib.sha256()
    for name in (CONFIG, WEIGHTS):
        with (folder / name).open("rb") as file:
            while chunk := file.read(_CHUNK):
                digest.update(chunk)
    return digest.hexdigest()
