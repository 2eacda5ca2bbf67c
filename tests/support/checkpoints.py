"""Folders like checkpoints: configs, and weight files with headers and a few numbers."""

from __future__ import annotations

import json
import struct
from pathlib import Path

Content = dict[str, object]


def safetensors(
    shapes: dict[str, list[int]], *, dtype: str = "F16", size: int = 2, made_for: str = "pt"
) -> bytes:
    """Return a safetensors file with zeros of *shapes*; a number takes *size* bytes."""
    header: dict[str, object] = {"__metadata__": {"format": made_for}}
    end = 0
    for name, shape in shapes.items():
        count = 1
        for edge in shape:
            count *= edge
        header[name] = {
            "dtype": dtype,
            "shape": shape,
            "data_offsets": [end, end + count * size],
        }
        end += count * size
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(end)


IDEFICS2: Content = {
    "model_type": "idefics2",
    "dtype": "bfloat16",
    "text_config": {
        "model_type": "mistral",
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
    },
    "vision_config": {"image_size": 70, "patch_size": 14, "intermediate_size": 64},
    "perceiver_config": {"resampler_n_latents": 4},
}
# 100 numbers in all.
WEIGHTS = {"model.text_model.norm.weight": [20], "lm_head.weight": [8, 10]}


def files(**changes: object) -> dict[str, bytes]:
    """Return the files of a small Idefics2; *changes* replace entries of its config."""
    return {
        "config.json": json.dumps({**IDEFICS2, **changes}).encode(),
        "model.safetensors": safetensors(WEIGHTS),
        "tokenizer.json": b"{}",
        "tokenizer_config.json": b"{}",
        "preprocessor_config.json": json.dumps({"do_image_splitting": True}).encode(),
    }


def sharded(content: dict[str, bytes]) -> dict[str, bytes]:
    """Return *content* with its weights in two files and an index."""
    parts = {f"model-0000{i}-of-00002.safetensors": {n: s} for i, (n, s) in enumerate(
        WEIGHTS.items(), start=1
    )}  # fmt: skip
    index = {"weight_map": {name: part for part, shapes in parts.items() for name in shapes}}
    rest = {name: data for name, data in content.items() if name != "model.safetensors"}
    return {
        **rest,
        "model.safetensors.index.json": json.dumps(index).encode(),
        **{part: safetensors(shapes) for part, shapes in parts.items()},
    }


def write(folder: Path, content: dict[str, bytes]) -> Path:
    """Write *content* to *folder* and return it."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in content.items():
        (folder / name).write_bytes(data)
    return folder


def put_in_cache(
    root: Path, repo: str, content: dict[str, bytes], *, commit: str = "a" * 40, ref: str = "main"
) -> Path:
    """Write *content* to the cache *root* in the layout of the Hub client.

    Returns:
        The folder of the snapshot.
    """
    base = root / f"models--{repo.replace('/', '--')}"
    (base / "refs").mkdir(parents=True, exist_ok=True)
    (base / "refs" / ref).write_text(commit)
    return write(base / "snapshots" / commit, content)
