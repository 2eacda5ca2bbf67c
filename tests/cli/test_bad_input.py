"""Bad input by the dozen: each gives its error class, exit code and one clear line.

No traceback, and nothing on stdout.
"""

from __future__ import annotations

import io
import json
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import pytest

from idefics_cli.cli.services import Services
from idefics_cli.core.errors import (
    ConfigError,
    IdeficsError,
    ImageError,
    ImageErrorKind,
    ModelError,
    PlanError,
    PromptError,
    UsageError,
)
from idefics_cli.hardware.machine import Machine
from idefics_cli.ui.terminal.console import Console
from tests.support import checkpoints
from tests.support.commands import MACHINE, run
from tests.support.machines import H100, RTX_2080_TI, VERSIONS, gpus
from tests.support.pictures import encoded, noise, png

USAGE = "`idefics {} --help` shows the usage"
SUPPORTED = "supported: JPEG, PNG, WebP, GIF, TIFF, BMP, AVIF, HEIC, JPEG 2000, PSD and more"
EMPTY = "`idefics ask 'What is in the picture?' -i PICTURE`"
AGAIN = "copy or download it again"
NAMES = "`idefics models` lists the names; a Hub id `owner/name` or a local folder works too"
GGUF = "take the original checkpoint with `--quantization 4bit`; `idefics models` lists models"
BASE = "complete with `idefics ask --raw '<image>In this image,' -i PICTURE`"
PIPE = "pipe a picture in: idefics … -i - < picture.jpg"
DEEPER = "`-r` also looks into its sub-folders"
MARKS = "write `<image>` where each picture belongs, and `-i` for each"

ONE_H100, ONE_2080 = gpus(H100), gpus(RTX_2080_TI)
NO_4BIT = replace(ONE_H100, versions={**VERSIONS, "bitsandbytes": None})


@dataclass(frozen=True)
class Row:
    """A wrong call: what is typed, and what its user is told.

    Attributes:
        line: The arguments as a shell takes them.
        error: The class of the error.
        message: After `error: `; `...` stands for anything.
        hint: After `hint: `; None when there is no such line, "..." for any.
        kind: Of an `ImageError`.
        stdin: What is piped in; None when it is closed.
        environ: Variables as `NAME=value`.
        machine: Where it runs.
    """

    line: str
    error: type[IdeficsError]
    message: str
    hint: str | None = None
    kind: str | None = None
    stdin: bytes | None = None
    environ: str = ""
    machine: Machine = MACHINE

    def __str__(self) -> str:
        given = " ".join(filter(None, (self.environ, self.line)))
        return given if self.stdin is None else f"{given} <{self.stdin[:8]!r}"


