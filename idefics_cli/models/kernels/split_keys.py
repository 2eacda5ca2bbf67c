"""Attention of one token on a CUDA GPU, with the keys divided over the whole GPU.

With a mask, torch takes its memory-efficient kernel, in which one block walks over all keys of a
row and a head. With one row and 8 heads of keys, most multiprocessors are then idle. Here, batched
matrix products compute the attention, and cuBLAS divides those over the GPU.

The speed has not been measured yet; `.ci/gpu_check.py` compares it with that of torch's kernels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from idefics_cli.models.kernels.attention import register_attention, run_sdpa

# The product with the values is split into parts of this many keys, each computed in one block. The
# buffers of slots grow in steps of the same number (`BLOCK_TOKENS` in slots.py).
_CHUNK = 256
# These arguments of transformers change the scores. With one of them, the attention of transformers
# is used, because this module does not implement them.
_UNUSUAL = ("position_bias", "softcap", "s_aux", "cache")
# The self-test allows these relative errors. Rounding to 8 bits (bfloat16) gives 4e-3, and to 11
# bits (float16) 5e-4.
_ALLOWED = {torch.float32: 1e-4, torch.float16: 5e-3, torch.bfloat16: 2e-2}


@dataclass(frozen=True, slots=True)
class SplitKeyAttention:
    """An attention function for transformers; implements `table.AttentionKernel`.

    It computes steps of one token with a mask over whole buffers, as CUDA graphs record them, and
    leaves everything else to transformers' `sdpa`: without a mask, torch's FlashAttention kernel
    divides the keys itself, and a part of a buffer cannot be divided into chunks without a copy.

    Attributes:
        name: The name of this attention in transformers, and in the table of kernels.
        chunk: Number of keys of a product with the values; buffers have a multiple of it.
    """

    name: str
    chunk: int = _CHUNK

    def passes_self_test(self, device: str = "cpu") -> bool:
        """Whether small examples on *device* are right; see `table.AttentionKernel`."""
        try:
            with torch.inference_mode():
                return all(
                    _is_right(self.chunk, dtype, device) for dtype in dtypes_to_check(device)
                )
        except RuntimeError:
            # This attention multiplies 16-bit numbers with a float32 result. Some builds of torch
            # for ROCm lack this product.
            return False

    def register(self) -> str:
        """Register this attention in transformers and return its name; idempotent."""
        return register_attention(self.name, self)

    def __call__(
        self,
        module: nn.Module,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attention_mask: Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,
        **options: object,
    ) -> tuple[Tensor, None]:
        """Return what transformers' `sdpa` returns; see `CpuAttention.__call__`."""
        is_whole = key.is_contiguous() and value.is_contiguous()
        if (
            query.shape[2] != 1
            or attention_mask is None
            or attention_mask.shape[1] != 1
            or key.shape[2] % self.chunk
            or not is_whole
            or dropout
            or any(options.get(name) is not None for name in _UNUSUAL)
        ):
            return run_sdpa(module, query, key, value, attention_mask, dropout, scaling, options)
        scaling = query.shape[3] ** -0.5 if scaling is None else scaling
        return _attend(query, key, value, attention_mask, scaling, self.chunk), None


SPLIT_KEYS = SplitKeyAttention("cuda_split_keys")


def dtypes_to_check(device: str) -> list[torch.dtype]:
    """Return the dtypes of the self-test on *device*.

    GPUs before Ampere lack bfloat16, and plans choose another dtype for them. Without its products,
    this attention would fail there for all dtypes.
    """
    is_old = device.startswith("cuda") and torch.cuda.get_device_capability(device) < (8, 0)
    return [dtype for dtype in _ALLOWED if not (is_old and dtype == torch.bfloat16)]


def _attend(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor, scaling: float, chunk: int
) -> Tensor:
    """Attend from one token of each row.

    The heads that share keys are the rows of a matrix, so keys and values are not copied.

    Args:
        query: (B, heads, 1, width).
        key: (B, KV heads, K, width), contiguous.
        value: As *key*.
        mask: (B or 1, 1, 1, K), bool or numbers that are added to the scores.
        scaling: Factor of the scores.
        chunk: Number of keys of a product with the values; K is a multiple of it.

    Returns:
        (B, 1, heads, width).
    """
    rows, heads, _, width = query.shape
    shared, keys = key.shape[1], key.shape[2]
    matrices, sharing = rows * shared, heads // shared
    grouped = query.reshape(matrices, sharing, width)
    scores = _product(grouped, key.view(matrices, keys, width).transpose(1, 2))
    scores = scores.view(rows, shared, sharing, keys)
    weights = torch.add(_as_bias(mask), scores, alpha=scaling, out=scores).softmax(-1)
    chunks = keys // chunk
    parts = weights.view(matrices, sharing, chunks, chunk).transpose(1, 2)
    parts = parts.to(query.dtype, memory_format=torch.contiguous_format)
    sums = _product(
        parts.reshape(matrices * chunks, sharing, chunk),
        value.view(matrices * chunks, chunk, value.shape[3]),
    )
    out = sums.view(matrices, chunks, sharing, value.shape[3]).sum(1)
    return out.to(query.dtype).view(rows, 1, heads, value.shape[3])


def _as_bias(mask: Tensor) -> Tensor:
    """Return the numbers, float32, that *mask* adds to the scores."""
    if mask.dtype != torch.bool:
        return mask.float()
    # Masked scores get the lowest number and not minus infinity, for which softmax gives NaN if a
    # row has no keys.
    lowest = torch.finfo(torch.float32).min
    return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, lowest)


def _product(left: Tensor, right: Tensor) -> Tensor:
    """Return the batched product in float32, also of numbers in 16 bits.

    In 16 bits, scores of 100 would be rounded to multiples of 0.5.
    """
    if left.dtype == torch.float32:
        return torch.bmm(left, right)
    if left.is_cuda:
        return torch.bmm(left, right, out_dtype=torch.float32)
    return torch.bmm(left.float(), right.float())


def _is_right(chunk: int, dtype: torch.dtype, device: str) -> bool:
    """Compare attention in *dtype* with float64 arithmetic, in buffers of two chunks."""
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(3, heads, length, 64, generator=generator).to(dtype)
        for heads, length in ((6, 1), (2, 2 * chunk), (2, 2 * chunk))
    )
    mask = (torch.arange(2 * chunk) < torch.tensor([[2 * chunk], [chunk + 9], [1]]))[:, None, None]
    given = _attend(
        query.to(device), key.to(device), value.to(device), mask.to(device), 64**-0.5, chunk
    )
    key, value = (states.double().repeat_interleave(3, dim=1) for states in (key, value))
    scores = (query.double() @ key.mT * 64**-0.5).masked_fill(~mask, float("-inf"))
    wanted = (scores.softmax(-1) @ value).transpose(1, 2)
    return bool((given.cpu().double() - wanted).norm() <= _ALLOWED[dtype] * wanted.norm())
