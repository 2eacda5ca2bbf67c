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
from idefics_cli.models.kernels.byte_dots import add_dots, add_pairs, has_dots
from idefics_cli.models.kernels.compiler import vector_bytes
from idefics_cli.models.kernels.jit import Code, LazyKernel

if TYPE_CHECKING:
    from llvmlite import ir

# This many weights along the width share a step and a zero. Smaller groups would be more exact, but
# take more memory.
GROUP = 32
# The weights of this many outputs are stored side by side: a register of 64 bytes holds 16 sums of
# 32 bits, one for each output.
LANES = 16
# Layout of a block of 16 outputs: the scale of each output in float32, then the groups. A group has
# 4 bits for each weight, then 8 bits for each output's step, then 8 bits for each output's zero.
# That makes 4.5 bits for a weight.
_HEAD_BYTES = 4 * LANES
_WEIGHT_BYTES = LANES * GROUP // 2
_STEPS_AT, _ZEROS_AT = _WEIGHT_BYTES, _WEIGHT_BYTES + LANES
_GROUP_BYTES = _WEIGHT_BYTES + 2 * LANES
# A step is a float with 4 bits of exponent and 4 of fraction, because some groups of an output have
# weights that are far larger than those of others.
_FRACTION_BITS = 23 - 4
_EXPONENT_OF_0 = 127 - 15
SMALLEST_STEP, LARGEST_STEP = 2.0 ** (_EXPONENT_OF_0 - 127), 1.9375
# The zero, the number that stands for a weight of 0, is counted in parts of a step.
ZERO_PARTS = 16
# The kernel needs two float32 values for each group of a row: the scale of the row's numbers, and
# the sum of its values, which it multiplies by the lowest value of the weights.
_SCALE_BYTES = 8
# 64 rows at a time are multiplied by all weights, because 64 rows stay in the L2 cache of a core.
_TILE_ROWS = 64
_HIGHEST = 127
# The kernel prefetches the weights at this distance in bytes, because the processor's own
# prefetcher stops at every page. With it, products of one row take 0.85 to 0.9 of the time.
_PREFETCH_BYTES = 2048
# The keys are numbers of bytes of a register. The instruction multiplies bytes and adds pairs
# of products.
_PAIRS = {64: "llvm.x86.avx512.pmaddubs.w.512", 32: "llvm.x86.avx2.pmadd.ub.sw"}


def bytes_of_block(width: int) -> int:
    """Return how many bytes 16 outputs of *width* weights take."""
    return _HEAD_BYTES + width // GROUP * _GROUP_BYTES


def step_codes(steps: Tensor) -> Tensor:
    """Return *steps*, float32 up to `LARGEST_STEP`, rounded to the nearest codes, uint8."""
    nearest = (steps.view(torch.int32) + (1 << _FRACTION_BITS - 1)) >> _FRACTION_BITS
    return (nearest - (_EXPONENT_OF_0 << 4)).clamp_(0, 255).to(torch.uint8)


def steps_of(codes: Tensor) -> Tensor:
    """Return the steps, float32, that *codes* from `step_codes` stand for."""
    return (codes.int() + (_EXPONENT_OF_0 << 4) << _FRACTION_BITS).view(torch.float32)


