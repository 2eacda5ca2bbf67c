"""Products of 8-bit weights with rows of 16-bit numbers, in the integer units of the processor.

To widen a weight to float32 takes several instructions. The processor multiplies 64 pairs of bytes
in one, but a row in 8 bits would add an error as large as that of the weights. So each number of a
row is rounded to 16 bits, which are two bytes: the product is that of the upper bytes times 256,
plus that of the lower bytes. The error of the rounding is a hundredth of that of the weights.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from idefics_cli.models.kernels.blocks import first_output, scale_and_factor, size_bits
from idefics_cli.models.kernels.byte_dots import add_dots, has_dots
from idefics_cli.models.kernels.compiler import vector_bytes
from idefics_cli.models.kernels.jit import Code, LazyKernel, Variable

if TYPE_CHECKING:
    from llvmlite import ir

STEP = 64
"""The width is a multiple of this."""
MOST_WIDTH = 2**18
"""Up to this width, the sums of the products of bytes have at most 31 bits."""
OUTPUTS = 16
"""Number of outputs that are computed together; there are as many or more."""
EXTRA_BYTES = 192
"""A rounded row takes two bytes for each number, and this many more; see `write_rounding`."""

# The numbers of these columns of 4 rows stay in the L1 cache while 16 outputs use them.
_COLUMNS_TOGETHER = 4096
# The upper byte is at most 127 and the lower at least -128, so no number is larger than this.
_HIGHEST = 127 * 256
_SUMS_AT = 64
# The weights that are read this many outputs later are prefetched: a few kilobytes ahead.
_AHEAD_OF_ONE, _AHEAD = 4, 8


def fits(outputs: int, width: int) -> bool:
    """Whether the kernel can multiply by weights (outputs, width)."""
    return has_dots() and outputs >= OUTPUTS and width % STEP == 0 and width <= MOST_WIDTH


def round_rows(rows: Tensor) -> Tensor:
    """Return *rows* (N, in) float32 in 16 bits, (N, 2 in + 192) uint8; see `write_rounding`."""
    count, width = rows.shape
    rounded = torch.empty(count, 2 * width + EXTRA_BYTES, dtype=torch.uint8)
    _round(count, width, rows.data_ptr(), rounded.data_ptr())
    return rounded


def product(rows: Tensor, weight: Tensor) -> Tensor:
    """Return (N, out) float32, the products of *rows* (N, in) float32 with *weight* (out, in) int8.

    Both are contiguous.
    """
    rounded = round_rows(rows)
    outputs, width = weight.shape
    out = torch.empty(len(rows), outputs)
    addresses = (tensor.data_ptr() for tensor in (rounded, weight, out))
    _product(-(-outputs // OUTPUTS), len(rows), width, outputs, *addresses)
    return out


def write_rounding(code: Code, row: ir.Value, arguments: Sequence[ir.Value]) -> None:
    """Write the code that rounds one row.

    A rounded row begins with its scale, in float32. From byte 64 on, there are two registers, for
    the upper bytes and for the lower: what their products with 128 add up to, negative, because
    the weights get 128 added, so that they are not negative. From byte 192 on, the upper and the
    lower bytes of the numbers take turns, a register each.
    """
    width, rows, rounded = arguments
    build, size = code.builder, vector_bytes()
    floats, wide = code.vector(code.f32, size), code.vector(code.i32, size)
    source = code.pointer(build.add(rows, build.mul(row, build.mul(width, code.number(4)))))
    target = code.pointer(build.add(rounded, build.mul(row, _row_bytes(code, width))))
    factor = _write_scale(code, source, target, width)
    sums = [code.variable(code.same(code.i32, size // 4, 0)) for _ in range(2)]
    high = code.same(code.i8, size, -128)
    with code.loop(code.number(0), width, size) as column:
        values = code.load(source, build.mul(column, code.number(4)), floats)
        values = code.call(f"llvm.rint.v{size}f32", floats, build.fmul(values, factor))
        whole = build.fptosi(values, wide)
        upper = build.add(whole, code.same(code.i32, size, 128))
        upper = build.ashr(upper, code.same(code.i32, size, 8))
        at = build.mul(column, code.number(2))
        for part, (value, total) in enumerate(zip((upper, whole), sums, strict=True)):
            narrow = build.trunc(value, code.vector(code.i8, size))
            code.store(narrow, target, build.add(at, code.number(EXTRA_BYTES + part * size)))
            total.set(add_dots(code, total.get(), high, narrow))
    for part, total in enumerate(sums):
        code.store(build.neg(total.get()), target, _SUMS_AT + part * size)


def _write_scale(code: Code, source: ir.Value, target: ir.Value, width: ir.Value) -> ir.Value:
    """Write the code that stores the scale of a row; return the factor of its numbers, spread."""
    build, size = code.builder, vector_bytes()
    floats, wide = code.vector(code.f32, size), code.vector(code.i32, size)
    largest = code.variable(code.same(code.i32, size, 0))
    with code.loop(code.number(0), width, size) as column:
        values = code.load(source, build.mul(column, code.number(4)), floats)
        bits = size_bits(code, values)
        largest.set(code.call(f"llvm.umax.v{size}i32", wide, largest.get(), bits))
    scale, factor = scale_and_factor(code, largest.get(), _HIGHEST)
    code.store(scale, target, 0)
    return code.spread(factor, size)


def _row_bytes(code: Code, width: ir.Value) -> ir.Value:
    build = code.builder
    return build.add(build.mul(width, code.number(2)), code.number(EXTRA_BYTES))


class _DotProduct(NamedTuple):
    """Arguments of the kernel of products.

    Attributes:
        rows: Number of rows.
        width: Numbers of a row.
        outputs: Number of outputs.
        rounded: Address of the rows, from `round_rows`.
        weight: Address of the weights (outputs, width).
        out: Address of the products (rows, outputs), float32.
        scale: Address of the factor of each output, float32; None for no factors.
    """

    rows: ir.Value
    width: ir.Value
    outputs: ir.Value
    rounded: ir.Value
    weight: ir.Value
    out: ir.Value
    scale: ir.Value | None = None


def _write_product(code: Code, piece: ir.Value, arguments: Sequence[ir.Value]) -> None:
    """Write the code that multiplies all rows by 16 outputs."""
    outputs = _DotProduct(*arguments).outputs
    write_outputs(code, first_output(code, piece, outputs, OUTPUTS), arguments)


def write_outputs(
    code: Code, first: ir.Value, arguments: Sequence[ir.Value], *, scale: ir.Value | None = None
) -> None:
    """Write the code that multiplies all rows by 16 outputs, from output *first*.

    Args:
        code: Where the code is written.
        first: Number of the first output.
        arguments: Those of `_DotProduct` but *scale*.
        scale: Address of the factor of each output, float32; None for no factors.
    """
    given, build = _DotProduct(*arguments)._replace(scale=scale), code.builder
    for row, count in code.portions(given.rows, tuple(_together())):
        rows = [build.add(row, code.number(each)) for each in range(count)]
        _DotBlock(code, rows, first, given).write()


def _together() -> dict[int, int]:
    """Return numbers of rows, and for each the number of outputs that are computed together.

    There are two sums for each row and output, and as many registers as this takes.
    """
    return {4: 2, 2: 4, 1: 4} if vector_bytes() == 64 else {2: 2, 1: 4}


class _DotBlock:
    """Writes the code that multiplies some rows by 16 outputs.

    Args:
        code: Where the code is written.
        rows: The numbers of the rows.
        first: Number of the first output.
        given: The arguments of the kernel.
    """

    def __init__(
        self, code: Code, rows: Sequence[ir.Value], first: ir.Value, given: _DotProduct
    ) -> None:
        build = code.builder
        self._code, self._rows, self._first, self._given = code, rows, first, given
        self._size = vector_bytes()
        self._kind = code.vector(code.i32, self._size // 4)
        line = _row_bytes(code, given.width)
        self._rounded = [
            code.pointer(build.add(given.rounded, build.mul(row, line))) for row in rows
        ]
        # The sums of a row, for each output that of the upper bytes and that of the lower.
        self._sums = [code.room(OUTPUTS * 2 * self._size) for _ in rows]

    def write(self) -> None:
        """Write the code."""
        code, build, given = self._code, self._code.builder, self._given
        for sums, rounded in zip(self._sums, self._rounded, strict=True):
            for part in range(2):
                start = code.load(rounded, _SUMS_AT + part * self._size, self._kind)
                for output in range(OUTPUTS):
                    code.store(start, sums, (2 * output + part) * self._size)
        together = _together()[len(self._rows)]
        with code.loop(code.number(0), given.width, _COLUMNS_TOGETHER) as start:
            stop = build.add(start, code.number(_COLUMNS_TOGETHER))
            stop = build.select(build.icmp_signed("<", stop, given.width), stop, given.width)
            with code.loop(code.number(0), code.number(OUTPUTS), together) as output:
                self._write_columns((start, stop), output, together)
        for row, sums, rounded in zip(self._rows, self._sums, self._rounded, strict=True):
            self._write_results(row, sums, code.load(rounded, 0, code.f32))

    def _write_columns(
        self, columns: tuple[ir.Value, ir.Value], output: ir.Value, count: int
    ) -> None:
        """Write the code that adds the products of some columns with *count* outputs."""
        code, build, size = self._code, self._code.builder, self._size
        place = build.mul(output, code.number(2 * size))
        places = [build.add(place, code.number(each * size)) for each in range(2 * count)]
        totals = [
            [code.variable(code.load(sums, at, self._kind)) for at in places] for sums in self._sums
        ]
        numbers = [build.add(build.add(self._first, output), code.number(n)) for n in range(count)]
        weights = [
            code.pointer(build.add(self._given.weight, build.mul(each, self._given.width)))
            for each in numbers
        ]
        # The next outputs are fetched, because the processor's own prefetcher stops at every page.
        distance = _AHEAD_OF_ONE if len(self._rows) == 1 else _AHEAD
        ahead = build.mul(self._given.width, code.number(distance))
        with code.loop(*columns, STEP) as start:
            for weight in weights:
                code.prefetch(weight, build.add(start, ahead))
            for part in range(0, STEP, size):
                self._write_part(build.add(start, code.number(part)), weights, totals)
        for sums, of_row in zip(self._sums, totals, strict=True):
            for at, total in zip(places, of_row, strict=True):
                code.store(total.get(), sums, at)

    def _write_part(
        self,
        column: ir.Value,
        weights: Sequence[ir.Value],
        totals: Sequence[Sequence[Variable]],
    ) -> None:
        """Write the code for the columns that fill one register."""
        code, build = self._code, self._code.builder
        kind = code.vector(code.i8, self._size)
        at = build.add(build.mul(column, code.number(2)), code.number(EXTRA_BYTES))
        halves = [
            [
                code.load(each, build.add(at, code.number(part * self._size)), kind)
                for part in range(2)
            ]
            for each in self._rounded
        ]
        for index, weight in enumerate(weights):
            value = build.xor(code.load(weight, column, kind), code.same(code.i8, self._size, -128))
            for of_row, both in zip(totals, halves, strict=True):
                for part, half in enumerate(both):
                    total = of_row[2 * index + part]
                    total.set(add_dots(code, total.get(), value, half))

    def _write_results(self, row: ir.Value, sums: ir.Value, scale: ir.Value) -> None:
        """Write the code that adds up the sums of *row*, and stores its products."""
        code, build, given, size = self._code, self._code.builder, self._given, self._size
        lanes = size // 4
        kind = code.vector(code.f32, lanes)
        line = build.add(build.mul(row, given.outputs), self._first)
        for first in range(0, OUTPUTS, lanes):
            found = []
            for output in range(first, first + lanes):
                upper, lower = (
                    build.sitofp(code.load(sums, (2 * output + part) * size, self._kind), kind)
                    for part in range(2)
                )
                found.append(code.fused(upper, code.same(code.f32, lanes, 256.0), lower))
            columns = code.transposed(found)
            while len(columns) > 1:
                half = len(columns) // 2
                columns = [
                    build.fadd(*pair) for pair in zip(columns[:half], columns[half:], strict=True)
                ]
            product = build.fmul(columns[0], code.spread(scale, lanes))
            if given.scale is not None:
                at = build.mul(build.add(self._first, code.number(first)), code.number(4))
                product = build.fmul(product, code.load(code.pointer(given.scale), at, kind))
            offset = build.mul(build.add(line, code.number(first)), code.number(4))
            code.store(product, code.pointer(given.out), offset)


_round = LazyKernel(write_rounding, arguments=3)
_product = LazyKernel(_write_product, arguments=6)
