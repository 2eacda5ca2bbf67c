"""What the files of a checkpoint tell about it, read without torch."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from idefics_cli.core.errors import ModelError
from idefics_cli.core.types import DtypeName, Quantization
from idefics_cli.models.families.spec import FAMILIES, FamilyName, Shape
from idefics_cli.models.hub import cache

Json = Mapping[str, object]

# What a config leaves out, from the config classes of transformers 5.23.
_TEXT_DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "mistral": {"intermediate_size": 14_336, "num_key_value_heads": 8},
    "idefics": {"max_position_embeddings": 2048, "cross_layer_interval": 1},
    "llama": {"max_position_embeddings": 2048},
}
_TEXT_DEFAULT = {
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 32_768,
}
_VISION_DEFAULTS: Mapping[FamilyName, Mapping[str, int]] = {
    "idefics": {"image_size": 224, "patch_size": 14, "intermediate_size": 5120, "heads": 16},
    "idefics2": {"image_size": 224, "patch_size": 32, "intermediate_size": 3072, "heads": 12},
    "idefics3": {"image_size": 224, "patch_size": 32, "intermediate_size": 3072, "heads": 16},
    "smolvlm": {"image_size": 224, "patch_size": 32, "intermediate_size": 3072, "heads": 16},
}
_END_OF_UTTERANCE = "<end_of_utterance>"
_TOKEN_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
)
_LARGEST_HEADER = 100_000_000  # of the safetensors format


@dataclass(frozen=True, slots=True)
class Weights:
    """What the headers of the weight files tell.

    Attributes:
        parameters: Numbers stored; of packed weights, the packed ones.
        size_bytes: Of all files.
    """

    parameters: int
    size_bytes: int


def read_config(folder: Path, name: str) -> Json:
    """Return config.json of the checkpoint in *folder*; *name* is for errors.

    Raises:
        ModelError: If there is none, or it is broken.
    """
    path = folder / "config.json"
    if not path.exists():
        if any(folder.glob("*.gguf")):
            raise gguf_error(name)
        hint = "a model folder holds config.json, *.safetensors and the processor's files"
        if (folder / "adapter_config.json").exists():
            hint = "it holds a PEFT adapter: merge it into its base model first"
        raise ModelError(f"`{name}` has no config.json", hint=hint)
    return read_json(path, name)


def read_json(path: Path, name: str) -> Json:
    """Return the object in the JSON file *path*, empty if there is no file.

    Raises:
        ModelError: If it cannot be read or is no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ModelError(f"cannot read {path.name} of `{name}`: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(
            f"{path.name} of `{name}` is no valid JSON", hint="copy or download the file again"
        ) from error
    if not isinstance(content, dict):
        raise ModelError(f"{path.name} of `{name}` holds no JSON object")
    return content


def family_of(config: Json, name: str) -> FamilyName:
    """Return the family that a config belongs to.

    Raises:
        ModelError: If it is none that this tool runs.
    """
    kind = config.get("model_type")
    for family in FAMILIES:
        if kind == family:
            return family  # type: ignore[return-value] # FAMILIES is keyed by FamilyName
    what = f"`{name}` is a model of type `{kind}`, which this tool does not run"
    raise ModelError(
        what if kind else f"config.json of `{name}` does not tell its model_type",
        hint=f"it runs {', '.join(list(FAMILIES)[:-1])} and {list(FAMILIES)[-1]}; "
        "`idefics models` lists models",
    )


def stored_quantization(config: Json, name: str) -> Quantization | None:
    """Return how the weights are stored, None when they are plain.

    Raises:
        ModelError: If they are stored in a way that this tool does not read.
    """
    settings = _section(config, "quantization_config")
    if not settings:
        return None
    if settings.get("load_in_4bit"):
        return "4bit"
    if settings.get("load_in_8bit"):
        return "8bit"
    method = settings.get("quant_method", "an unknown method")
    raise ModelError(
        f"the weights of `{name}` are quantized with {method}, which this tool does not read",
        hint="take the plain checkpoint with `--quantization 4bit`",
    )


