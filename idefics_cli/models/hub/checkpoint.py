"""Readers of facts in the files of a checkpoint, without torch."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import get_args

from idefics_cli.core.errors import ModelError
from idefics_cli.core.text import abbreviated
from idefics_cli.core.types import DtypeName, Quantization
from idefics_cli.models.families import spec
from idefics_cli.models.families.geometry import Json, section, whole_number
from idefics_cli.models.families.spec import FamilySpec, Shape
from idefics_cli.models.hub.adapters import is_trained, read_record, untrained_error
from idefics_cli.models.hub.files import read_json, read_text
from idefics_cli.models.hub.limits import check_config, check_image_settings, check_scaling
from idefics_cli.models.hub.weights import adapter_error, mlx_error

_TOKEN_FILES = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
)
_TOKENS_AROUND_A_TILE = 2
_TRAINER_CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def read_config(folder: Path, name: str) -> Json:
    """Return the object in config.json of the checkpoint in *folder*; *name* is for errors.

    Raises:
        ModelError: If the file is missing or broken, or holds absurd numbers.
    """
    path = folder / "config.json"
    if not path.exists():
        if any(folder.glob("*.gguf")):
            raise gguf_error(name)
        if (folder / "adapter_config.json").exists():
            raise adapter_error(name)
        if not is_trained(read_record(folder, name)):
            raise untrained_error(name)
        hint = "a model folder holds config.json, *.safetensors and the processor's files"
        if saved := _trainer_checkpoints(folder):
            listed = ", ".join(f"`-m {Path(name, path.name)}`" for path in saved[:3])
            hint = f"it is the folder of a training run; take one of its checkpoints: {listed}"
        raise ModelError(f"`{name}` has no config.json", hint=hint)
    config = read_json(path, name)
    check_config(config, name)
    return config


def family_of(config: Json, name: str) -> FamilySpec:
    """Return the family to which *config* belongs; *name* is for errors.

    Raises:
        ModelError: If this tool does not run that family.
    """
    kind = config.get("model_type")
    known = list(spec.FAMILIES)
    if kind in known:
        return spec.find_family(str(kind))
    what = f"`{name}` is a model of type `{abbreviated(str(kind))}`, which this tool does not run"
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
    # A checkpoint that was converted for MLX has the key `quantization`, and newer ones also have
    # the key `quantization_config`.
    if "bits" in section(config, "quantization"):
        raise mlx_error(name)
    if not settings:
        return None
    if settings.get("load_in_4bit"):
        return "4bit"
    if settings.get("load_in_8bit"):
        return "8bit"
    method = abbreviated(str(settings.get("quant_method", "an unknown method")))
    raise ModelError(
        f"the weights of `{name}` are quantized with {method}, which this tool does not read",
        hint="take the plain checkpoint with `--quantization 4bit`",
    )


def stored_dtype(config: Json) -> DtypeName | None:
    """Return the dtype in *config*; None if it states none, or one that this tool does not run."""
    name = config.get("dtype") or config.get("torch_dtype")
    return next((dtype for dtype in get_args(DtypeName) if dtype == name), None)


def chats(folder: Path, family: FamilySpec, name: str) -> bool:
    """Return whether the checkpoint in *folder* was tuned to chat.

    Such a checkpoint has a chat template or, in a family without templates, the token that ends a
    turn.
    """
    if family.prompt == "interleaved":
        return any(
            family.turn_end in (read_text(folder / file, name) or "") for file in _TOKEN_FILES
        )
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
    return bool(image_settings(folder, name).get("do_image_splitting", default))


def shape_of(config: Json, folder: Path, name: str) -> Shape:
    """Return the shape of the checkpoint in *folder*, from which its memory is computed."""
    geometry = family_of(config, name).geometry
    images = image_settings(folder, name)
    check_scaling(images, config, geometry, name)
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
        edges=geometry.edges(config, images),
    )


def image_settings(folder: Path, name: str) -> Json:
    """Return the settings of the image processor, from the newer or the older file for them.

    Raises:
        ModelError: If a file is broken, or holds absurd numbers.
    """
    merged = section(read_json(folder / "processor_config.json", name), "image_processor")
    images = merged or read_json(folder / "preprocessor_config.json", name)
    file = "processor_config.json" if merged else "preprocessor_config.json"
    check_image_settings(images, file, name)
    return images


def gguf_error(name: str) -> ModelError:
    """Return the error for a model of llama.cpp."""
    return ModelError(
        f"`{name}` is a GGUF model, which this tool does not run",
        hint="take the original checkpoint with `--quantization 4bit`; "
        "`idefics models` lists models",
    )


def _trainer_checkpoints(folder: Path) -> list[Path]:
    """Return the checkpoints that transformers' Trainer wrote into *folder*, the last one first."""
    found = {
        path: int(match[1])
        for path in folder.glob("checkpoint-*/")
        if (match := _TRAINER_CHECKPOINT.fullmatch(path.name)) and len(match[1]) < 20
    }
    return sorted(found, key=found.__getitem__, reverse=True)