def _files() -> dict[str, bytes]:
    """Return what lies in the folder of the calls."""
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
    """Return the files of checkpoints that are not what they should be."""
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
        "adapter": {"adapter_config.json": b"{}"},
        "vacant": {},
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder that the calls are made in."""
    root = tmp_path_factory.mktemp("bad")
    for name, data in _files().items():
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(data)
    for name, files in _models().items():
        checkpoints.write(root / "models" / name, files)
    (root / "vacant").mkdir()
    (root / "gone.png").symlink_to("nowhere.png")
    os.mkfifo(root / "pipe.png")
    return root


PICTURE = _files()["good.png"]
# fmt: off
ROWS = (
    Row("ask", PromptError, "the prompt is empty", EMPTY),
    Row("ask ''", PromptError, "the prompt is empty", EMPTY),
    Row("ask '  '", PromptError, "the prompt is empty", EMPTY),
    Row("ask x", PromptError, "stdin holds binary data, not text",
        "`-i -` takes a picture from stdin", stdin=PICTURE),
    Row("ask '' -i good.png", PromptError, "the prompt is empty", EMPTY, stdin=b" \n\n"),
    Row("ask --raw '<image> <image>' -i good.png", PromptError,
        "the raw prompt has 2 `<image>`, and 1 picture is given", MARKS),
    Row("ask --raw x -i good.png -i cut.png", PromptError,
        "the raw prompt has 0 `<image>`, and 2 pictures are given", MARKS),
    Row("ask --raw '<image>'", PromptError,
        "the raw prompt has 1 `<image>`, and 0 pictures are given", MARKS),
    Row("ask --raw '<image>' -i good.png -s 'Be kind.'", UsageError,
        "--system does not apply to a raw prompt", "write the instruction into PROMPT"),
    Row("ask x -m models/base -i good.png", PromptError,
        "`models/base` is a base model: it completes texts and does not chat", BASE),
    Row("chat -m demo", PromptError, "the prompt is empty", EMPTY),
    Row("chat", PromptError, "the prompt is empty", EMPTY, stdin=b"\n"),
    Row("chat", PromptError, "stdin holds binary data, not text",
        "`-i -` takes a picture from stdin", stdin=b"a\x00b"),
    Row("chat", PromptError, "the text on stdin is not UTF-8 (byte 4)",
        "convert it, for example with `iconv -t utf-8`; `-i -` takes a picture", stdin=b"caf\xe9"),
    Row("chat", PromptError, "the text on stdin is longer than 4,000,000 bytes",
        "pipe a part of it; no model has such a long context", stdin=b"a " * 2000001),
    Row("chat -m models/base", PromptError,
        "`models/base` is a base model: it completes texts and does not chat", BASE,
        stdin=b"What?"),
    Row("chat -i nosuch.png", ImageError, "no such file: `nosuch.png`", "check the path",
        kind="missing", stdin=b"What?"),
    Row("caption good.png -m demo -p ''", PromptError, "the prompt is empty",
        "leave `--prompt` out for the model's own"),
    Row("ask x -i nosuch.png", ImageError, "no such file: `nosuch.png`", "check the path",
        kind="missing"),
    Row("ask x -i god.png", ImageError, "no such file: `god.png`", "did you mean `good.png`?",
        kind="missing"),
    Row("ask x -i nosuch/a.png", ImageError, "no such file: `nosuch/a.png`",
        "there is no folder `nosuch`", kind="missing"),
    Row("ask x -i '*.png'", ImageError, "no such file: `*.png`",
        "globs are for `idefics caption`; otherwise name each picture, with its own `-i`",
        kind="missing"),
    Row("ask x -i ''", ImageError, "the name of a picture is empty", kind="missing"),
    Row("ask x -i gone.png", ImageError,
        "cannot read `gone.png`: it is a link to a file that is not there",
        "mend or remove the link", kind="missing"),
    Row("ask x -i www.example.com/a.png", ImageError, "no such file: `www.example.com/a.png`",
        "an address begins with https://", kind="missing"),
    Row("ask x -i file:///nosuch/a.png", ImageError, "no such file: `file:///nosuch/a.png`",
        "there is no folder `/nosuch`", kind="missing"),
    Row("ask x -i vacant", ImageError, "`vacant` is a folder, not a picture",
        "caption the pictures in it with `idefics caption -r FOLDER`", kind="not_an_image"),
    Row("ask x -i pipe.png", ImageError, "`pipe.png` is not a regular file", "...",
        kind="not_an_image"),
    Row("ask x -i /dev/zero", ImageError, "`/dev/zero` is not a regular file", "...",
        kind="not_an_image"),
    Row("ask x -i empty.jpg", ImageError, "cannot read `empty.jpg`: it is an empty file",
        "it may be an unfinished copy or download", kind="not_an_image"),
    Row("ask x -i prose.png", ImageError, "cannot read `prose.png`: it is text", SUPPORTED,
        kind="not_an_image"),
    Row("ask x -i zeros.png", ImageError,
        "cannot read `zeros.png`: it is no picture in a known format", SUPPORTED,
        kind="not_an_image"),
    Row("ask x -i page.jpg", ImageError, "cannot read `page.jpg`: it is a web page",
        "give the address or file of the picture itself", kind="not_an_image"),
    Row("ask x -i sound.png", ImageError, "cannot read `sound.png`: it is a sound or video file",
        SUPPORTED, kind="not_an_image"),
    Row("ask x -i office.png", ImageError,
        "cannot read `office.png`: it is a ZIP archive or office document", "unpack it",
        kind="not_an_image"),
    Row("ask x -i pointer.png", ImageError,
        "cannot read `pointer.png`: it is a Git LFS pointer, not the picture itself",
        "run `git lfs pull`", kind="not_an_image"),
    Row("ask x -i esc<ESC>[2J.png", ImageError, "cannot read `esc\\x1b[2J.png`: it is text",
        SUPPORTED, kind="not_an_image"),
    Row("ask x -i data:image/png", ImageError,
        "cannot read `data:image/png,… (14 characters)`: it has no comma before its data", "...",
        kind="not_an_image"),
    Row("ask x -i data:image/png;base64,%%%", ImageError,
        "cannot read `data:image/png;base64,… (25 characters)`: its data is not base64", "...",
        kind="not_an_image"),
    Row("ask x -i data:image/png;base64,aGVsbG8=", ImageError,
        "cannot read `data:image/png;base64,… (30 characters)`: it is text", SUPPORTED,
        kind="not_an_image"),
    Row("ask x -i good.png -i cut.png", ImageError,
        "cannot read `cut.png`: a PNG picture that is cut off or damaged (...)", AGAIN,
        kind="truncated"),
    Row("ask x -i cut.jpg", ImageError,
        "cannot read `cut.jpg`: a JPEG picture that is cut off or damaged (...)", AGAIN,
        kind="truncated"),
    Row("ask x -i huge.png", ImageError,
        "`huge.png` is too large: 20000x20000 pixels, the limit is 100000000",
        "raise --max-pixels, or shrink it first", kind="too_large"),
    Row("ask x -i good.png --max-pixels 1000", ImageError,
        "`good.png` is too large: 40x30 pixels, the limit is 1000",
        "raise --max-pixels, or shrink it first", kind="too_large"),
    Row("ask x -i drawing.svg", ImageError, "cannot read `drawing.svg`: it is an SVG drawing",
        "it is a drawing without pixels: render it to PNG first", kind="unsupported"),
    Row("ask x -i paper.pdf", ImageError, "cannot read `paper.pdf`: it is a PDF document", "...",
        kind="unsupported"),
    Row("ask x -i clip.mp4", ImageError, "cannot read `clip.mp4`: it is a video", "...",
        kind="unsupported"),
    Row("ask x -i photo.jxl", ImageError, "cannot read `photo.jxl`: it is a JPEG XL picture",
        "convert it to PNG or JPEG first", kind="unsupported"),
    Row("ask x -i photo.cr2", ImageError, "cannot read `photo.cr2`: it is a camera raw file",
        "develop it to JPEG or TIFF first", kind="unsupported"),
    Row("ask x -i ftp://example.com/a.png", ImageError,
        "cannot read `ftp://example.com/a.png`: unknown kind of address", "...",
        kind="unsupported"),
    Row("ask x -i file://server/a.png", ImageError,
        "cannot read `file://server/a.png`: it names another machine", "...", kind="unsupported"),
    Row("ask x -i https://me:secret@example.com/a.png --offline -m demo", ImageError,
        "cannot fetch `https://…@example.com/a.png`: --offline is set", "...", kind="fetch_failed"),
    Row("ask x -i http://127.0.0.1:9/a.png -m demo", ImageError,
        "cannot fetch `http://127.0.0.1:9/a.png`: cannot connect to `127.0.0.1`",
        "check the address and the network", kind="fetch_failed"),
    Row("ask x -i - -m demo", ImageError, "cannot read `stdin`: nothing was piped in", PIPE,
        kind="missing", stdin=b""),
    Row("ask x -i - -m demo", ImageError, "cannot read `stdin`: it is text", SUPPORTED,
        kind="not_an_image", stdin=b"What?\n"),
    Row("ask x -i - -m demo", ImageError,
        "cannot read `stdin`: a PNG picture that is cut off or damaged (...)", AGAIN,
        kind="truncated", stdin=PICTURE[:200]),
    Row("ask x -i - -m demo --max-bytes 9", ImageError, "`stdin` is larger than 9 bytes",
        "raise --max-bytes if you trust it", kind="too_large", stdin=PICTURE),
    Row("ask x -i -", UsageError, "`-i -` needs a picture on stdin",
        "`idefics ask PROMPT -i - <PICTURE`"),
    Row("ask x -i - -i -", UsageError, "`-i -` is given twice, but stdin holds one picture",
        stdin=PICTURE),
    Row("caption nosuch.png", ImageError, "no such file: `nosuch.png`", "check the path",
        kind="missing"),
    Row("caption god.png nosuch.png", ImageError, "no such file: `god.png` (and 1 more)",
        "did you mean `good.png`?", kind="missing"),
    Row("caption ''", ImageError, "the name of a picture is empty", kind="missing"),
    Row("caption 'nosuch/*.png'", ImageError, "no picture matches `nosuch/*.png`",
        "`**` matches any depth; `-r FOLDER` takes all of it", kind="missing"),
    Row("caption vacant", ImageError, "no pictures in folder `vacant`", DEEPER, kind="missing"),
    Row("caption sub vacant nosuch.png", ImageError, "no pictures in folder `sub` (and 2 more)",
        DEEPER, kind="missing"),
    Row("caption -", UsageError, "`-` needs a picture on stdin", "`idefics caption - <PICTURE`"),
    Row("caption good.png -m demo -o old.tsv", UsageError, "`old.tsv` exists already",
        "`--overwrite` replaces it"),
    Row("caption good.png -m demo -o vacant", UsageError, "cannot write `vacant`: it is a folder",
        "name a file in it, or take `-f txt` for one file per picture"),
    Row("caption good.png -m demo -o nosuch/o.tsv", UsageError,
        "cannot write `nosuch/o.tsv`: no folder `nosuch`"),
    Row("caption good.png -m demo -o ''", UsageError, "the name of the output file is empty",
        "`-` is stdout"),
    Row("demo ''", UsageError, "the name of the folder is empty", "`.` is the current folder"),
    Row("demo good.png", UsageError, "`good.png` is not a folder", "give the name of a folder"),
    Row("demo good.png/new", IdeficsError,
        "cannot write samples to `good.png/new`: Not a directory",
        "choose a folder that you may write to"),
    Row("demo new --count 100001", UsageError, "cannot write 100001 samples",
        "ask for 1 to 100,000"),
    Row("ask x -m smolvlm", ModelError, "unknown model `smolvlm`",
        "did you mean `smolvlm-500m` or `smolvlm-256m` or `smolvlm-2.2b`?"),
    Row("ask x -m nosuch", ModelError, "unknown model `nosuch`", NAMES),
    Row("ask x -m ''", ModelError, "the name of the model is empty", NAMES),
    Row("ask x -m ./nosuch", ModelError, "there is no folder `./nosuch`",
        "give a folder, a Hub id `owner/name`, or a name from `idefics models`"),
    Row("ask x -m nosuch/model --offline", ModelError,
        "`nosuch/model` is not in the cache (...), and the network is switched off", "..."),
    Row("ask x -m smolvlm-256m --offline", ModelError,
        "`HuggingFaceTB/SmolVLM-256M-Instruct` is not in the cache (...), and the network is ...",
        "..."),
    Row("ask x -m good.png", ModelError, "`good.png` is a file", "give the folder of the model"),
    Row("ask x -m model.gguf", ModelError,
        "`model.gguf` is a GGUF model, which this tool does not run", GGUF),
    Row("ask x -m models/gguf", ModelError,
        "`models/gguf` is a GGUF model, which this tool does not run", GGUF),
    Row("ask x -m models/no_config", ModelError, "`models/no_config` has no config.json", "..."),
    Row("ask x -m models/vacant", ModelError, "`models/vacant` has no config.json", "..."),
    Row("ask x -m models/adapter", ModelError, "`models/adapter` has no config.json",
        "it holds a PEFT adapter: merge it into its base model first"),
    Row("ask x -m models/broken_config", ModelError,
        "config.json of `models/broken_config` is not valid JSON",
        "copy or download the file again"),
    Row("ask x -m models/list_config", ModelError,
        "config.json of `models/list_config` holds no JSON object"),
    Row("ask x -m models/no_type", ModelError,
        "config.json of `models/no_type` has no model_type", "..."),
    Row("ask x -m models/llava", ModelError,
        "`models/llava` is a model of type `llava`, which this tool does not run", "..."),
    Row("ask x -m models/no_weights", ModelError, "`models/no_weights` has no weights", "..."),
    Row("ask x -m models/pickled", ModelError,
        "`models/pickled` has no weights in the safetensors format", "..."),
    Row("ask x -m models/cut_weights", ModelError,
        "model.safetensors of `models/cut_weights` is cut short: 404 of 413 bytes", AGAIN),
    Row("ask x -m models/no_safetensors", ModelError,
        "model.safetensors of `models/no_safetensors` is not a safetensors file", AGAIN),
    Row("ask x -m models/lfs", ModelError,
        "model.safetensors of `models/lfs` is a Git LFS pointer, not the weights",
        "run `git lfs pull` in the folder"),
    Row("ask x -m models/no_tokenizer", ModelError, "`models/no_tokenizer` has no tokenizer.json",
        "..."),
    Row("ask x -m models/no_images", ModelError,
        "`models/no_images` has no preprocessor_config.json", "..."),
    Row("ask x -m models/gptq", ModelError,
        "the weights of `models/gptq` are quantized with gptq, which this tool does not read",
        "take the plain checkpoint with `--quantization 4bit`"),
    Row("caption good.png -m nosuch", ModelError, "unknown model `nosuch`", NAMES),
    Row("caption good.png -m models/lfs", ModelError,
        "model.safetensors of `models/lfs` is a Git LFS pointer, not the weights", "..."),
    Row("models pull nosuch", ModelError, "unknown model `nosuch`", NAMES),
    Row("models pull ''", ModelError, "the name of the model is empty", NAMES),
    Row("models pull", UsageError, "missing argument 'NAME'", USAGE.format("models pull")),
    Row("models path nosuch", ModelError, "unknown model `nosuch`", NAMES),
    Row("models path ''", ModelError, "the name of the model is empty", NAMES),
    Row("models path", UsageError, "missing argument 'NAME'", USAGE.format("models path")),
    Row("models pull smolvlm-256m --offline", ModelError,
        "`HuggingFaceTB/SmolVLM-256M-Instruct` is not in the cache (...), and the network is ...",
        "..."),
    Row("models pull models/base", ModelError,
        "`models/base` is a local folder and needs no download"),
    Row("models pull models/vacant", ModelError, "`models/vacant` has no config.json", "..."),
    Row("models path smolvlm-256m", ModelError, "`smolvlm-256m` is not in the cache (...)",
        "`idefics models pull smolvlm-256m` downloads it"),
    Row("models path model.gguf", ModelError,
        "`model.gguf` is a GGUF model, which this tool does not run", GGUF),
    Row("ask x -m demo --device cuda", PlanError,
        "`--device cuda` needs another torch: 2.13.0 is built for the CPU", "..."),
    Row("ask x -m demo --device cuda:3", PlanError, "there is no `cuda:3`",
        "this machine has cuda:0 (H100)", machine=ONE_H100),
    Row("ask x -m demo --device mps", PlanError, "there is no Apple GPU that torch can use",
        "`--device auto` takes what there is"),
    Row("ask x -m demo --quantization 4bit", PlanError, "`4bit` needs the package bitsandbytes",
        "pip install bitsandbytes; or `--device cpu`, which needs no package", machine=NO_4BIT),
    Row("ask x -m demo --attention flash_attention_2", PlanError,
        "`flash_attention_2` needs a CUDA GPU", "`--attention sdpa` needs nothing and is exact"),
    Row("ask x -m demo --attention flash_attention_2", PlanError,
        "`flash_attention_2` needs an NVIDIA GPU of the Ampere ..., and cuda is a RTX 2080 Ti",
        "`--attention sdpa` needs nothing and is exact", machine=ONE_2080),
    Row("ask x -m idefics-80b-instruct --dtype float32", PlanError,
        "`idefics-80b-instruct` with `--dtype float32` needs ... free memory are usable", "..."),
    Row("caption good.png -m idefics2-8b --dtype float32", PlanError,
        "`idefics2-8b` with `--dtype float32` needs ... free memory are usable", "..."),
    Row("caption good.png -m demo --device mps --dry-run", PlanError,
        "there is no Apple GPU that torch can use", "`--device auto` takes what there is"),
    Row("ask x --temperature hot", UsageError, "--temperature must be a number, not `hot`"),
    Row("ask x --temperature -0.5", UsageError, "--temperature must be 0 or more, not `-0.5`"),
    Row("ask x --temperature inf", UsageError, "--temperature must be a finite number, not `inf`"),
    Row("ask x --top-p 0", UsageError, "--top-p must be more than 0 and 1 or less, not `0.0`"),
    Row("ask x --top-k 1.5", UsageError, "--top-k must be a whole number, not `1.5`"),
    Row("ask x --repetition-penalty 0", UsageError,
        "--repetition-penalty must be more than 0, not `0.0`"),
    Row("ask x --max-new-tokens 0", UsageError, "--max-new-tokens must be 1 or more, not `0`"),
    Row("ask x --seed -1", UsageError,
        "--seed must be 0 or more and 9223372036854775807 or less, not `-1`"),
    Row("ask x --threads 100000", UsageError,
        "--threads must be 1 or more and 1024 or less, not `100000`"),
    Row("ask x --dtype fp16", UsageError,
        "--dtype must be auto, bfloat16, float16 or float32, not `fp16`"),
    Row("ask x --quiet --verbose", UsageError, "--quiet and --verbose exclude each other"),
    Row("chat --timeout-seconds 0", UsageError, "--timeout-seconds must be more than 0, not `0.0`"),
    Row("caption good.png --batch-size 0", UsageError, "--batch-size must be 1 or more, not `0`"),
    Row("caption good.png --format xml", UsageError, "--format must be ..., not `xml`"),
    Row("doctor --device gpu", UsageError,
        "--device must be auto, cpu, mps, cuda or cuda:N, not `gpu`"),
    Row("demo new --count 0", UsageError, "--count must be 1 or more, not `0`"),
    Row("ask x -i good.png cut.png", UsageError, "got unexpected extra argument(s) (cut.png)",
        "put the prompt into quotes, and `-i` before each picture"),
    Row("chat x", UsageError, "got unexpected extra argument(s) (x)",
        "pipe the question in; `-i` before each picture"),
    Row("bench decoed -m demo", UsageError, "there is no scenario `decoed`",
        "did you mean `decode`?"),
    Row("bench caption nosuch -m demo", UsageError, "`nosuch` is not a folder",
        "name a folder of pictures"),
    Row("bench --shape idefics2", UsageError, "no shape `idefics2` is known",
        "did you mean `idefics2-8b`?"),
    Row("bench --shape idefics2-8b -m demo", UsageError,
        "--shape and --model exclude each other", "leave one of them out"),
    Row("bench --layers 2", UsageError, "--layers needs `--shape`", "as `--shape idefics2-8b`"),
    Row("bench --batch-sizes 1,two", UsageError,
        "--batch-sizes must be a whole number, not `two`"),
    Row("bench --contexts 0", UsageError, "--contexts must be from 1 to 1,000,000, not 0"),
    Row("bench --new-tokens 1", UsageError, "--new-tokens must be from 2 to 1,000,000, not 1"),
    Row("bench --seconds nan", UsageError,
        "--seconds must be more than 0 and below 1,000,000, not nan"),
    Row("bench --plot nosuch/out.png", UsageError,
        "cannot write `nosuch/out.png`: no folder `nosuch`"),
    Row("doctor x", UsageError, "got unexpected extra argument(s) (x)", USAGE.format("doctor")),
    Row("ask x -i", UsageError, "option '-i' requires an argument", USAGE.format("ask")),
    Row("models path nosuch --revision", UsageError, "option '--revision' requires an argument",
        USAGE.format("models")),
    Row("caption", UsageError, "no pictures are given",
        "`idefics caption photos/ -r`; `--filelist FILE` takes a list of them"),
    Row("caption --null good.png", UsageError, "`--null` is for a list",
        "`find photos -name '*.jpg' -print0 | idefics caption --filelist - --null`"),
    Row("caption --filelist nosuch", UsageError, "no such list: `nosuch`",
        "`--filelist -` reads it from stdin"),
    Row("caption --filelist vacant", UsageError, "`vacant` is a folder, not a list",
        "`idefics caption vacant`"),
    Row("caption --filelist good.png", UsageError, "the list `good.png` holds NUL bytes", "..."),
    Row("caption --filelist -", UsageError, "`--filelist -` needs text on stdin",
        "pipe it in, or name a file"),
    Row("caption - --filelist -", UsageError, "`-` and `--filelist -` cannot both read stdin",
        stdin=b"good.png"),
    Row("caption --filelist -", ImageError, "no pictures in the list on stdin", kind="missing",
        stdin=b"\n"),
    Row("caption --filelist -", ImageError, "no such file: `nosuch.png` (and 1 more)", "...",
        kind="missing", stdin=b"nosuch.png\nnosuch2.png\n"),
    Row("caption --filelist - --null", UsageError, "the list on stdin holds no NUL bytes",
        "leave `--null` out for one path a line", stdin=b"good.png\ncut.png\n"),
    Row("caption --filelist rows.csv", UsageError,
        "`rows.csv`, line 3: 1 column, and the first line has 2",
        "a value with a separator, quote or line break needs quotes around it"),
    Row("caption --filelist rows.jsonl", UsageError,
        "`rows.jsonl`, line 2: no valid JSON (...)"),
    Row("caption good.png --ask subject", UsageError,
        "`--ask` needs a name and a question, not `subject`", "`--ask subject=..."),
    Row("caption good.png --ask 'my mood=What?'", UsageError,
        "`my mood` cannot be the name of a column: a name has letters, digits and `_`",
        "did you mean `my_mood`?"),
    Row("caption good.png --ask a=b --ask A=c", UsageError, "two questions are named `A`"),
    Row("caption good.png --ask status=b", UsageError,
        "`status` cannot be the name of a question: each row has a column of that name"),
    Row("caption good.png --ask a=b -p x", UsageError, "--ask and --prompt exclude each other",
        '`--ask caption="…"` asks for a caption too'),
    Row("caption good.png --prompt-file key.toml -p x", UsageError,
        "--prompt and --prompt-file exclude each other"),
    Row("caption good.png --prompt-file nosuch", PromptError,
        "cannot read the prompt `nosuch`: No such file or directory"),
    Row("caption good.png --prompt-file empty.jpg", PromptError, "the prompt is empty", "..."),
    Row("caption good.png --prompt-file latin.toml", PromptError,
        "the prompt `latin.toml` is not UTF-8 text (byte 12)"),
    Row("caption good.png -m nosuch -p 'A {stemm}'", UsageError,
        "the prompt has an unknown field `{stemm}`",
        "did you mean `{stem}`? `{{stemm}}` is the text itself"),
    Row("caption --filelist ok.csv -m nosuch -p 'A {sbject}'", UsageError,
        "the prompt has an unknown field `{sbject}`",
        "did you mean `{subject}`? `{{sbject}}` is the text itself"),
    Row("demo", UsageError, "missing argument 'DIR'", USAGE.format("demo")),
    Row("ask x --imgae good.png", UsageError, "no such option: --imgae", "did you mean --image?"),
    Row("doctor --temperature 1", UsageError, "no such option: --temperature", "..."),
    Row("models nosuch", UsageError, "no such command 'nosuch'", USAGE.format("models")),
    Row("config nosuch", UsageError, "no such command 'nosuch'", USAGE.format("config")),
    Row("nosuch", UsageError, "no such command 'nosuch'", "`idefics --help` shows the usage"),
    Row("-m demo", UsageError, "no such option: -m",
        "options follow the command, as in `idefics ask -m`"),
    Row("ask x", ConfigError, "variable IDEFICS_TOP_P must be more than 0 and 1 or less, not `2.0`",
        environ="IDEFICS_TOP_P=2"),
    Row("chat", ConfigError, "variable IDEFICS_OFFLINE must be true or false, not `maybe`",
        environ="IDEFICS_OFFLINE=maybe"),
    Row("caption good.png", ConfigError,
        "variable IDEFICS_BATCH_SIZE must be a whole number, not `many`",
        environ="IDEFICS_BATCH_SIZE=many"),
    Row("doctor", ConfigError,
        "variable IDEFICS_DEVICE must be auto, cpu, mps, cuda or cuda:N, not `gpu`",
        environ="IDEFICS_DEVICE=gpu"),
    Row("demo new", ConfigError, "variable IDEFICS_COUNT must be 1 or more, not `-3`",
        environ="IDEFICS_COUNT=-3"),
    Row("ask x", ConfigError, "no configuration file `nosuch.toml`",
        "create the file, or unset the variable IDEFICS_CONFIG, which names it",
        environ="IDEFICS_CONFIG=nosuch.toml"),
    Row("config", ConfigError, "cannot read `vacant`: Is a directory",
        environ="IDEFICS_CONFIG=vacant"),
    Row("config --json", ConfigError, "`broken.toml` is not valid TOML: ...",
        environ="IDEFICS_CONFIG=broken.toml"),
    Row("models", ConfigError, "unknown key `modle` in `key.toml`", "did you mean `model`?",
        environ="IDEFICS_CONFIG=key.toml"),
    Row("models pull demo", ConfigError,
        "`top_p` in `value.toml` must be more than 0 and 1 or less, not `2.0`",
        environ="IDEFICS_CONFIG=value.toml"),
    Row("ask x", ConfigError, "`model` in `nested.toml` must be text, not `{'name': 'demo'}`",
        environ="IDEFICS_CONFIG=nested.toml"),
    Row("config", ConfigError, "`latin.toml` is not UTF-8 text (byte 12)",
        environ="IDEFICS_CONFIG=latin.toml"),
)
# fmt: on


@pytest.mark.parametrize("row", ROWS, ids=str)
def test_bad_input_is_one_clear_error_of_its_class_and_nothing_on_stdout(
    row: Row, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[IdeficsError] = []
    tell = Console.error

    def remember(console: Console, error: IdeficsError) -> None:
        told.append(error)
        tell(console, error)

    monkeypatch.setattr(Console, "error", remember)
    monkeypatch.chdir(folder)
    stdin = None if row.stdin is None else io.BytesIO(row.stdin)
    # The image loader takes that of the process.
    monkeypatch.setattr(sys, "stdin", None if stdin is None else io.TextIOWrapper(stdin))
    environ = dict(pair.split("=", 1) for pair in row.environ.split())
    services = Services(environ=environ, stdin=stdin, probe=lambda: row.machine)

    before = sorted(os.listdir())
    code, out, err = run(*_words(row.line), services=services)

    (error,) = told
    lines = [line for line in (f"error: {row.message}", row.hint and f"hint: {row.hint}") if line]
    assert re.fullmatch(_pattern("\n".join(lines) + "\n"), str(err)), err
    assert (type(error), getattr(error, "kind", None)) == (row.error, row.kind)
    assert (code, out) == (row.error.exit_code, "")
    assert sorted(os.listdir()) == before


def test_the_table_is_of_every_command_and_every_kind_of_error() -> None:
    assert {row.line.split()[0] for row in ROWS} >= {
        *("ask", "chat", "caption", "models", "doctor", "bench", "demo", "config")
    }
    assert {row.kind for row in ROWS} == {None, *get_args(ImageErrorKind)}
    assert len({str(row) for row in ROWS}) > 150


@pytest.mark.parametrize(
    ("line", "stdin", "code", "first"),
    [
        ("ask x -i nosuch.png", b"", 1, "error: no such file: `nosuch.png`"),
        ("ask x -i - -m demo", b"GIF89a", 1, "error: cannot read `stdin`: a GIF picture that ..."),
        ("config", None, 2, "error: variable IDEFICS_SEED must be a whole number, not `one`"),
    ],
)
def test_a_process_tells_the_same_and_no_traceback(
    line: str,
    stdin: bytes | None,
    code: int,
    first: str,
    folder: Path,
    warm_python: tuple[str, ...],
) -> None:
    python = warm_python if "-m demo" in line else (sys.executable,)
    ran = subprocess.run(
        [*python, "-m", "idefics_cli", *shlex.split(line)],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        cwd=folder,
        env={**os.environ, **({"IDEFICS_SEED": "one"} if line == "config" else {})},
        check=False,
    )
    err = ran.stderr.decode()
    assert re.fullmatch(_pattern(first), err.splitlines()[0]), err
    assert "Traceback" not in err
    assert (ran.returncode, ran.stdout) == (code, b"")


def _words(line: str) -> list[str]:
    return [word.replace("<ESC>", "\x1b") for word in shlex.split(line)]


def _pattern(text: str) -> str:
    return ".+".join(re.escape(part) for part in text.split("..."))