def stored_dtype(config: Json) -> DtypeName | None:
    """Return the dtype that the config names, None if it names none that this tool runs."""
    name = config.get("dtype") or config.get("torch_dtype")
    return next((dtype for dtype in get_args(DtypeName) if dtype == name), None)


def read_weights(folder: Path, name: str) -> Weights:
    """Return what the weight files in *folder* hold, from their headers.

    Raises:
        ModelError: If files are missing, cut short, or in another format.
    """
    missing = cache.missing_weights(folder)
    if missing == [cache.SINGLE]:
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
            raise cache.no_safetensors(name)
        raise ModelError(
            f"`{name}` has no weights",
            hint=f"the folder needs {cache.SINGLE}, or its parts with {cache.INDEX}",
        )
    if missing:
        listed = ", ".join(missing[:3]) + (", …" if len(missing) > 3 else "")
        raise ModelError(
            f"weights of `{name}` are missing: {listed}", hint="copy or download them again"
        )
    paths = _weight_paths(folder)
    return Weights(
        parameters=sum(_count(path, name) for path in paths),
        size_bytes=sum(path.stat().st_size for path in paths),
    )


def guess_weights(size_bytes: int | None, config: Json, name: str) -> Weights:
    """Return what weights of *size_bytes* in a repository hold, by the dtype of its config.

    Raises:
        ModelError: If the repository has no safetensors weights, so no size.
    """
    if not size_bytes:
        raise cache.no_safetensors(name)
    wide = 4 if stored_dtype(config) == "float32" else 2
    # Packed weights are numbers of one byte.
    size = 1 if _section(config, "quantization_config") else wide
    return Weights(parameters=size_bytes // size, size_bytes=size_bytes)


def chats(folder: Path, family: FamilyName, name: str) -> bool:
    """Tell whether the checkpoint in *folder* was tuned to chat.

    Later families have a chat template then; IDEFICS-1 has the token that ends a turn.
    """
    if family == "idefics":
        return any(_END_OF_UTTERANCE in _text(folder / file) for file in _TOKEN_FILES)
    if any((folder / file).exists() for file in ("chat_template.jinja", "chat_template.json")):
        return True
    files = ("processor_config.json", "tokenizer_config.json")
    return any(bool(read_json(folder / file, name).get("chat_template")) for file in files)


def context_tokens(config: Json, family: FamilyName) -> int:
    """Return the longest prompt and reply together."""
    return _text_number(config, family, "max_position_embeddings")


def splitting(folder: Path, family: FamilyName, name: str) -> bool | None:
    """Return whether the checkpoint in *folder* splits pictures; None if it cannot."""
    if family == "idefics":
        return None
    default = family != "idefics2"
    return bool(_image_settings(folder, name).get("do_image_splitting", default))


def shape_of(config: Json, folder: Path, name: str) -> Shape:
    """Return the numbers that the memory of the checkpoint in *folder* follows from."""
    family = family_of(config, name)
    hidden = _text_number(config, family, "hidden_size")
    heads = _text_number(config, family, "num_attention_heads")
    layers = _text_number(config, family, "num_hidden_layers")
    intermediate = _text_number(config, family, "intermediate_size")
    images = _image_settings(folder, name)
    edge, patch, vision_wide, vision_heads = _vision(config, family)
    limit = _longest(images, "size")
    if family == "idefics2" and limit:
        edge = min(edge, limit)
    patches = max(1, edge // patch) ** 2
    is_first = family == "idefics"
    interval = _text_number(config, family, "cross_layer_interval") if is_first else 0
    vision_width = _int(_section(config, "vision_config").get("embed_dim"), 768)
    return Shape(
        hidden=hidden,
        intermediate=intermediate,
        layers=layers,
        heads=heads,
        kv_heads=heads if is_first else _text_number(config, family, "num_key_value_heads", heads),
        head_dim=_text_number(config, family, "head_dim", hidden // max(1, heads)),
        patches=patches,
        vision_heads=vision_heads,
        # Idefics2 lifts every patch to the width of the text model before it resamples.
        widest=max(vision_wide, intermediate) if family == "idefics2" else vision_wide,
        tiles=_tiles(family, images),
        tile_tokens=_tile_tokens(config, family, patches),
        cross_layers=math.ceil(layers / interval) if interval else 0,
        cross_inputs=vision_width if is_first else 0,
    )


def gguf_error(name: str) -> ModelError:
    """Return the error for a model of llama.cpp."""
    return ModelError(
        f"`{name}` is a GGUF model, which this tool does not run",
        hint="take the original checkpoint with `--quantization 4bit`; "
        "`idefics models` lists models",
    )


def _weight_paths(folder: Path) -> list[Path]:
    index = folder / cache.INDEX
    if not index.exists():
        return [folder / cache.SINGLE]
    names = json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()
    return [folder / part for part in sorted(set(names))]


def _count(path: Path, name: str) -> int:
    """Return how many numbers the safetensors file *path* holds, after a look at its size."""
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        if start == b"version ":
            raise ModelError(
                f"{path.name} of `{name}` is a Git LFS pointer, not the weights",
                hint="run `git lfs pull` in the folder",
            )
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        header = file.read(length) if 0 < length <= _LARGEST_HEADER else b""
    try:
        tensors = json.loads(header)
        entries = [entry for key, entry in tensors.items() if key != "__metadata__"]
        ends = [entry["data_offsets"][1] for entry in entries]
        count = sum(int(math.prod(entry["shape"])) for entry in entries)
    except (ValueError, AttributeError, KeyError, TypeError, IndexError) as error:
        raise ModelError(
            f"{path.name} of `{name}` is no safetensors file", hint="copy or download it again"
        ) from error
    expected = 8 + length + max(ends, default=0)
    if size < expected:
        raise ModelError(
            f"{path.name} of `{name}` is cut short: {size} of {expected} bytes",
            hint="copy or download it again",
        )
    return count


def _text_number(config: Json, family: FamilyName, key: str, default: int | None = None) -> int:
    text = config if family == "idefics" else _section(config, "text_config")
    fallback = "mistral" if family == "idefics2" else "llama"
    kind = family if family == "idefics" else str(text.get("model_type", fallback))
    known = {**_TEXT_DEFAULT, **_TEXT_DEFAULTS.get(kind, {})}
    return _int(text.get(key), known.get(key, default if default is not None else 0))


def _vision(config: Json, family: FamilyName) -> tuple[int, int, int, int]:
    vision, default = _section(config, "vision_config"), _VISION_DEFAULTS[family]
    return (
        _int(vision.get("image_size"), default["image_size"]),
        max(1, _int(vision.get("patch_size"), default["patch_size"])),
        _int(vision.get("intermediate_size"), default["intermediate_size"]),
        _int(vision.get("num_attention_heads"), default["heads"]),
    )


def _tiles(family: FamilyName, images: Json) -> int:
    if family == "idefics":
        return 1
    if family == "idefics2":
        return 5  # four quarters and the whole
    # A grid of tiles as large as the vision model sees, and the whole.
    whole = _longest(images, "size") or 4 * 364
    tile = _longest(images, "max_image_size") or 364
    return math.ceil(whole / tile) ** 2 + 1


def _tile_tokens(config: Json, family: FamilyName, patches: int) -> int:
    marks = 2
    if family == "idefics":
        return 1 + marks
    if family == "idefics2":
        latents = _section(config, "perceiver_config").get("resampler_n_latents")
        return _int(latents, 64) + marks
    return patches // max(1, _int(config.get("scale_factor"), 2)) ** 2 + marks


def _image_settings(folder: Path, name: str) -> Json:
    merged = _section(read_json(folder / "processor_config.json", name), "image_processor")
    return merged or read_json(folder / "preprocessor_config.json", name)


def _longest(images: Json, key: str) -> int:
    return _int(_section(images, key).get("longest_edge"), 0)


def _section(config: Json, key: str) -> Json:
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def _int(value: object, default: int) -> int:
    if isinstance(value, list) and value:
        value = max(v for v in value if isinstance(v, int))
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
