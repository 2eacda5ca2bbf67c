"""Compares captions and answers about pictures with llama.cpp: whole commands, in turns.

    python .ci/bench_llama_cpp_pictures.py FOLDER --build BUILD

BUILD is the folder of llama.cpp with `bin/llama-server` and `bin/llama-mtmd-cli`; the source
package of llama-cpp-python has its sources in `vendor/llama.cpp`. FOLDER keeps random weights in
the shape of SmolVLM-500M for both sides: 4 bit is our int4 and Q4_0, 8 bit our int8 and Q8_0. The
picture projectors of llama.cpp are in `--projector` (bf16, f16 or q8_0). A figure is the median
of the rounds: the seconds of a whole command, start included, and the peak memory of its process.

Random weights do not end a caption, and llama.cpp gets `ignore_eos`, so each caption has as many
tokens on both sides. The temperature is 1, because without it they repeat one token, and our run
asks again for a caption that goes in circles. Prompts have the same tokens, too. llama.cpp cuts
each picture into tiles at least once, so for `--no-splitting` it gets a projector of Gemma 3 around
the same encoder: one tile, as many image tokens, less arithmetic after the encoder.
"""

from __future__ import annotations

import argparse
import base64
import json
import os
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bench_llama_cpp as decoding

QUESTION = "Describe the picture."
MARKER = "<__media__>"
PORT = 8791
_OURS = {
    "bf16": (),
    "8bit": ("--quantization", "8bit"),
    "4bit": ("--quantization", "4bit"),
}


@dataclass(frozen=True)
class Cost:
    """What a command took."""

    seconds: float
    peak_bytes: int


