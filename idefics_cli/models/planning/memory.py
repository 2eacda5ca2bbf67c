"""Formulas for the memory that a model takes: weights, KV cache and working memory.

They were checked against the real architectures. Parameters and KV caches agree exactly with models
that were made without weights. Working memory agrees within 25 % with the sum of the tensors that
are alive at the same time in a forward. The peaks in the Idefics2 model card for FlashAttention on
an H100 are 21.0 GB with and 18.1 GB without splitting; the formulas, with the runtime's own memory,
give 21.0 and 18.2.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from idefics_cli.core.types import Attention, DtypeName, Format4bit, Quantization
from idefics_cli.models.families.spec import Shape
from idefics_cli.models.hub.sizes import NUMBER_BYTES, quantized_weights
from idefics_cli.models.planning.quantization import bytes_per_weight

# A plan makes room for a prompt of one picture and `PROMPT_TEXT_TOKENS`, and for a reply of
# `REPLY_TOKENS`.
PROMPT_TEXT_TOKENS = 512
REPLY_TOKENS = 512
# Memory for workspaces of the CUDA libraries, and for what the allocator cannot reuse.
GPU_RUNTIME_BYTES = 2**29
# Memory of Python, torch, transformers and a picture. The first three took 0.36 GB above the
# weights in a measurement.
CPU_RUNTIME_BYTES = 3 * 2**28
# A weight in 12 bits, and the share of outliers that it has if weights are gaussian.
_PACKED_BYTES = 1.51


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """The memory of a model while it generates a reply, in bytes.

    Attributes:
        weights: All weights.
        kv_cache: KV cache of the whole conversation.
        working: The largest set of intermediate results.
    """

    weights: int
    kv_cache: int
    working: int

    @property
    def total(self) -> int:
        """Sum of the three parts."""
        return self.weights + self.kv_cache + self.working


@dataclass(frozen=True, slots=True)
class ForwardMemory:
    """What a device keeps in memory during a forward.

    Attributes:
        patch_results: Results of the widest layer of the vision tower for each patch.
        tiles: Tiles in one forward of the vision tower; None puts all tiles of a picture into it.
        score_bytes: Bytes for each attention score; 0 for kernels that keep no scores.
        score_queries: Maximum number of queries whose scores exist at a time; None for all.
    """

    patch_results: float = 5
    tiles: int | None = None
    score_bytes: int = 0
    score_queries: int | None = None

    def scores(self, heads: int, tokens: int) -> int:
        """Return the bytes of the scores of *tokens* that attend to each other."""
        return heads * min(tokens, self.score_queries or tokens) * tokens * self.score_bytes


# A trace on a CPU shows a peak of three `patch_results`. But the measured memory needs five, the
# default.
ON_CPU = ForwardMemory()
# A trace of Idefics2 on a GPU with fused attention shows a peak of 3.2 `patch_results`.
ON_CUDA = ForwardMemory(patch_results=3.3, tiles=1)
# Without fused kernels for bfloat16, CUDA keeps the scores twice in float32 (torch 2.13,
# sdp_utils.cpp: GPUs before Ampere).
ON_OLD_CUDA = ForwardMemory(patch_results=3.3, tiles=1, score_bytes=8)
# Metal keeps the scores of `score_queries` queries in float32 (torch 2.13, Attention.mm). That it
# keeps three copies of them is an estimate.
ON_METAL = ForwardMemory(tiles=1, score_bytes=12, score_queries=3068)
# A forward with this number of patches keeps every GPU busy, so larger ones gain nothing: four
# tiles of Idefics2 have nearly as many, and take 32 TFLOP.
_BUSY_PATCHES = 20_000
# A plan counts one tile in a vision forward. Further tiles of the same forward may take this share
# of the memory that the plan leaves free. The rest is for more rows in a batch, which gain more: a
# decode step reads all weights once for all its rows.
_VISION_SHARE = 1 / 4


def weight_bytes(
    parameters: int,
    shape: Shape,
    *,
    dtype: DtypeName,
    quantization: Quantization,
    format_4bit: Format4bit = "nf4",
    is_packed: bool = False,
) -> int:
    """Return the bytes of all weights.

    Quantization changes only the layers of the text model. If *is_packed*, their weights take 12
    bits, not quantized.
    """
    small = _PACKED_BYTES if is_packed else bytes_per_weight(quantization, format_4bit)
    if small is None:
        return parameters * NUMBER_BYTES[dtype]
    shrunk = min(parameters, quantized_weights(shape))
    return int(shrunk * small) + (parameters - shrunk) * NUMBER_BYTES[dtype]


def prompt_tokens(shape: Shape, *, splitting: bool, context: int) -> int:
    """Return the length of the prompt for which a plan is made."""
    tiles = shape.tiles if splitting else 1
    return min(context, tiles * shape.tile_tokens + PROMPT_TEXT_TOKENS)


def kv_bytes(shape: Shape, *, dtype: DtypeName, tokens: int) -> int:
    """Return the bytes of the KV cache of *tokens* tokens."""
    return tokens * shape.layers * 2 * shape.kv_heads * shape.head_dim * NUMBER_BYTES[dtype]


def working_bytes(
    shape: Shape,
    *,
    dtype: DtypeName,
    attention: Attention,
    splitting: bool,
    tokens: int,
    forward: ForwardMemory = ON_CPU,
) -> int:
    """Return the bytes of intermediate results for one picture and a prompt of *tokens*.

    The vision tower and the text model run one after the other, so the larger need counts.
    """
    tiles = shape.tiles if splitting else 1
    if forward.tiles is not None:
        tiles = min(tiles, forward.tiles)
    vision = tiles * tile_bytes(shape, dtype=dtype, attention=attention, forward=forward)
    text = text_bytes(shape, dtype=dtype, attention=attention, tokens=tokens, forward=forward)
    return max(vision, text)


def tile_bytes(
    shape: Shape, *, dtype: DtypeName, attention: Attention, forward: ForwardMemory
) -> int:
    """Return the bytes of intermediate results of the vision tower for one tile."""
    kept = _with_eager(forward, attention, dtype)
    results = shape.patches * shape.widest * kept.patch_results * NUMBER_BYTES[dtype]
    return int(results) + kept.scores(shape.vision_heads, shape.patches)


def text_bytes(
    shape: Shape, *, dtype: DtypeName, attention: Attention, tokens: int, forward: ForwardMemory
) -> int:
    """Return the bytes of intermediate results of the text model for a prompt of *tokens*.

    For each token, it keeps its feed-forward results and eight results of its width.
    """
    kept = _with_eager(forward, attention, dtype)
    results = tokens * (3 * shape.intermediate + 8 * shape.hidden) * NUMBER_BYTES[dtype]
    return results + kept.scores(shape.heads, tokens)


def tiles_at_a_time(shape: Shape, *, spare_bytes: int, each_bytes: int) -> int:
    """Return how many tiles one forward of the vision tower of a GPU takes.

    Args:
        shape: The shape of the model.
        spare_bytes: Memory that is left while one tile is encoded.
        each_bytes: Memory for one more tile.
    """
    fitting = 1 + int(max(0, spare_bytes) * _VISION_SHARE) // max(1, each_bytes)
    return max(1, min(fitting, _BUSY_PATCHES // shape.patches))


def _with_eager(forward: ForwardMemory, attention: Attention, dtype: DtypeName) -> ForwardMemory:
    """Return *forward* with the scores that `eager` attention keeps on every device.

    It keeps them once in the dtype of the model and twice in float32 for the softmax, together
    five times their size in 16 bit.
    """
    if attention != "eager":
        return forward
    return replace(forward, score_bytes=5 * NUMBER_BYTES[dtype], score_queries=None)


def estimate_memory(
    parameters: int,
    shape: Shape,
    *,
    dtype: DtypeName,
    quantization: Quantization,
    attention: Attention,
    splitting: bool,
    context: int,
    format_4bit: Format4bit = "nf4",
    is_packed: bool = False,
    forward: ForwardMemory = ON_CPU,
) -> MemoryNeed:
    """Return the memory of a model for one picture and a reply, without that of the runtime."""
    prompt = prompt_tokens(shape, splitting=splitting, context=context)
    return MemoryNeed(
        weights=weight_bytes(
            parameters,
            shape,
            dtype=dtype,
            quantization=quantization,
            format_4bit=format_4bit,
            is_packed=is_packed,
        ),
        kv_cache=kv_bytes(shape, dtype=dtype, tokens=min(context, prompt + REPLY_TOKENS)),
        working=working_bytes(
            shape,
            dtype=dtype,
            attention=attention,
            splitting=splitting,
            tokens=prompt,
            forward=forward,
        ),
    )
