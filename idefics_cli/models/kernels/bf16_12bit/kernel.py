"""Storage of bfloat16 weights in 12 bits, without loss, and their products with rows.

The weights of one output have similar sizes. So 4 bits instead of 8 hold an exponent: its distance
from the largest exponent of the output. Sign and fraction stay as they are. A weight that is
smaller than the largest by more than a factor of 2^15 is an outlier, and is stored apart; this is
one weight in 7,000 if they are gaussian. For one row, reading the weights takes most of the time,
and 12 bits are a quarter less to read. DFloat11 compresses exponents further, on GPUs (Zhang et al.
2025, "70% Size, 100% Accuracy").
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from idefics_cli.models.kernels import jit
from idefics_cli.models.kernels.bf16_12bit.layout import GROUP, GROUP_BYTES, LANES, TILE_ROWS
from idefics_cli.models.kernels.bf16_12bit.many_products import (
    MOST_ROWS,
    write_interleave,
    write_many_products,
)
from idefics_cli.models.kernels.bf16_12bit.packing import write_outliers, write_pack
from idefics_cli.models.kernels.bf16_12bit.products import (
    ROWS_TOGETHER,
    multiplies_bfloat16,
    write_product,
)
from idefics_cli.models.kernels.bf16_12bit.unpacking import write_unpack
from idefics_cli.models.kernels.huge_pages import empty_bytes
from idefics_cli.models.kernels.jit import LazyKernel

# If more than one in this many weights is an outlier, 12 bits save little memory.
WEIGHTS_PER_OUTLIER = 64
# Rows of this many bytes are multiplied by all weights before the next rows: they stay in the L2
# cache of a core.
TILE_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Compact:
    """Weights (out, in) of 12 bits.

    Attributes:
        packed: (out / 16, in / 8, 192) uint8.
        scale: (out,) float32, the power of two with the exponent of the largest weight of an
            output; 0 if all its weights are 0.
        starts: (out / 16 + 1,) int64, the index of the first outlier of each block of 16 outputs.
        positions: (outliers, 2) int32: the output within its block, and the column in the width.
        values: (outliers,) float32, the weights that are outliers.
    """

    packed: Tensor
    scale: Tensor
    starts: Tensor
    positions: Tensor
    values: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Outputs and width."""
        return self.packed.shape[0] * LANES, self.packed.shape[1] * GROUP


def fits(weight: Tensor) -> bool:
    """Whether *weight* (out, in) consists of whole groups."""
    return weight.shape[1] % GROUP == 0


def pack(weight: Tensor, *, weights_per_outlier: int = WEIGHTS_PER_OUTLIER) -> Compact | None:
    """Return *weight* in 12 bits, or None if it has infinities, NaN or too many outliers.

    Outputs of zeros fill up the last block of 16 outputs.

    Args:
        weight: (out, in) bfloat16; not changed.
        weights_per_outlier: More than one outlier in this many weights are too many.
    """
    weight = weight.detach().contiguous()
    if missing := -len(weight) % LANES:
        weight = functional.pad(weight, (0, 0, 0, missing))
    outputs, width = weight.shape
    blocks, groups = outputs // LANES, width // GROUP
    highest = torch.empty(outputs, dtype=torch.int32)
    counts = torch.empty(blocks, dtype=torch.int64)
    packed = empty_bytes(blocks, groups, GROUP_BYTES)
    source = weight.data_ptr()
    _pack(blocks, groups, source, highest.data_ptr(), packed.data_ptr(), counts.data_ptr())
    if bool((highest == 255).any()):
        # In bfloat16, exponent 255 means infinity or NaN. An output with such a weight has no
        # finite scale.
        return None
    starts = torch.cat((counts.new_zeros(1), counts.cumsum(0)))
    outliers = int(starts[-1])
    if outliers > weight.numel() // weights_per_outlier:
        return None
    positions, values = torch.empty(outliers, 2, dtype=torch.int32), torch.empty(outliers)
    addresses = (tensor.data_ptr() for tensor in (highest, starts, positions, values))
    _collect(blocks, groups, source, *addresses)
    scale = torch.ldexp((highest > 0).float(), highest - 127)
    return Compact(packed, scale, starts, positions, values)


def _addresses(compact: Compact, first: int, count: int) -> Iterator[int]:
    """Yield the addresses of *count* blocks of *compact*, from block *first*."""
    outputs = slice(first * LANES, (first + count) * LANES)
    yield compact.packed[first : first + count].data_ptr()
    yield compact.scale[outputs].data_ptr()
    yield compact.starts[first : first + count].data_ptr()
    yield compact.positions.data_ptr()
    yield compact.values.data_ptr()


