"""Formulas for the memory that a model takes: weights, KV cache and working memory.

They were checked against the real architectures. Parameters and KV caches agree exactly with models
that were made without weights. Working memory agrees within 25 % with the sum of the tensors that
are alive at the same time in a forward. The peaks in the Idefics2 model card for FlashAttention on
an H100 are 21.0 GB with and 18.1 GB without splitting; the formulas, with the runtime's own memory,
give 21.0 and 18.2.
"""

from __future__ import annotations

from dataclasses import dataclass

from idefics_cli.core.types import Attention, DtypeName, Format4bit, Quantization
from idefics_cli.models.families.spec import Shape
from idefics_cli.models.hub.sizes import NUMBER_BYTES, quantized_weights
from idefics_cli.models.planning.quantization import bytes_per_weight

# A plan makes room for a prompt of one picture and so many tokens of text, and for such a reply.
PROMPT_TEXT_TOKENS = 512
REPLY_TOKENS = 512
# Memory for workspaces of the CUDA libraries, and for what the allocator cannot reuse.
GPU_RUNTIME_BYTES = 2**29
# Memory of Python, torch and transformers (measured: 0.36 GB above the weights), and of a picture.
CPU_RUNTIME_BYTES = 3 * 2**28


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


def weight_bytes(
    parameters: int,
    shape: Shape,
    *,
    dtype: DtypeName,
    quantization: Quantization,
    format_4bit: Format4bit = "nf4",
) -> int:
    """Return the bytes of all weights; quantization changes only the layers of the text model."""
    small = bytes_per_weight(quantization, format_4bit)
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
    shape: Shape, *, dtype: DtypeName, attention: Attention, splitting: bool, tokens: int
) -> int:
    """Return the bytes of intermediate results for one picture and a prompt of *tokens*.

    The vision tower and the text model run one after the other, so the larger need counts. For
    each patch, the vision tower keeps five results of its widest layer: a trace shows three, but
    the measured peaks need five. For each token, the text model keeps its feed-forward results and
    eight results of its width. Only `eager` attention keeps its scores: once in the dtype of the
    model and twice in float32 for the softmax, together five times their size in 16 bit.
    """
    size = NUMBER_BYTES[dtype]
    tiles = shape.tiles if splitting else 1
    vision = tiles * shape.patches * shape.widest * 5 * size
    text = tokens * (3 * shape.intermediate + 8 * shape.hidden) * size
    if attention == "eager":
        vision += tiles * shape.vision_heads * shape.patches**2 * 5 * size
        text += shape.heads * tokens**2 * 5 * size
    return max(vision, text)


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
) -> MemoryNeed:
    """Return the memory of a model for one picture and a reply; the runtime's own is not in it."""
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
