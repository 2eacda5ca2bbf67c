"""Facts in the files of a checkpoint, read without torch."""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

from idefics_cli.core.errors import ModelError
from idefics_cli.core.types import DtypeName, Quantization
from idefics_cli.models.families import spec
from idefics_cli.models.families.geometry import Json, section, whole_number
from idefics_cli.models.families.spec import FamilySpec, Shape
from idefics_cli.models.hub import cache
from idefics_cli.models.hub.errors import no_safetensors

_TOKEN_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
)
_TOKENS_AROUND_A_TILE = 2
_LARGEST_HEADER = 100_000_000  # of the safetensors format


@dataclass(frozen=True, slots=True)
class Weights:
    """The weights of a checkpoint, by the headers of their files.

    Attributes:
        parameters: Count of stored numbers; packed weights count as the numbers that hold them.
        size_bytes: Size of all files.
    """

    parameters: int
    size_bytes: int


def read_config(folder: Path, name: str) -> Json:
    """Return the object in config.json of the checkpoint in *folder*; *name* is for errors.

    Raises:
        ModelError: If the file is missing or broken.
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
        ModelError: If the file cannot be read or holds no JSON object.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ModelError(f"cannot read {path.name} of `{name}`: {error.strerror}") from error
    except ValueError as error:
        raise ModelError(
            f"{path.name} of `{name}` is not valid JSON", hint="copy or download the file again"
        ) from error
    if not isinstance(content, dict):
        raise ModelError(f"{path.name} of `{name}` holds no JSON object")
    return content


def family_of(config: Json, name: str) -> FamilySpec:
    """Return the family that *config* belongs to; *name* is for errors.

    Raises:
        ModelError: If this tool runs no such family.
    """
    kind = config.get("model_type")
    known = list(spec.FAMILIES)
    if kind in known:
        return spec.find_family(str(kind))
    what = f"`{name}` is a model of type `{kind}`, which this tool does not run"
    raise ModelError(
        what if kind else f"config.json of `{name}` has no model_type",
        hint=f"it runs {', '.join(known[:-1])} and {known[-1]}; `idefics models` lists models",
    )


def stored_quantization(config: Json, name: str) -> Quantization | None:
    """Return the quantization of the stored weights; None if they are not quantized.

    Raises:
        ModelError: If this tool does not read the quantization.
    """
    settings = section(config, "quantization_config")
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
    """Return the dtype in *config*; None if it has none, or one that this tool does not run."""
    name = config.get("dtype") or config.get("torch_dtype")
    return next((dtype for dtype in get_args(DtypeName) if dtype == name), None)


def read_weights(folder: Path, name: str) -> Weights:
    """Return the weights in *folder*, from the headers of their files.

    Raises:
        ModelError: If files are missing, cut short, or in another format.
    """
    missing = cache.missing_weights(folder)
    if missing == [cache.SINGLE]:
        if any(folder.glob("*.bin")) or any(folder.glob("*.pt")):
            raise no_safetensors(name)
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
    """Return the weights of a repository from their size and the dtype in *config*.

    Raises:
        ModelError: If the repository has no safetensors weights, so *size_bytes* is 0 or None.
    """
    if not size_bytes:
        raise no_safetensors(name)
    plain = 4 if stored_dtype(config) == "float32" else 2
    # Packed weights are numbers of one byte.
    number_bytes = 1 if section(config, "quantization_config") else plain
    return Weights(parameters=size_bytes // number_bytes, size_bytes=size_bytes)


def chats(folder: Path, family: FamilySpec, name: str) -> bool:
    """Return whether the checkpoint in *folder* was tuned to chat.

    It then has a chat template or, in a family without templates, the token that ends a turn.
    """
    if family.prompt == "interleaved":
        return any(family.turn_end in _text(folder / file) for file in _TOKEN_FILES)
    if any((folder / file).exists() for file in ("chat_template.jinja", "chat_template.json")):
        return True
    files = ("processor_config.json", "tokenizer_config.json")
    return any(bool(read_json(folder / file, name).get("chat_template")) for file in files)


def context_tokens(config: Json, family: FamilySpec) -> int:
    """Return the largest number of tokens of prompt and reply together."""
    return family.geometry.text_number(config, "max_position_embeddings")


def splitting(folder: Path, family: FamilySpec, name: str) -> bool | None:
    """Return whether the checkpoint in *folder* splits pictures; None if it cannot."""
    default = family.geometry.splits_by_default
    if default is None:
        return None
    return bool(_image_settings(folder, name).get("do_image_splitting", default))


def tile_tokens(config: Json, family: FamilySpec) -> int:
    """Return the number of image tokens of one tile."""
    geometry = family.geometry
    return geometry.count_tile_tokens(config, geometry.patches(config, {}))


def shape_of(config: Json, folder: Path, name: str) -> Shape:
    """Return the shape of the checkpoint in *folder*, from which its memory follows."""
    geometry = family_of(config, name).geometry
    images = _image_settings(folder, name)
    hidden = geometry.text_number(config, "hidden_size")
    heads = geometry.text_number(config, "num_attention_heads")
    layers = geometry.text_number(config, "num_hidden_layers")
    intermediate = geometry.text_number(config, "intermediate_size")
    widest = geometry.vision_number(config, "intermediate_size")
    patches = geometry.patches(config, images)
    crosses = geometry.has_cross_attention
    interval = geometry.text_number(config, "cross_layer_interval") if crosses else 0
    vision_width = whole_number(section(config, "vision_config").get("embed_dim"), 768)
    return Shape(
        hidden=hidden,
        intermediate=intermediate,
        layers=layers,
        heads=heads,
        kv_heads=geometry.text_number(config, "num_key_value_heads", heads),
        head_dim=geometry.text_number(config, "head_dim", hidden // max(1, heads)),
        patches=patches,
        vision_heads=geometry.vision_number(config, "num_attention_heads"),
        widest=max(widest, intermediate) if geometry.projects_patches else widest,
        tiles=geometry.count_tiles(images),
        tile_tokens=geometry.count_tile_tokens(config, patches) + _TOKENS_AROUND_A_TILE,
        cross_layers=math.ceil(layers / interval) if interval else 0,
        cross_inputs=vision_width if crosses else 0,
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
    """Return the count of numbers in the safetensors file *path*, and check its size."""
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
            f"{path.name} of `{name}` is not a safetensors file", hint="copy or download it again"
        ) from error
    expected = 8 + length + max(ends, default=0)
    if size < expected:
        raise ModelError(
            f"{path.name} of `{name}` is cut short: {size} of {expected} bytes",
            hint="copy or download it again",
        )
    return count


def _image_settings(folder: Path, name: str) -> Json:
    merged = section(read_json(folder / "processor_config.json", name), "image_processor")
    return merged or read_json(folder / "preprocessor_config.json", name)


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""
