"""Compares decoding on a CPU with llama.cpp: the same shape and bits, random weights, in turns.

    pip install llama-cpp-python gguf      # compiles llama.cpp for this processor
    python .ci/bench_llama_cpp.py FOLDER --shape smolvlm-500m --threads 2

FOLDER keeps the weights of both sides: 4 bit is our int4 and Q4_0, 8 bit our int8 and Q8_0. Each
side runs in a process of its own, and the sides take turns. A figure is the median time of a step:
one token of each row through the text model and its head. `--cpu-time` counts the time of the
processor and not that of the clock, for one thread on a busy machine. Prompts are not measured.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

BITS = ("bf16", "8bit", "4bit")
FILES = {"bf16": "bf16", "8bit": "q8_0", "4bit": "q4_0"}


def main() -> None:
    """Read the arguments; run one side, or both in turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", default="smolvlm-500m")
    parser.add_argument("--layers", type=int, default=None)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--contexts", default="100,1100")
    parser.add_argument("--batch-sizes", default="1,4,16")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--cpu-time", action="store_true")
    parser.add_argument("--side", choices=("ours", "llama.cpp"), help=argparse.SUPPRESS)
    parser.add_argument("--bits", default=",".join(BITS))
    options = parser.parse_args()
    if options.side is None:
        compare(options)
        return
    measure = ours if options.side == "ours" else theirs
    for key, seconds in measure(options):
        print(json.dumps([key, seconds]), flush=True)


def compare(options: argparse.Namespace) -> None:
    """Run both sides in turns, and print a table."""
    make_weights(options)
    print(f"tokens/s, {options.shape}, {options.threads} threads, random weights")
    print(f"{'bits':6} {'batch':>5} {'context':>7} {'ours':>8} {'llama.cpp':>9} {'ratio':>6}")
    for bits in options.bits.split(","):
        found: dict[str, dict[str, list[float]]] = {"ours": {}, "llama.cpp": {}}
        for _ in range(options.rounds):
            for side, figures in found.items():
                for key, seconds in run_side(side, bits):
                    figures.setdefault(key, []).append(seconds)
        for key, mine in found["ours"].items():
            rows, context = json.loads(key)
            speeds = [rows / statistics.median(t) for t in (mine, found["llama.cpp"][key])]
            ratio = speeds[0] / speeds[1]
            print(
                f"{bits:6} {rows:5} {context:7} {speeds[0]:8.1f} {speeds[1]:9.1f} {ratio:5.2f}x",
                flush=True,
            )


