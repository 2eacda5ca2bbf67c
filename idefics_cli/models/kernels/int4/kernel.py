"""Products of 4-bit weights with rows of 8-bit numbers, in the integer units of the processor.

The kernel is faster than float32 for one row, where memory bandwidth is the limit, because there
are fewer bytes to read. It is also faster for the hundreds of rows of a prompt, because a processor
multiplies 64 pairs of bytes in the time of 16 pairs of float32. Rows are rounded to 8 bits with a
scale for every 32 numbers, as in llama.cpp (Q8_0). This adds an error of half a percent; rounding
the weights to 4 bits gives eight percent.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional

from idefics_cli.models.kernels import jit
from idefics_cli.models.kernels.blocks import scale_and_factor, size_bits
from idefics_cli.models.kernels.byte_dots import add_byte_pairs, add_dots, has_dots, sum_pairs
from idefics_cli.models.kernels.compiler import vector_bytes
from idefics_cli.models.kernels.int4 import panels
from idefics_cli.models.kernels.int4.layout import (
    GROUP,
    GROUP_BYTES,
    HEAD_BYTES,
    LANES,
    SCALE_BYTES,
    add_group,
    pack,
    step_and_lowest,
    unpack,
)
from idefics_cli.models.kernels.jit import Code, LazyKernel

if TYPE_CHECKING:
    from llvmlite import ir

# 64 rows at a time are multiplied by all weights, because 64 rows stay in the L2 cache of a core.
_TILE_ROWS = 64
_HIGHEST = 127
# The kernel prefetches the weights at this distance in bytes, because the processor's own
# prefetcher stops at every page. With it, products of one row take 0.85 to 0.9 of the time.
_PREFETCH_BYTES = 2048


def round_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return *rows* (N, in) rounded to (N, in) int8, and (N, in / 32, 2) float32.

    The second tensor holds two values for each group of 32 numbers: the scale, and the sum of the
    rounded numbers times the scale.
    """
    count, width = rows.shape
    if rows.dtype == torch.bfloat16:
        kernel = _round_bfloat16
    else:
        kernel, rows = _round_float32, rows.float()
    rows = rows.contiguous()
    numbers = torch.empty(count, width, dtype=torch.int8)
    scales = torch.empty(count, width // GROUP, 2)
    kernel(count, width // GROUP, rows.data_ptr(), numbers.data_ptr(), scales.data_ptr())
    return numbers, scales


def product(rows: Tensor, packed: Tensor) -> Tensor:
    """Return (N, out) float32, the products of *rows* (N, in) with weights from `pack`."""
    numbers, scales = round_rows(rows)
    if len(rows) >= panels.FEWEST_ROWS and panels.gains():
        return panels.product(numbers, scales, packed)
    blocks, groups = len(packed), rows.shape[1] // GROUP
    out = torch.empty(len(rows), blocks * LANES)
    # The kernel gets addresses and not slices of tensors, because slicing takes as long as a small
    # product.
    weights, first_number, first_scale = (t.data_ptr() for t in (packed, numbers, scales))
    for first in range(0, len(rows), _TILE_ROWS):
        _product(
            blocks,
            groups,
            min(_TILE_ROWS, len(rows) - first),
            weights,
            first_number + first * groups * GROUP,
            first_scale + first * groups * SCALE_BYTES,
            out.data_ptr() + first * blocks * LANES * 4,
            blocks * LANES,
        )
    return out


def passes_self_test() -> bool:
    """Whether the kernels can be compiled here and compute a small example correctly."""
    return jit.passes(_computes_an_example)


def _computes_an_example() -> bool:
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randint(0, 16, (48, 96), generator=generator, dtype=torch.uint8)
    codes, zeros = torch.randint(0, 256, (2, 48, 3), generator=generator, dtype=torch.uint8)
    packed = pack(numbers, codes, zeros, torch.rand(48, generator=generator))
    weight = unpack(packed)
    # More rows may be multiplied by `panels.py`.
    return all(_is_exact(count, weight, packed) for count in (11, panels.FEWEST_ROWS + 1))


def _is_exact(count: int, weight: Tensor, packed: Tensor) -> bool:
    rows = torch.randn(count, weight.shape[1], generator=torch.Generator().manual_seed(count))
    exact = functional.linear(rows, weight)
    return bool((product(rows, packed) - exact).norm() < 0.02 * exact.norm())


def write_product(code: Code, block: ir.Value, arguments: Sequence[ir.Value]) -> None:
    """Write the code that multiplies all rows by 16 outputs."""
    writer = _Int4Product(code, block, *arguments)
    # Several rows are computed at a time: as many as there are registers for their sums.
    for row, count in code.portions(writer.rows, (8, 4, 2, 1) if vector_bytes() == 64 else (2, 1)):
        for part in range(4 * LANES // vector_bytes()):
            writer.write(row, count, part)


class _Int4Product:
    """Writes the code for the outputs of one block.

    Args:
        code: Where the code is written.
        block: Number of the block, from 0.
        groups: Number of groups along the width.
        rows: Number of rows.
        packed: Address of the weights, from `pack`.
        numbers: Address of the rounded rows, from `round_rows`.
        scales: Address of the scales and sums of the rows, from `round_rows`.
        out: Address of the products (rows, outputs), float32.
        outputs: Number of outputs of all blocks.
    """

    def __init__(
        self,
        code: Code,
        block: ir.Value,
        groups: ir.Value,
        rows: ir.Value,
        packed: ir.Value,
        numbers: ir.Value,
        scales: ir.Value,
        out: ir.Value,
        outputs: ir.Value,
    ) -> None:
        build = code.builder
        self.rows = rows
        self._code, self._groups = code, groups
        size = build.mul(groups, code.number(GROUP_BYTES))
        size = build.add(size, code.number(HEAD_BYTES))
        head = build.add(packed, build.mul(block, size))
        self._scale = code.pointer(head)
        self._weights = code.pointer(build.add(head, code.number(HEAD_BYTES)))
        self._numbers, self._scales = code.pointer(numbers), code.pointer(scales)
        self._out = code.pointer(build.add(out, build.mul(block, code.number(4 * LANES))))
        self._out_bytes = build.mul(outputs, code.number(4))
        self._lanes = vector_bytes() // 4

    def write(self, row: ir.Value, count: int, part: int) -> None:
        """Write the code that multiplies *count* rows by the outputs of one register."""
        code, build = self._code, self._code.builder
        rows = [build.add(row, code.number(number)) for number in range(count)]
        zeros = code.same(code.f32, self._lanes, 0.0)
        sums = [code.variable(zeros) for _ in rows]
        with code.loop(code.number(0), self._groups) as group:
            weights = build.mul(group, code.number(GROUP_BYTES))
            positions = [build.add(build.mul(each, self._groups), group) for each in rows]
            for line in range(0, GROUP_BYTES, 64):
                code.prefetch(
                    self._weights, build.add(weights, code.number(_PREFETCH_BYTES + line))
                )
            dots = self._dots(weights, positions, part)
            steps = step_and_lowest(code, self._weights, weights, part)
            for position, dot, total in zip(positions, dots, sums, strict=True):
                offset = build.mul(position, code.number(SCALE_BYTES))
                scale = code.load(self._scales, offset, code.f32)
                whole = code.load(self._scales, build.add(offset, code.number(4)), code.f32)
                add_group(code, total, dot, (scale, whole), steps)
        scales = code.load(self._scale, 4 * self._lanes * part, zeros.type)
        for each, total in zip(rows, sums, strict=True):
            offset = build.mul(each, self._out_bytes)
            offset = build.add(offset, code.number(4 * self._lanes * part))
            code.store(build.fmul(total.get(), scales), self._out, offset)

    def _dots(self, weights: ir.Value, positions: Sequence[ir.Value], part: int) -> list[ir.Value]:
        """Return for each row the dot products of one group with its weights, in 32 bits."""
        code, build, size = self._code, self._code.builder, vector_bytes()
        as_bytes = code.vector(code.i8, size)
        # Without products of bytes in 32 bits, each element adds 16 products of at most 15 * 127,
        # which 16 bits can hold.
        add = add_dots if has_dots() else add_byte_pairs
        zero = (
            code.same(code.i32, size // 4, 0) if has_dots() else code.same(code.i16, size // 2, 0)
        )
        sums = [zero] * len(positions)
        for quarter in range(4):
            offset = build.add(weights, code.number(64 * quarter + size * part))
            both = code.load(self._weights, offset, as_bytes)
            lower = build.and_(both, code.same(code.i8, size, 15))
            upper = build.lshr(both, code.same(code.i8, size, 4))
            for half, numbers in enumerate((lower, upper)):
                for row, position in enumerate(positions):
                    start = build.mul(position, code.number(GROUP))
                    start = build.add(start, code.number(8 * quarter + 4 * half))
                    four = code.spread(code.load(self._numbers, start, code.i32), size // 4)
                    sums[row] = add(code, sums[row], numbers, four)
        return sums if has_dots() else [sum_pairs(code, each) for each in sums]


def write_rounding(
    code: Code, row: ir.Value, arguments: Sequence[ir.Value], *, halves: bool
) -> None:
    """Write the code that rounds one row."""
    groups, rows, numbers, scales = arguments
    build, f32 = code.builder, code.f32
    kind = code.vector(code.i16 if halves else f32, GROUP)
    source, target, scale_target = (code.pointer(each) for each in (rows, numbers, scales))
    first = build.mul(row, groups)
    with code.loop(first, build.add(first, groups)) as group:
        at = build.mul(group, code.number(GROUP))
        values = code.load(source, build.mul(at, code.number(2 if halves else 4)), kind)
        values = code.from_bfloat16(values) if halves else values
        scale, factor = scale_and_factor(code, size_bits(code, values), _HIGHEST)
        scaled = build.fmul(values, code.spread(factor, GROUP))
        nearest = code.call(f"llvm.rint.v{GROUP}f32", values.type, scaled)
        wide = build.fptosi(nearest, code.vector(code.i32, GROUP))
        code.store(build.trunc(wide, code.vector(code.i8, GROUP)), target, at)
        total = code.call(f"llvm.vector.reduce.add.v{GROUP}i32", code.i32, wide)
        offset = build.mul(group, code.number(SCALE_BYTES))
        code.store(scale, scale_target, offset)
        whole = build.fmul(build.sitofp(total, f32), scale)
        code.store(whole, scale_target, build.add(offset, code.number(4)))


_product = LazyKernel(write_product, arguments=7)
_round_float32 = LazyKernel(partial(write_rounding, halves=False), arguments=4)
_round_bfloat16 = LazyKernel(partial(write_rounding, halves=True), arguments=4)