def pack(numbers: Tensor, codes: Tensor, zeros: Tensor, scale: Tensor) -> Tensor:
    """Return weights as `product` reads them.

    Args:
        numbers: (out, in) uint8 from 0 to 15; *out* a multiple of 16, *in* of 32.
        codes: (out, in / 32) uint8, the steps, from `step_codes`.
        zeros: (out, in / 32) uint8, in sixteenths of a step.
        scale: (out,) float32. A weight is (number - zero / 16) * step * scale.

    Returns:
        (out / 16, `bytes_of_block`) uint8. Of a group, four consecutive numbers of each of 16
        outputs are in the lower halves of 64 bytes, the next four in the upper halves of the same
        bytes.
    """
    outputs, width = numbers.shape
    shape = (outputs // LANES, LANES, width // GROUP)
    halves = numbers.reshape(*shape, 4, 2, 4).permute(0, 2, 3, 1, 5, 4)
    weights = (halves[..., 0] | halves[..., 1] << 4).reshape(shape[0], shape[2], _WEIGHT_BYTES)
    others = torch.stack((codes, zeros)).reshape(2, *shape).permute(1, 3, 0, 2).flatten(2)
    head = scale.float().contiguous().view(torch.uint8).reshape(shape[0], _HEAD_BYTES)
    return torch.cat((head, torch.cat((weights, others), 2).flatten(1)), 1)


def unpack(packed: Tensor) -> Tensor:
    """Return the weights (out, in) float32 that `pack` made *packed* from."""
    blocks = len(packed)
    scale = packed[:, :_HEAD_BYTES].contiguous().view(torch.float32)
    body = packed[:, _HEAD_BYTES:].reshape(blocks, -1, _GROUP_BYTES)
    groups = body.shape[1]
    weights = body[..., :_WEIGHT_BYTES].reshape(blocks, groups, 4, LANES, 4)
    numbers = torch.stack((weights & 15, weights >> 4), 3).permute(0, 4, 1, 2, 3, 5)
    others = body[..., _WEIGHT_BYTES:].reshape(blocks, groups, 2, LANES).permute(2, 0, 3, 1)
    codes, zeros = others[..., None]
    steps = numbers.reshape(blocks, LANES, groups, GROUP) - zeros.float() / ZERO_PARTS
    wide: Tensor = steps * (steps_of(codes) * scale[:, :, None, None])
    return wide.reshape(blocks * LANES, groups * GROUP)


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
            first_scale + first * groups * _SCALE_BYTES,
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
    rows = torch.randn(11, 96, generator=generator)
    packed = pack(numbers, codes, zeros, torch.rand(48, generator=generator))
    given = product(rows, packed)
    exact = functional.linear(rows, unpack(packed))
    return bool((given - exact).norm() < 0.02 * exact.norm())


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
        size = build.mul(groups, code.number(_GROUP_BYTES))
        size = build.add(size, code.number(_HEAD_BYTES))
        head = build.add(packed, build.mul(block, size))
        self._scale = code.pointer(head)
        self._weights = code.pointer(build.add(head, code.number(_HEAD_BYTES)))
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
            weights = build.mul(group, code.number(_GROUP_BYTES))
            positions = [build.add(build.mul(each, self._groups), group) for each in rows]
            for line in range(0, _GROUP_BYTES, 64):
                code.prefetch(
                    self._weights, build.add(weights, code.number(_PREFETCH_BYTES + line))
                )
            dots = self._dots(weights, positions, part)
            step, lowest = self._step_and_lowest(weights, part)
            for position, dot, total in zip(positions, dots, sums, strict=True):
                offset = build.mul(position, code.number(_SCALE_BYTES))
                scale = code.spread(code.load(self._scales, offset, code.f32), self._lanes)
                whole = code.load(self._scales, build.add(offset, code.number(4)), code.f32)
                now = code.fused(build.fmul(dot, scale), step, total.get())
                total.set(code.fused(code.spread(whole, self._lanes), lowest, now))
        scales = code.load(self._scale, 4 * self._lanes * part, zeros.type)
        for each, total in zip(rows, sums, strict=True):
            offset = build.mul(each, self._out_bytes)
            offset = build.add(offset, code.number(4 * self._lanes * part))
            code.store(build.fmul(total.get(), scales), self._out, offset)

    def _dots(self, weights: ir.Value, positions: Sequence[ir.Value], part: int) -> list[ir.Value]:
        """Return for each row the dot products of one group with its weights, as float32."""
        code, build, size = self._code, self._code.builder, vector_bytes()
        as_bytes = code.vector(code.i8, size)
        sums: list[ir.Value | None] = [None] * len(positions)
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
                    sums[row] = self._add_products(sums[row], numbers, four)
        if not has_dots():
            ones = code.same(code.i16, size // 2, 1)
            zero = code.same(code.i32, size // 4, 0)
            sums = [add_pairs(code, zero, each, ones) for each in sums]
        return [build.sitofp(each, code.vector(code.f32, size // 4)) for each in sums]

    def _add_products(self, so_far: ir.Value | None, numbers: ir.Value, four: ir.Value) -> ir.Value:
        """Return *so_far* plus the products of *numbers*, bytes, with those in *four*.

        Without the instruction of `byte_dots.py`, the sums have 16 bits, one for each pair.
        """
        code, build, size = self._code, self._code.builder, vector_bytes()
        if has_dots():
            start = code.same(code.i32, size // 4, 0) if so_far is None else so_far
            return add_dots(code, start, numbers, four)
        # Each element adds 16 products of at most 15 * 127, which 16 bits can hold.
        pairs, as_bytes = code.vector(code.i16, size // 2), code.vector(code.i8, size)
        found = code.call(_PAIRS[size], pairs, numbers, build.bitcast(four, as_bytes))
        return found if so_far is None else build.add(so_far, found)

    def _step_and_lowest(self, weights: ir.Value, part: int) -> tuple[ir.Value, ir.Value]:
        """Return the steps of one group, and the values that its number 0 stands for."""
        code, build = self._code, self._code.builder
        f32 = code.vector(code.f32, self._lanes)
        steps, zeros = (self._bytes(weights, start, part) for start in (_STEPS_AT, _ZEROS_AT))
        bits = build.shl(steps, code.same(code.i32, self._lanes, _FRACTION_BITS))
        exponent = code.same(code.i32, self._lanes, _EXPONENT_OF_0 << 23)
        step = build.bitcast(build.add(bits, exponent), f32)
        part_of_step = code.same(code.f32, self._lanes, -1 / ZERO_PARTS)
        lowest = build.fmul(build.fmul(build.uitofp(zeros, f32), part_of_step), step)
        return step, lowest

    def _bytes(self, weights: ir.Value, start: int, part: int) -> ir.Value:
        code = self._code
        offset = code.builder.add(weights, code.number(start + self._lanes * part))
        loaded = code.load(self._weights, offset, code.vector(code.i8, self._lanes))
        return code.builder.zext(loaded, code.vector(code.i32, self._lanes))


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
        offset = build.mul(group, code.number(_SCALE_BYTES))
        code.store(scale, scale_target, offset)
        whole = build.fmul(build.sitofp(total, f32), scale)
        code.store(whole, scale_target, build.add(offset, code.number(4)))


_product = LazyKernel(write_product, arguments=7)
_round_float32 = LazyKernel(partial(write_rounding, halves=False), arguments=4)
_round_bfloat16 = LazyKernel(partial(write_rounding, halves=True), arguments=4)
