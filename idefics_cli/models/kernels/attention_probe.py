"""Attention as the engine calls it, compared with float32 arithmetic on the CPU.

The calls have the number and width of heads of real models, but short sequences. So they run the
kernels that the model would run, in a fraction of a second.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Protocol, cast

import torch
from torch import Tensor

from idefics_cli.core.types import DtypeName
from idefics_cli.models.kernels.table import KERNELS

TOLERANCE: dict[DtypeName, float] = {"float32": 1e-3, "float16": 5e-3, "bfloat16": 3e-2}
"""The largest allowed error of a head, relative to the norm of its result, by dtype.

Measured on CPUs: 1e-6, 1e-3 and 6e-3. GPUs round in another order, and wrong kernels are far off.
"""

# The KV buffers have this value at all positions that no query attends to. A kernel that reads such
# a position gives a wrong result.
_GARBAGE = 50.0
# Number of patches. 17 * 64 + 1 does not fill the last tile of a kernel, and is large enough for
# the kernels for many queries.
_PATCHES = 1089
_TEXT, _PIECE, _CAPACITY = 201, 150, 768
_LATENTS = 64
# At most this many queries of each call are compared, because the exact results are computed on the
# CPU.
_COMPARED = 48


@dataclass(frozen=True, slots=True)
class HeadShape:
    """The heads of attention layers: query heads, heads of keys and values, and their width."""

    heads: int
    kv_heads: int
    width: int

    def __str__(self) -> str:
        return f"{self.heads}x{self.kv_heads}x{self.width}"


VISION = HeadShape(16, 16, 72)
"""The vision tower of Idefics2 and Idefics3 (SigLIP so400m). Few kernels take this width."""
PERCEIVER = HeadShape(16, 4, 96)
"""The connector of Idefics2."""


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """One call of attention.

    Attributes:
        name: The call in words.
        shape: The heads.
        query: (B, heads, queries, width).
        key: (B, KV heads, keys, width).
        value: As *key*.
        mask: (B, 1, queries, keys), True where a query attends to a key; None for no mask.
        is_causal: Whether the layer is causal; with a mask, the mask alone counts.
    """

    name: str
    shape: HeadShape
    query: Tensor
    key: Tensor
    value: Tensor
    mask: Tensor | None
    is_causal: bool


@dataclass(frozen=True, slots=True)
class AttentionError:
    """The error of one call.

    Attributes:
        call: The call in words.
        error: The largest relative error of a head; infinite if a number is NaN or infinite.
    """

    call: str
    error: float


class AttentionFunction(Protocol):
    """An attention function of transformers."""

    def __call__(
        self,
        module: object,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        *,
        scaling: float,
        dropout: float,
    ) -> tuple[Tensor, object]:
        """Return (B, queries, heads, width), and the scores or None."""
        ...


def probe_attention(
    attention: str, *, device: str, dtype: DtypeName, text: HeadShape
) -> list[AttentionError]:
    """Return the error of each call of *attention*.

    Args:
        attention: Its name in transformers, or a kernel of `KERNELS`.
        device: Device of all tensors.
        dtype: Dtype of all tensors.
        text: The heads of the text model.

    Raises:
        RuntimeError, ValueError, ImportError: If it cannot run here.
    """
    # An engine does the same (see `LocalEngine`), because cuDNN is wrong on some GPUs.
    torch.backends.cuda.enable_cudnn_sdp(False)
    function = _function(attention)
    takes_masks = not attention.startswith("flash")
    with torch.inference_mode():
        return [
            AttentionError(call.name, _error(call, function, attention, device))
            for call in _calls(text, getattr(torch, dtype))
            if takes_masks or call.mask is None
        ]


def _function(attention: str) -> AttentionFunction:
    if attention == "eager":
        # transformers does not register `eager`: each model's module has its own function of this
        # name. The function of Llama is probed for all models.
        from transformers.models.llama.modeling_llama import eager_attention_forward

        return cast("AttentionFunction", eager_attention_forward)
    from transformers import AttentionInterface

    if attention in KERNELS:
        KERNELS[attention].attention_kernel().register()
    return cast("AttentionFunction", AttentionInterface()[attention])


@dataclass(frozen=True, slots=True)
class _Random:
    """Makes calls of random numbers."""

    generator: torch.Generator
    dtype: torch.dtype

    def call(
        self,
        name: str,
        shape: HeadShape,
        sizes: tuple[int, int, int],
        mask: Tensor | None,
        *,
        is_causal: bool,
    ) -> AttentionCall:
        """Return a call with *sizes*: rows, queries and keys."""
        rows, queries, keys = sizes
        query = self._heads(rows, shape.heads, queries, shape.width)
        key, value = (self._heads(rows, shape.kv_heads, keys, shape.width) for _ in range(2))
        if queries == 1:
            key, value = _in_slots(key, mask), _in_slots(value, mask)
        return AttentionCall(name, shape, query, key, value, mask, is_causal)

    def _heads(self, rows: int, count: int, length: int, width: int) -> Tensor:
        # As in a model, the result is a transposed view of (B, T, heads, width).
        numbers = torch.randn(rows, length, count, width, generator=self.generator)
        return numbers.to(self.dtype).transpose(1, 2)


def _calls(text: HeadShape, dtype: torch.dtype) -> Iterator[AttentionCall]:
    """Yield the calls, on the CPU."""
    random = _Random(torch.Generator().manual_seed(0), dtype)
    yield from _text_calls(text, random)
    whole = (1, _PATCHES, _PATCHES)
    yield random.call("vision", VISION, whole, None, is_causal=False)
    for name, shape, queries, keys in (
        ("padded vision", VISION, _PATCHES, _PATCHES),
        ("perceiver", PERCEIVER, _LATENTS, _PATCHES + _LATENTS),
    ):
        seen = torch.arange(keys) < torch.tensor([keys, 700])[:, None]
        mask = seen[:, None, None].expand(-1, -1, queries, -1)
        yield random.call(name, shape, (2, queries, keys), mask, is_causal=False)


def _text_calls(text: HeadShape, random: _Random) -> Iterator[AttentionCall]:
    lengths = torch.tensor([_TEXT, _TEXT // 2, 17])
    in_slots = (torch.arange(_TEXT) < lengths[:, None])[:, None, None]
    step, whole = (3, 1, _TEXT), (1, _TEXT, _TEXT)
    yield random.call("decode with a mask", text, step, in_slots, is_causal=True)
    # A step that CUDA graphs record attends to the whole buffers, so this call has a mask for all
    # positions.
    filled = (torch.arange(_CAPACITY) < torch.tensor([700, _TEXT, 17])[:, None])[:, None, None]
    whole_buffers = (3, 1, _CAPACITY)
    yield random.call("decode in whole buffers", text, whole_buffers, filled, is_causal=True)
    yield random.call("decode", text, step, None, is_causal=True)
    yield random.call("prefill", text, whole, None, is_causal=True)
    before = torch.ones(_TEXT, _TEXT, dtype=torch.bool).tril()
    padding = torch.arange(_TEXT) >= torch.tensor([0, 40])[:, None]
    # A query in the padding attends to itself, because a row without keys gives NaN.
    padded = (before & padding[:, None]) | torch.eye(_TEXT, dtype=torch.bool)
    two = (2, _TEXT, _TEXT)
    yield random.call("padded prefill", text, two, padded[:, None], is_causal=True)
    mask = before[-_PIECE:].expand(1, 1, -1, -1)
    piece = (1, _PIECE, _TEXT)
    yield random.call("next piece of a prefill", text, piece, mask, is_causal=True)


def _in_slots(states: Tensor, mask: Tensor | None) -> Tensor:
    """Return *states* (B, KV heads, keys, width) as a part of the buffers of slots."""
    rows, heads, keys, width = states.shape
    buffer = states.new_full((rows + 1, heads, _CAPACITY, width), _GARBAGE)
    buffer[:rows, :, :keys] = states
    if mask is not None:
        buffer[:rows, :, :keys].masked_fill_(~mask.transpose(2, 3), _GARBAGE)
    return buffer[:rows, :, :keys]


def _error(call: AttentionCall, function: AttentionFunction, attention: str, device: str) -> float:
    module = SimpleNamespace(
        num_key_value_groups=call.shape.heads // call.shape.kv_heads,
        is_causal=call.is_causal,
        training=False,
        config=SimpleNamespace(_attn_implementation=attention),
    )
    mask = None if call.mask is None else call.mask.to(device)
    if attention == "eager":
        mask = _added(call, device)
    given, _ = function(
        module,
        call.query.to(device),
        call.key.to(device),
        call.value.to(device),
        mask,
        scaling=call.shape.width**-0.5,
        dropout=0.0,
    )
    queries = call.query.shape[2]
    step = -(-queries // _COMPARED)
    places = torch.arange(queries - 1, -1, -step)
    wanted = _exact(call, places)
    off = (given.cpu()[:, places].transpose(1, 2).float() - wanted).norm(dim=(2, 3))
    worst = float((off / wanted.norm(dim=(2, 3))).max())
    return worst if worst == worst else float("inf")  # NaN is not equal to itself


def _added(call: AttentionCall, device: str) -> Tensor | None:
    """Return the mask that `eager` adds to its scores. Without this mask, `eager` is not causal."""
    mask = call.mask
    queries, keys = call.query.shape[2], call.key.shape[2]
    if mask is None and call.is_causal and queries > 1:
        mask = torch.ones(queries, keys, dtype=torch.bool).tril(keys - queries)[None, None]
    if mask is None:
        return None
    added = torch.zeros(mask.shape, dtype=call.query.dtype)
    return added.masked_fill(~mask, torch.finfo(added.dtype).min).to(device)


def _exact(call: AttentionCall, places: Tensor) -> Tensor:
    """Return the results (B, heads, places, width) of the queries at *places*, in float32."""
    groups = call.shape.heads // call.shape.kv_heads
    key = call.key.float().repeat_interleave(groups, dim=1)
    value = call.value.float().repeat_interleave(groups, dim=1)
    scores = call.query[:, :, places].float() @ key.transpose(2, 3) * call.shape.width**-0.5
    queries, keys = call.query.shape[2], call.key.shape[2]
    if call.mask is not None:
        mask = call.mask if call.mask.shape[2] == 1 else call.mask[:, :, places]
        scores = scores.masked_fill(~mask, float("-inf"))
    elif call.is_causal and queries > 1:
        later = torch.arange(keys) > places[:, None] + keys - queries
        scores = scores.masked_fill(later, float("-inf"))
    return torch.matmul(scores.softmax(-1), value)