def unpack(compact: Compact, first: int, wide: Tensor) -> None:
    """Unpack the weights of *count* blocks of 16 outputs, exactly.

    Args:
        compact: All weights.
        first: The first block.
        wide: (in, count * 16) float32, contiguous; the weights are written to it.
    """
    _, width = compact.shape
    count = wide.shape[1] // LANES
    addresses = _addresses(compact, first, count)
    _unpack(count, width // GROUP, count, *addresses, wide.data_ptr())


def product(rows: Tensor, compact: Compact, *, tile_bytes: int = TILE_BYTES) -> Tensor:
    """Return (N, out) float32, the products of *rows* with the weights.

    Args:
        rows: (N, in), of any float dtype. If the processor multiplies bfloat16, they are rounded
            to it.
        compact: The weights.
        tile_bytes: Bytes of the rows that are multiplied by all weights before the next rows.
    """
    outputs, width = compact.shape
    rows = rows.to(torch.bfloat16 if multiplies_bfloat16() else torch.float32).contiguous()
    out = torch.empty(len(rows), outputs)
    size = rows.element_size() * width
    tile = max(ROWS_TOGETHER, tile_bytes // size // ROWS_TOGETHER * ROWS_TOGETHER)
    for first in range(0, len(rows), tile):
        _product(
            outputs // LANES,
            width // GROUP,
            min(tile, len(rows) - first),
            rows.data_ptr() + first * size,
            *_addresses(compact, 0, outputs // LANES),
            out.data_ptr() + 4 * first * outputs,
            outputs,
        )
    return out


def product_of_many(rows: Tensor, compact: Compact) -> Tensor:
    """Return (N, out) bfloat16, the products of many *rows* (N, in), bfloat16, with the weights.

    Only for processors that multiply bfloat16; see `multiplies_bfloat16`.
    """
    outputs, width = compact.shape
    count, blocks = len(rows), outputs // LANES
    rows = rows.contiguous()
    tiles = -(-count // TILE_ROWS)
    interleaved = torch.empty(tiles * TILE_ROWS * width, dtype=torch.bfloat16)
    _interleave(tiles, width // 2, count, rows.data_ptr(), interleaved.data_ptr())
    out = torch.empty(tiles * TILE_ROWS, outputs, dtype=torch.bfloat16)
    together = 1 if blocks % 2 else 2
    _many_products[together](
        blocks // together * -(-len(out) // MOST_ROWS),
        width // GROUP,
        len(out),
        interleaved.data_ptr(),
        *_addresses(compact, 0, blocks),
        out.data_ptr(),
        outputs,
    )
    return out[:count]


def passes_self_test() -> bool:
    """Whether the kernels can be compiled here and compute a small example correctly."""
    return jit.passes(_computes_an_example)


def _computes_an_example() -> bool:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(48, 296, generator=generator).to(torch.bfloat16)
    weight[3, 5], weight[20], weight[40, 2:9] = 0, 0, 1e-9
    rows = torch.randn(150, 296, generator=generator).to(torch.bfloat16)
    compact = pack(weight)
    if compact is None:
        return False
    wide = torch.empty(296, 48)
    unpack(compact, 0, wide)
    exact = rows.float() @ weight.float().t()
    # More rows than are added up together, and more columns than are unpacked together.
    given = [product(rows[:11], compact)]
    if multiplies_bfloat16():
        given.append(product_of_many(rows, compact).float())
    errors = [(each - exact[: len(each)]).norm() / exact[: len(each)].norm() for each in given]
    # The products of many rows are rounded to bfloat16.
    are_near = all(error < limit for error, limit in zip(errors, (1e-5, 5e-3), strict=False))
    return are_near and torch.equal(wide, weight.float().t())


_pack = LazyKernel(write_pack, arguments=5)
_collect = LazyKernel(write_outliers, arguments=6)
_unpack = LazyKernel(write_unpack, arguments=8)
_product = LazyKernel(write_product, arguments=10)
_interleave = LazyKernel(write_interleave, arguments=4)
# Kernels for many rows, by the number of blocks of outputs that they compute together.
_many_products = {
    blocks: LazyKernel(partial(write_many_products, blocks=blocks), arguments=10)
    for blocks in (1, 2)
}
