"""Which attention is faster for recorded decode steps, at the shapes of real models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import TYPE_CHECKING

from gpu_tools import Check, Skip, timed

from idefics_cli.models.hub.facts import registry_facts
from idefics_cli.models.kernels.table import KERNELS

if TYPE_CHECKING:
    from torch import Tensor

MODELS = ("idefics2-8b", "idefics3-8b", "smolvlm-256m")
KERNEL = "cuda_split_keys"
# Number of keys that one block of the variant "fused chunks" walks over.
_CHUNK = 256
# Calls in one recording, and replays of it.
_CALLS, _REPLAYS = 8, 10


@dataclass(frozen=True)
class Step:
    """Tensors of a decode step: (B, heads, 1, width), (B, KV heads, K, width) twice, and a mask."""

    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor

    @property
    def sharing(self) -> int:
        """Number of heads that share keys."""
        return self.query.shape[1] // self.key.shape[1]


def compare_decode_attention(check: Check) -> None:
    """Tell the time of a layer with each attention, and the shapes for which ours is slower."""
    import torch
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    kernel = KERNELS[KERNEL].attention_kernel()
    if not kernel.passes_self_test(check.device):
        raise Skip(f"{KERNEL} fails its self-test")
    ways: Mapping[str, Callable[[Step], Tensor]] = {
        "sdpa": partial(_by_transformers, sdpa_attention_forward),
        KERNEL: partial(_by_transformers, kernel),
        "fused chunks": _by_fused_chunks,
    }
    shapes = {facts.name: facts.shape for facts in registry_facts()}
    slower = []
    for model in MODELS[2:] if check.quick else MODELS:
        for rows in (1, 16):
            for keys in (256, 512) if check.quick else (1024, 8192):
                name = f"decode attention of {model}, {rows} rows, {keys} positions"
                check.need_time(name)
                shape = shapes[model]
                step = _step(check, (shape.heads, shape.kv_heads, shape.head_dim), rows, keys)
                with torch.inference_mode():
                    times = {way: _microseconds(check, call, step) for way, call in ways.items()}
                check.tell(name, f"microseconds: {times}")
                ours, theirs = times[KERNEL], times["sdpa"]
                if isinstance(ours, str) or isinstance(theirs, str):
                    check.tell(name, "an attention cannot run", ok=False)
                elif ours > theirs:
                    slower.append(f"{model} {rows}x{keys}")
    check.tell(f"{KERNEL} is slower than sdpa for", ", ".join(slower) or "no shape")


def _step(check: Check, heads: tuple[int, int, int], rows: int, keys: int) -> Step:
    """Return a step in which the rows have different lengths."""
    import torch

    dtype = torch.bfloat16 if check.device.startswith("cuda") else torch.float32
    many, few, width = heads

    def numbers(count: int, length: int) -> Tensor:
        return torch.randn(rows, count, length, width, device=check.device, dtype=dtype)

    lengths = torch.linspace(keys // 2, keys, rows, device=check.device)
    mask = torch.arange(keys, device=check.device) < lengths[:, None]
    return Step(numbers(many, 1), numbers(few, keys), numbers(few, keys), mask[:, None, None])


def _by_transformers(attention: Callable[..., tuple[Tensor, object]], step: Step) -> Tensor:
    module = SimpleNamespace(num_key_value_groups=step.sharing, is_causal=True, training=False)
    scaling = step.query.shape[3] ** -0.5
    return attention(module, step.query, step.key, step.value, step.mask, scaling=scaling)[0]


def _by_fused_chunks(step: Step) -> Tensor:
    """Attend to chunks of the keys by torch's fused kernel, and merge by log-sum-exp.

    This is not in the package. If it is the fastest by far, it may be worth it.
    """
    import torch

    rows, shared, keys, width = step.key.shape
    chunks = keys // _CHUNK
    query = step.query.view(rows, shared, 1, step.sharing, width)
    query = query.expand(-1, -1, chunks, -1, -1).reshape(rows, shared * chunks, -1, width)
    key, value = (
        states.view(rows, shared * chunks, _CHUNK, width) for states in (step.key, step.value)
    )
    lowest = torch.finfo(query.dtype).min
    bias = torch.zeros_like(step.mask, dtype=query.dtype).masked_fill(~step.mask, lowest)
    bias = bias.view(rows, 1, chunks, 1, _CHUNK).expand(-1, shared, -1, step.sharing, -1)
    bias = bias.reshape(rows, shared * chunks, step.sharing, _CHUNK)
    if query.is_cuda:
        out, sums, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
            query, key, value, bias, True
        )
    else:
        out, sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, attn_mask=bias
        )
    # The kernel pads the number of queries.
    sums = sums[..., : step.sharing].view(rows, shared, chunks, step.sharing)
    out = out.view(rows, shared, chunks, step.sharing, width)
    merged = (out * sums.softmax(2)[..., None]).sum(2).to(query.dtype)
    return merged.view(rows, 1, -1, width)


def _microseconds(check: Check, call: Callable[[Step], Tensor], step: Step) -> float | str:
    """Return the time of *call*; on CUDA as a part of a recording, as in decode steps."""
    import torch

    def run() -> None:
        for _ in range(_CALLS):
            call(step)

    try:
        run()
    except (RuntimeError, NotImplementedError) as error:
        return str(error).splitlines()[0][:100]
    replay = run
    if check.device.startswith("cuda"):
        stream = torch.cuda.Stream(check.device)
        stream.wait_stream(torch.cuda.current_stream(check.device))
        with torch.cuda.stream(stream):
            run()
        torch.cuda.current_stream(check.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            run()
        replay = graph.replay
    replay()
    replays = 1 if check.quick else _REPLAYS

    def run_often() -> None:
        for _ in range(replays):
            replay()

    return round(timed(check, run_often)[0] / replays / _CALLS * 1e6, 1)