def main() -> None:
    """Read the arguments, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--rows", default="captions,first,answer")
    parser.add_argument("--bits", default="bf16,8bit,4bit")
    parser.add_argument("--projector", default="bf16", choices=("bf16", "f16", "q8_0"))
    parser.add_argument("--slots", default="1,2,4,8")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--words", type=int, default=40)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--splitting", action="store_true")
    parser.add_argument("--side", choices=("ours", "llama.cpp"), default=None)
    options = parser.parse_args()
    options.shape, options.layers = "smolvlm-500m", None
    make_files(options)
    print(f"{'row':30} {'bits':5} {'ours':>14} {'llama.cpp':>14} {'ratio':>6}")
    for bits in options.bits.split(","):
        for row in options.rows.split(","):
            compare(options, row, bits)


def compare(options: argparse.Namespace, row: str, bits: str) -> None:
    """Run both sides of *row* in turns, and print a line for each way of llama.cpp."""
    sides: dict[str, Callable[[], Cost]] = {}
    if row == "captions":
        pictures = sorted((options.folder / "pictures").glob("*.png"))[: options.count]
        sides["ours"] = lambda: our_captions(options, bits, pictures)
        for slots in map(int, options.slots.split(",")):
            sides[f"{slots} slots"] = lambda slots=slots: their_captions(
                options, bits, pictures, slots
            )
    else:
        words = 1 if row.endswith("first") else options.words
        ask = warm_answer if row.startswith("warm") else our_answer
        sides["ours"] = lambda: ask(options, bits, words)
        sides["llama.cpp"] = lambda: their_answer(options, bits, words)
    if options.side == "ours":
        sides = {"ours": sides["ours"]}
    costs: dict[str, list[Cost]] = {name: [] for name in sides}
    for _ in range(options.rounds):
        for name, run in sides.items():
            costs[name].append(run())
            print(row, bits, name, shown(costs[name][-1]), file=sys.stderr, flush=True)
    mine = median(costs.pop("ours"))
    for name, theirs in costs.items() or [("", [])]:
        line = f"{f'{row}, {name}':30} {bits:5} {shown(mine)}"
        if theirs:
            other = median(theirs)
            line += f" {shown(other)} {other.seconds / mine.seconds:5.2f}x"
        print(line, flush=True)


def median(costs: Sequence[Cost]) -> Cost:
    """Return the median seconds and the median peak."""
    return Cost(
        statistics.median(each.seconds for each in costs),
        int(statistics.median(each.peak_bytes for each in costs)),
    )


def shown(cost: Cost) -> str:
    """Return *cost* as text."""
    return f"{cost.seconds:6.2f} s {cost.peak_bytes / 1e9:3.1f} GB"


def run_command(words: Sequence[str | Path], **environment: str) -> Cost:
    """Run a command to its end."""
    started = time.perf_counter()
    peak = end(start(words, **environment))
    return Cost(time.perf_counter() - started, peak)


def start(words: Sequence[str | Path], **environment: str) -> subprocess.Popen[bytes]:
    """Start a command."""
    silent = subprocess.DEVNULL
    return subprocess.Popen(
        list(map(str, words)), env={**os.environ, **environment}, stdout=silent, stderr=silent
    )


def end(process: subprocess.Popen[bytes], *, expected: int = 0) -> int:
    """Wait for *process*, and return its peak memory in bytes."""
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode != expected:
        raise RuntimeError(f"{process.args} ended with {process.returncode}")
    return usage.ru_maxrss * 1024


def our_words(options: argparse.Namespace, command: str, bits: str, words: int) -> list[Any]:
    """Return the words of one of our commands."""
    folder = (options.folder / options.shape).absolute()
    found = [sys.executable, "-m", "idefics_cli", command, "-m", folder, *_OURS[bits]]
    found += ["--threads", str(options.threads)]
    if command != "serve":
        found += ["--max-new-tokens", str(words), "--temperature", "1"]
    return [*found, "--splitting" if options.splitting else "--no-splitting"]


def our_captions(options: argparse.Namespace, bits: str, pictures: Sequence[Path]) -> Cost:
    """Run `idefics caption`, again if the random weights end a caption early."""
    output = options.folder / "captions.jsonl"
    words = our_words(options, "caption", bits, options.words)
    words += ["--overwrite", "-o", output, "--prompt", QUESTION, *pictures]
    while True:
        # A run that was killed leaves a journal that the next one may refuse.
        for file in options.folder.glob("captions.jsonl*"):
            file.unlink()
        cost = run_command(words, HF_HUB_OFFLINE="1")
        records = [json.loads(line) for line in output.read_text().splitlines()]
        if any("notes" in record for record in records) or len(records) != len(pictures):
            raise RuntimeError("captions are missing, or were asked for twice")
        if all(record["tokens"] == options.words for record in records):
            return cost


def our_answer(options: argparse.Namespace, bits: str, words: int) -> Cost:
    """Run `idefics ask`."""
    command = our_words(options, "ask", bits, words)
    return run_command([*command, "-i", small_picture(options), QUESTION], HF_HUB_OFFLINE="1")


def warm_answer(options: argparse.Namespace, bits: str, words: int) -> Cost:
    """Run `idefics ask` beside an `idefics serve` that has answered about another picture."""
    address = f"http://127.0.0.1:{PORT}"
    command = our_words(options, "serve", bits, words)
    server = start([*command, "--port", str(PORT)], HF_HUB_OFFLINE="1")
    try:
        wait_for(f"{address}/health", server)
        ask = [sys.executable, "-m", "idefics_cli", "ask", "--server", address]
        ask += ["--max-new-tokens", str(words), "--temperature", "1", "-i"]
        run_command([*ask, options.folder / "pictures" / "01.png", QUESTION])
        return run_command([*ask, small_picture(options), QUESTION])
    finally:
        server.terminate()
        server.wait()


def their_captions(
    options: argparse.Namespace, bits: str, pictures: Sequence[Path], slots: int
) -> Cost:
    """Run `llama-server`, ask it about all pictures at once, and end it."""
    address = f"http://127.0.0.1:{PORT}"
    context = (1400 if options.splitting else 256) + options.words
    started = time.perf_counter()
    words = [options.build / "bin/llama-server", *their_files(options, bits)]
    words += ["--port", str(PORT), "-np", str(slots), "-c", str(slots * context)]
    server = start([*words, "--no-webui", "-cram", "0"], LLAMA_MEDIA_MARKER=MARKER)
    try:
        wait_for(f"{address}/health", server)
        with ThreadPoolExecutor(len(pictures)) as pool:
            list(pool.map(lambda path: complete(address, path, options.words), pictures))
        seconds = time.perf_counter() - started
    finally:
        server.terminate()
    return Cost(seconds, end(server))


def their_answer(options: argparse.Namespace, bits: str, words: int) -> Cost:
    """Run `llama-mtmd-cli`."""
    command = [options.build / "bin/llama-mtmd-cli", *their_files(options, bits)]
    command += ["-n", str(words), "--ignore-eos", "--temp", "1", "-c", "2048"]
    command += ["--chat-template", "smolvlm", "--image", small_picture(options), "-p", QUESTION]
    return run_command(command)


def their_files(options: argparse.Namespace, bits: str) -> list[Any]:
    """Return the options of llama.cpp that both programs share."""
    kind = "tiles" if options.splitting else "whole"
    return [
        *("-m", options.folder / f"{options.shape}-{decoding.FILES[bits]}.gguf"),
        *("--mmproj", options.folder / f"mmproj-{kind}-{options.projector}.gguf"),
        *("-t", str(options.threads), "-tb", str(options.threads), "--no-warmup"),
        *("--fit", "off"),
    ]


def wait_for(address: str, server: subprocess.Popen[bytes]) -> None:
    """Wait until the server is ready."""
    while server.poll() is None:
        try:
            with urllib.request.urlopen(address, timeout=10) as answer:
                if answer.status == 200:
                    return
        except OSError:
            time.sleep(0.01)
    raise RuntimeError(f"{server.args} ended")


def complete(address: str, picture: Path, words: int) -> None:
    """Ask llama-server for one caption."""
    text = f"<|im_start|>User:{MARKER}{QUESTION}<end_of_utterance>\nAssistant:"
    data = base64.b64encode(picture.read_bytes()).decode()
    body = {
        "prompt": {"prompt_string": text, "multimodal_data": [data]},
        "n_predict": words,
        "ignore_eos": True,
        "temperature": 1,
        "cache_prompt": False,
    }
    request = urllib.request.Request(
        f"{address}/completion", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        count = json.loads(answer.read())["tokens_predicted"]
    if count != words:
        raise RuntimeError(f"llama.cpp wrote {count} tokens, not {words}")


def small_picture(options: argparse.Namespace) -> Path:
    """Return the picture of the questions."""
    return Path(options.folder / "small.png")


def make_files(options: argparse.Namespace) -> None:
    """Write the weights of both sides and the pictures, unless they are there."""
    from idefics_cli.bench.pictures import MIXED, draw

    decoding.make_weights(options)
    (options.folder / "pictures").mkdir(exist_ok=True)
    for number in range(options.count):
        path = options.folder / "pictures" / f"{number:02}.png"
        if not path.exists():
            draw(path, MIXED[number % len(MIXED)], seed=number)
    draw(small_picture(options), (512, 512), seed=1000)
    for kind in ("tiles", "whole"):
        path = options.folder / f"mmproj-{kind}-{options.projector}.gguf"
        if not path.exists():
            write_projector(path, options.folder / options.shape, kind, options.projector)


def write_projector(path: Path, folder: Path, kind: str, dtype: str) -> None:
    """Write a picture encoder with random weights as llama.cpp's tools/mtmd/clip.cpp reads it."""
    import gguf
    import numpy as np

    config = json.loads((folder / "config.json").read_text())
    vision, text = config["vision_config"], config["text_config"]
    hidden, wide, scale = vision["hidden_size"], vision["intermediate_size"], config["scale_factor"]
    patch, size = vision["patch_size"], vision["image_size"]
    writer = gguf.GGUFWriter(path, "clip")
    writer.add_bool("clip.has_vision_encoder", True)
    writer.add_string("clip.projector_type", "idefics3" if kind == "tiles" else "gemma3")
    writer.add_bool("clip.use_gelu", True)
    numbers = {
        "image_size": size,
        "patch_size": patch,
        "embedding_length": hidden,
        "feed_forward_length": wide,
        "projection_dim": text["hidden_size"],
        "block_count": vision["num_hidden_layers"],
        "attention.head_count": vision["num_attention_heads"],
        "projector.scale_factor": scale,
        "preproc_image_size": 4 * size,
    }
    for name, number in numbers.items():
        writer.add_uint32(f"clip.vision.{name}", number)
    writer.add_float32("clip.vision.attention.layer_norm_epsilon", 1e-6)
    for name in ("image_mean", "image_std"):
        writer.add_array(f"clip.vision.{name}", [0.5, 0.5, 0.5])
    kinds = gguf.GGMLQuantizationType
    pool = np.random.default_rng(1).standard_normal(16_777_213, dtype=np.float32) * 0.02

    def add(name: str, *shape: int, exact: bool = False) -> None:
        values = np.resize(pool, shape)
        chosen = kinds.F32 if exact else kinds[dtype.upper()]
        writer.add_tensor(name, gguf.quants.quantize(values, chosen), raw_dtype=chosen)

    def layer(name: str, outputs: int, inputs: int) -> None:
        add(f"{name}.weight", outputs, inputs)
        writer.add_tensor(f"{name}.bias", np.zeros(outputs, np.float32))

    def norm(name: str) -> None:
        writer.add_tensor(f"{name}.weight", np.ones(hidden, np.float32))
        writer.add_tensor(f"{name}.bias", np.zeros(hidden, np.float32))

    add("v.patch_embd.weight", hidden, 3, patch, patch, exact=True)
    writer.add_tensor("v.patch_embd.bias", np.zeros(hidden, np.float32))
    add("v.position_embd.weight", (size // patch) ** 2, hidden, exact=True)
    for number in range(vision["num_hidden_layers"]):
        start = f"v.blk.{number}."
        for part in ("attn_q", "attn_k", "attn_v", "attn_out"):
            layer(start + part, hidden, hidden)
        layer(f"{start}ffn_up", wide, hidden)
        layer(f"{start}ffn_down", hidden, wide)
        norm(f"{start}ln1")
        norm(f"{start}ln2")
    norm("v.post_ln")
    if kind == "tiles":
        add("mm.model.fc.weight", text["hidden_size"], hidden * scale**2)
    else:
        add("mm.input_projection.weight", hidden, text["hidden_size"], exact=True)
        writer.add_tensor("mm.soft_emb_norm.weight", np.ones(hidden, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


if __name__ == "__main__":
    main()