def run_side(side: str, bits: str) -> list[tuple[str, float]]:
    """Run one side in a process of its own; return the seconds of a step by rows and context."""
    words = [sys.executable, *sys.argv, "--side", side, "--bits", bits]
    done = subprocess.run(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    return [tuple(json.loads(line)) for line in done.stdout.splitlines()]


def cases(options: argparse.Namespace) -> Iterator[tuple[int, int]]:
    """Yield the numbers of rows and the contexts."""
    for rows in map(int, options.batch_sizes.split(",")):
        for context in map(int, options.contexts.split(",")):
            yield rows, context


def median_step(options: argparse.Namespace, step: Callable[[int], object]) -> float:
    """Return the median seconds of *step*, which gets the number of the step."""
    clock = time.process_time if options.cpu_time else time.perf_counter
    times = []
    for number in range(options.steps):
        start = clock()
        step(number)
        times.append(clock() - start)
    return statistics.median(times)


def ours(options: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """Measure our decode step, with the choice of the best token."""
    import torch
    from torch import Tensor

    from idefics_cli.core.types import LoadSpec
    from idefics_cli.engine.local.decode.slots import Slots
    from idefics_cli.hardware.machine import probe_processor
    from idefics_cli.models.families.kv_cache import growing_cache
    from idefics_cli.models.loading.loader import load
    from idefics_cli.models.planning.kernels import choose_kernels

    torch.set_num_threads(options.threads)
    folder = options.folder.absolute() / name_of(options)
    family = json.loads((folder / "config.json").read_text())["model_type"]
    changes: dict[str, Any] = {"8bit": {"quantization": "8bit"}}.get(options.bits, {})
    if options.bits == "4bit":
        changes = {"quantization": "4bit", "format_4bit": "int4"}
    spec = LoadSpec(repo=str(folder), family=family, dtype="bfloat16", **changes)
    loaded = load(replace(spec, kernels=choose_kernels(spec, probe_processor())))
    step, text = loaded.text_step, loaded.model.config.get_text_config()
    assert step is not None
    shape = (text.num_key_value_heads, text.hidden_size // text.num_attention_heads)
    with torch.inference_mode():
        for rows, context in cases(options):
            slots = Slots(rows)
            states = torch.zeros(rows, shape[0], context, shape[1], dtype=torch.bfloat16)
            cache = growing_cache()
            for layer in range(text.num_hidden_layers):
                cache.update(states, states, layer)
            slots.admit_rows(cache, [context] * rows, {})
            slots.reserve_tokens(context + options.steps + 1)
            embedded = loaded.family.embed(loaded.model, torch.full((rows, 1), 7))[:, 0]

            def run(
                number: int,
                states: Tensor = embedded,
                context: int = context,
                layers: Any = slots.cache.layers,
            ) -> None:
                step(states, [context + number] * len(states), layers).argmax(-1)

            yield json.dumps([rows, context]), median_step(options, run)


def theirs(options: argparse.Namespace) -> Iterator[tuple[str, float]]:
    """Measure `llama_decode`, with one token of each sequence."""
    import llama_cpp as library

    def silent(level: int, text: bytes, data: object) -> None:
        """Drop a line of the log."""

    callback = library.llama_log_callback(silent)
    library.llama_log_set(callback, ctypes.c_void_p(0))
    library.llama_backend_init()
    path = options.folder / f"{name_of(options)}-{FILES[options.bits]}.gguf"
    parameters = library.llama_model_default_params()
    parameters.n_gpu_layers = 0
    model = library.llama_model_load_from_file(str(path).encode(), parameters)
    for rows, context in cases(options):
        settings = library.llama_context_default_params()
        settings.n_ctx, settings.n_seq_max = (context + options.steps + 64) * rows, rows
        settings.n_batch, settings.n_ubatch = 2048, 512
        settings.n_threads = settings.n_threads_batch = options.threads
        state = library.llama_init_from_model(model, settings)
        batch = library.llama_batch_init(2048, 0, rows)

        def put(
            tokens: list[tuple[int, int]], *, gives: bool, state: Any = state, batch: Any = batch
        ) -> None:
            batch.n_tokens = len(tokens)
            for index, (position, sequence) in enumerate(tokens):
                batch.token[index], batch.pos[index] = 7, position
                batch.n_seq_id[index], batch.seq_id[index][0] = 1, sequence
                batch.logits[index] = gives
            if library.llama_decode(state, batch):
                raise RuntimeError("llama_decode failed")
            if gives:
                library.llama_get_logits_ith(state, 0)

        for row in range(rows):
            for start in range(0, context, 1000):
                put([(at, row) for at in range(start, min(start + 1000, context))], gives=False)

        def run(number: int, rows: int = rows, context: int = context, put: Any = put) -> None:
            put([(context + number, row) for row in range(rows)], gives=True)

        yield json.dumps([rows, context]), median_step(options, run)
        library.llama_free(state)


def name_of(options: argparse.Namespace) -> str:
    """Return the name of the weights in the folder."""
    return options.shape if options.layers is None else f"{options.shape}-{options.layers}"


def make_weights(options: argparse.Namespace) -> None:
    """Write the weights of both sides, unless they are there."""
    from idefics_cli.bench.random_model import make
    from idefics_cli.bench.shapes import SHAPES

    options.folder.mkdir(parents=True, exist_ok=True)
    folder = options.folder / name_of(options)
    make(folder, SHAPES[options.shape], dtype="bfloat16", layers=options.layers)
    source = options.folder / f"{name_of(options)}-f16.gguf"
    if not source.exists():
        write_gguf(source, folder)
    import llama_cpp as library

    kinds = {
        "bf16": library.LLAMA_FTYPE_MOSTLY_BF16,
        "q8_0": library.LLAMA_FTYPE_MOSTLY_Q8_0,
        "q4_0": library.LLAMA_FTYPE_MOSTLY_Q4_0,
    }
    for name, kind in kinds.items():
        target = options.folder / f"{name_of(options)}-{name}.gguf"
        if not target.exists():
            parameters = library.llama_model_quantize_default_params()
            parameters.ftype = kind
            library.llama_model_quantize(str(source).encode(), str(target).encode(), parameters)


def write_gguf(path: Path, folder: Path) -> None:
    """Write random weights of the shape of the checkpoint *folder* as llama.cpp reads them."""
    import gguf
    import numpy as np

    text = json.loads((folder / "config.json").read_text())["text_config"]
    hidden, wide, rows = text["hidden_size"], text["intermediate_size"], text["vocab_size"]
    heads, shared = text["num_attention_heads"], text["num_key_value_heads"]
    width = text.get("head_dim") or hidden // heads
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(8192)
    writer.add_embedding_length(hidden)
    writer.add_block_count(text["num_hidden_layers"])
    writer.add_feed_forward_length(wide)
    writer.add_head_count(heads)
    writer.add_head_count_kv(shared)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_layer_norm_rms_eps(text["rms_norm_eps"])
    writer.add_file_type(1)
    add_vocabulary(writer, folder, rows)
    pool = np.random.default_rng(0).standard_normal(16_777_213, dtype=np.float32) * 0.02

    def add(name: str, *shape: int) -> None:
        writer.add_tensor(f"{name}.weight", np.resize(pool, shape).astype(np.float16))

    add("token_embd", rows, hidden)
    for layer in range(text["num_hidden_layers"]):
        start = f"blk.{layer}."
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"{start}{norm}.weight", np.ones(hidden, np.float32))
        add(f"{start}attn_q", heads * width, hidden)
        add(f"{start}attn_k", shared * width, hidden)
        add(f"{start}attn_v", shared * width, hidden)
        add(f"{start}attn_output", hidden, heads * width)
        add(f"{start}ffn_gate", wide, hidden)
        add(f"{start}ffn_up", wide, hidden)
        add(f"{start}ffn_down", hidden, wide)
    writer.add_tensor("output_norm.weight", np.ones(hidden, np.float32))
    add("output", rows, hidden)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_vocabulary(writer: Any, folder: Path, rows: int) -> None:
    """Add the vocabulary of the checkpoint *folder*, which spells texts in single bytes."""
    content = json.loads((folder / "tokenizer.json").read_text())
    words = [f"<unused{number}>" for number in range(rows)]
    for word, number in content["model"]["vocab"].items():
        words[number] = word
    # llama.cpp puts this token of the real vocabulary before the whole picture.
    words[rows - 2] = "\u010a\u010a"
    special = {token["id"] for token in content["added_tokens"]}
    writer.add_vocab_size(rows)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(words)
    writer.add_token_types([3 if number in special else 1 for number in range(rows)])
    # llama.cpp wants merges; no text holds this one.
    writer.add_token_merges(["\u0100\u0100 \u0100"])
    writer.add_eos_token_id(
        json.loads((folder / "generation_config.json").read_text())["eos_token_id"][0]
    )
    writer.add_add_bos_token(False)


if __name__ == "__main__":
    main()
