"""The files and checkpoints that the bad calls name."""

from __future__ import annotations

import json
import os
from pathlib import Path

from tests.support import checkpoints
from tests.support.pictures import encoded, noise, png


def write_folder(root: Path) -> None:
    """Write the files and broken checkpoints that the bad calls name into *root*."""
    for name, data in _files().items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(data)
    for name, files in _models().items():
        checkpoints.write(root / "models" / name, files)
    (root / "vacant").mkdir()
    (root / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(root / "pipe.png")


def _files() -> dict[str, bytes]:
    """Return the files in the folder of the calls."""
    whole = encoded(noise(), "PNG")
    return {
        "good.png": whole,
        "cut.png": whole[: len(whole) // 2],
        "cut.jpg": encoded(noise(400, 300), "JPEG")[:3000],
        "empty.jpg": b"",
        "prose.png": b"once upon a time\n",
        "page.jpg": b"<!DOCTYPE html><html><body>404</body></html>",
        "zeros.png": bytes(4096),
        "drawing.svg": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "paper.pdf": b"%PDF-1.7\n",
        "clip.mp4": b"\0\0\0\x18ftypisom\0\0\2\0isommp41",
        "photo.jxl": b"\xff\x0a" + bytes(20),
        "photo.cr2": b"II*\0\x10\0\0\0CR\2\0",
        "sound.png": b"OggS" + bytes(30),
        "office.png": b"PK\3\4" + bytes(30),
        "pointer.png": b"version https://git-lfs.github.com/spec/v1\n",
        "huge.png": png(20_000, 20_000, b"", depth=8, colour_type=2),
        "esc\x1b[2J.png": b"no picture",
        "broken.toml": b"model = \n",
        "key.toml": b"modle = 'demo'\n",
        "nested.toml": b"[model]\nname = 'demo'\n",
        "value.toml": b"top_p = 2\n",
        "latin.toml": b"system = 'd\xe9crivez'\n",
        "old.tsv": b"a\tb\n",
        "rows.csv": b"path,subject\ngood.png,a cat\ncut.png\n",
        "ok.csv": b"path,subject\ngood.png,a cat\n",
        "rows.jsonl": b'{"path": "good.png"}\n{"path": "cut',
        "model.gguf": b"GGUF",
        "sub/readme.txt": b"nothing here\n",
    }


def _models() -> dict[str, dict[str, bytes]]:
    """Return the files of broken checkpoints."""
    whole = checkpoints.files()

    def without(*names: str) -> dict[str, bytes]:
        return {name: data for name, data in whole.items() if name not in names}

    return {
        "base": whole,
        "no_config": without("config.json"),
        "broken_config": {**whole, "config.json": b"{"},
        "list_config": {**whole, "config.json": b"[]"},
        "no_type": {**whole, "config.json": b"{}"},
        "llava": {**whole, "config.json": b'{"model_type": "llava"}'},
        "no_weights": without("model.safetensors"),
        "pickled": {**without("model.safetensors"), "pytorch_model.bin": b"x"},
        "cut_weights": {**whole, "model.safetensors": whole["model.safetensors"][:-9]},
        "no_safetensors": {**whole, "model.safetensors": b"x" * 100},
        "lfs": {**whole, "model.safetensors": b"version https://git-lfs.github.com/spec/v1\n"},
        "no_tokenizer": without("tokenizer.json"),
        "no_images": without("preprocessor_config.json"),
        "gptq": {
            **whole,
            "config.json": json.dumps(
                {**checkpoints.IDEFICS2, "quantization_config": {"quant_method": "gptq"}}
            ).encode(),
        },
        "gguf": {"model-q4.gguf": b"GGUF"},
        "adapter": {"adapter_config.json": b'{"peft_type": "LORA", "lora_alpha": 8}'},
        "vacant": {},
    }


PICTURE = _files()["good.png"]
