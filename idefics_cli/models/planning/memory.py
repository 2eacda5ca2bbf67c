"""How much memory a model takes: weights, KV cache and working memory, by arithmetic.

The formulas were checked against the real architectures: parameters and caches exactly, by
instantiating them without weights; working memory by adding up the tensors that are alive at
the same time in a forward pass (within 25 %), and against the peaks that the Idefics2 model card
tells for FlashAttention on an H100 (21.0 GB with and 18.1 GB without splitting; computed with
the runtime's own: 21.0 and 18.2).
"""

from __future__ import annotations

from dataclasses import dataclass

from idefics_cli.core.types import Attention, DtypeName, Format4bit, Quantization
from idefics_cli.models.families.spec import Shape
from idefics_cli.models.hub.sizes import NUMBER_BYTES, quantized_weights
from idefics_cli.models.planning.quantization import bytes_per_weight

# What a plan is made for: one picture, so much text, such a reply.
PROMPT_TEXT_TOKENS = 512
REPLY_TOKENS = 512
# Workspaces of the CUDA libraries and what the allocator cannot use again.
GPU_RUNTIME_BYTES = 2**29
# Python, torch and transformers, measured (0.36 GB more than the weights), and a picture.
CPU_RUNTIME_BYTES = 3 * 2**28


@dataclass(frozen=True, slots=True)
class MemoryNeed:
    """What of a model is in memory while it answers; bytes.

    Attributes:
        weights: All of them.
        kv_cache: Of the whole conversation.
        working: The largest set of intermediate results, and the runtime's own.
    """

    weights: int
    kv_cache: int
    working: int

    @property
    def total(self) -> int:
        """The sum."""
        return self.weights + self.kv_cache + self.working


def weight_bytes(
    parameters: int,
    shape: Shape,
    *,
    dtype: DtypeName,
    quantization: Quantization,
    format_4bit: Format4bit = "nf4",
) -> int:
    """Return the bytes of all weights; only the text model's layers are quantized."""
    small = bytes_per_weight(quantization, format_4bit)
    if small is None:
        return parameters * NUMBER_BYTES[dtype]
    shrunk = min(parameters, quantized_weights(shape))
    return int(shrunk * small) + (parameters - shrunk) * NUMBER_BYTES[dtype]


def prompt_tokens(shape: Shape, *, splitting: bool, context: int) -> int:
    """Return the length of the prompt that a plan is made for."""
    tiles = shape.tiles if splitting else 1
    return min(context, tiles * shape.tile_tokens + PROMPT_TEXT_TOKENS)


def kv_bytes(shape: Shape, *, dtype: DtypeName, tokens: int) -> int:
    """Return the bytes of the KV cache of *tokens* tokens."""
    return tokens * shape.layers * 2 * shape.kv_heads * shape.head_dim * NUMBER_BYTES[dtype]


def working_bytes(
    shape: Shape, *, dtype: DtypeName, attention: Attention, splitting: bool, tokens: int
) -> int:
    """Return the bytes of intermediate results of one picture and a prompt of *tokens*.

    The larger of two phases counts. Vision keeps five results of the widest layer for each
    patch (three by tracing, five by the measured peaks); text keeps its feed-forward results
    and eight of its width for each token. Only `eager` attention keeps its scores: once in the
    model's dtype, twice as float32 for the softmax, so five times in 16 bit.
    """
    size = NUMBER_BYTES[dtype]
    tiles = shape.tiles if splitting else 1
    vision = tiles * shape.patches * shape.widest * 5 * size
    text = tokens * (3 * shape.intermediate + 8 * shape.hidden) * size
    if attention == "eager":
        vision += tiles * shape.vision_heads * shape.patches**2 * 5 * size
        text += shape.heads * tokens**2 * 5 * size
    return max(vision, text)


def model_load(
    parameters: int,
    shape: Shape,
    *,
    dtype: DtypeName,
    quantization: Quantization,
    attention: Attention,
    splitting: bool,
    context: int,
    format_4bit: Format4bit = "nf4",
) -> MemoryNeed:
    """Return what a model takes while it answers on one picture, without the runtime's own."""
    prompt = prompt_tokens(shape, splitting=splitting, context=context)
    return MemoryNeed(
        weights=weight_bytes(
            parameters, shape, dtype=dtype, quantization=quantization, format_4bit=format_4bit
        ),
        kv_cache=kv_bytes(shape, dtype=dtype, tokens=min(context, prompt + REPLY_TOKENS)),
        working=working_bytes(
            shape, dtype=dtype, attention=attention, splitting=splitting, tokens=prompt
        ),
    )
