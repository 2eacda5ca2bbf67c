"""Products of 8-bit weights with rows of 16-bit numbers, in the integer units of the processor.

A row in 8 bits would add an error as large as that of the weights, so each number of a row is
rounded to 16 bits; the error of this is a hundredth of that of the weights. There are two ways:

- A processor with the instruction of `byte_dots.py` multiplies 64 pairs of bytes at once. A number
  of a row is two bytes: the product is that of the upper bytes times 256, plus that of the lower.
- Every other one widens the weights to 16 bits. This takes half the instructions of float32.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from idefics_cli.models.kernels.blocks import Distance, first_output, write_prefetch
from idefics_cli.models.kernels.byte_dots import add_dots, add_pairs, has_dots
from idefics_cli.models.kernels.compiler import vector_bytes
from idefics_cli.models.kernels.int8.rounding import EXTRA_BYTES, SUMS_AT, round_rows, row_bytes
from idefics_cli.models.kernels.jit import Code, LazyKernel, Variable

if TYPE_CHECKING:
    from llvmlite import ir

_Totals = Sequence[Sequence[Variable]]

STEP = 64
"""The width is a multiple of this."""
MOST_WIDTH = 2**18
"""Up to this width, the sums of the products of bytes fit into 32 bits with their sign."""
OUTPUTS = 16
"""Number of outputs that are computed together; there are as many or more."""
# The numbers of these columns of 4 rows stay in the L1 cache while 16 outputs use them. And the
# sums of so many products of 16-bit numbers fit into 32 bits.
_COLUMNS_TOGETHER = 4096
# The weights that are read this many outputs later are prefetched: a few kilobytes ahead.
_AHEAD_OF_ONE, _AHEAD = 4, 8
# Outputs with at most this many bytes are prefetched in the order of their addresses.
_SHORT_BYTES = 3072


def fits(outputs: int, width: int) -> bool:
    """Whether the kernel can multiply by weights (outputs, width)."""
    return outputs >= OUTPUTS and width % STEP == 0 and width <= MOST_WIDTH


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
    block = _ByteBlock if has_dots() else _WordBlock
    for row, count in code.portions(given.rows, tuple(_together())):
        rows = [build.add(row, code.number(each)) for each in range(count)]
        block(code, rows, first, given).write()


def _together() -> dict[int, int]:
    """Return numbers of rows, and for each the number of outputs that are computed together.

    There are as many registers as the sums of all rows and outputs take, or more.
    """
    return {4: 2, 2: 4, 1: 4} if vector_bytes() == 64 or not has_dots() else {2: 2, 1: 4}


class _Block(ABC):
    """Writes the code that multiplies some rows by 16 outputs.

    Args:
        code: Where the code is written.
        rows: The numbers of the rows.
        first: Number of the first output.
        given: The arguments of the kernel.
    """

    parts: ClassVar[int]
    """Number of registers for the sums of a row and an output."""
    stored_bits: ClassVar[int]
    """Number of bits of a weight in a register."""

    def __init__(
        self, code: Code, rows: Sequence[ir.Value], first: ir.Value, given: _DotProduct
    ) -> None:
        build = code.builder
        self.code = code
        self.size = vector_bytes()
        self.sum_kind = code.vector(code.i32, self.size // 4)
        self.float_kind = code.vector(code.f32, self.size // 4)
        self._rows, self._first, self._given = rows, first, given
        line = row_bytes(code, given.width)
        self.rounded = [
            code.pointer(build.add(given.rounded, build.mul(row, line))) for row in rows
        ]
        self._sums = [code.room(OUTPUTS * self.parts * self.size) for _ in rows]

    @abstractmethod
    def begin(self, rounded: ir.Value, part: int) -> ir.Value:
        """Return the sum with which part *part* of the row at *rounded* begins."""

    @abstractmethod
    def load_total(self, sums: ir.Value, place: ir.Value) -> ir.Value:
        """Return where the sum of the next columns begins; the sum so far is at *place*."""

    @abstractmethod
    def store_total(self, total: ir.Value, sums: ir.Value, place: ir.Value) -> None:
        """Write the code that keeps *total* at *place* of *sums*, with that of earlier columns."""

    @abstractmethod
    def write_register(
        self, column: ir.Value, numbers: ir.Value, weights: Sequence[ir.Value], totals: _Totals
    ) -> None:
        """Write the code that adds the products of the columns that fill a register of weights.

        Args:
            column: The first of them.
            numbers: Place of their numbers in a rounded row.
            weights: Addresses of the weights of each output.
            totals: The sums of each row: for each output, those of its parts.
        """

    @abstractmethod
    def whole(self, sums: ir.Value, output: int) -> ir.Value:
        """Return the sums of *output*, a register of float32."""

    def write(self) -> None:
        """Write the code."""
        code, build, given = self.code, self.code.builder, self._given
        for sums, rounded in zip(self._sums, self.rounded, strict=True):
            for part in range(self.parts):
                start = self.begin(rounded, part)
                for output in range(OUTPUTS):
                    code.store(start, sums, (self.parts * output + part) * self.size)
        together = _together()[len(self._rows)]
        with code.loop(code.number(0), given.width, _COLUMNS_TOGETHER) as start:
            stop = code.smaller(build.add(start, code.number(_COLUMNS_TOGETHER)), given.width)
            with code.loop(code.number(0), code.number(OUTPUTS), together) as output:
                self._write_columns((start, stop), output, together)
        for row, sums, rounded in zip(self._rows, self._sums, self.rounded, strict=True):
            self._write_results(row, sums, code.load(rounded, 0, code.f32))

    def _write_columns(
        self, columns: tuple[ir.Value, ir.Value], output: ir.Value, count: int
    ) -> None:
        """Write the code that adds the products of some columns with *count* outputs."""
        code, build, size = self.code, self.code.builder, self.size
        place = build.mul(output, code.number(self.parts * size))
        places = [build.add(place, code.number(at * size)) for at in range(self.parts * count)]
        totals = [
            [code.variable(self.load_total(sums, at)) for at in places] for sums in self._sums
        ]
        numbers = [build.add(build.add(self._first, output), code.number(n)) for n in range(count)]
        weights = [
            code.pointer(build.add(self._given.weight, build.mul(each, self._given.width)))
            for each in numbers
        ]
        distance = _AHEAD_OF_ONE if len(self._rows) == 1 else _AHEAD
        ahead = build.mul(self._given.width, code.number(distance))
        with code.loop(*columns, STEP) as start:
            write_prefetch(
                code,
                weights[0],
                code.number(0),
                self._given.width,
                start,
                Distance(ahead, ahead),
                outputs=count,
                step=STEP,
                longest=_SHORT_BYTES,
            )
            for first in range(0, STEP, 8 * size // self.stored_bits):
                column = build.add(start, code.number(first))
                numbers = build.add(build.mul(column, code.number(2)), code.number(EXTRA_BYTES))
                self.write_register(column, numbers, weights, totals)
        for sums, of_row in zip(self._sums, totals, strict=True):
            for at, total in zip(places, of_row, strict=True):
                self.store_total(total.get(), sums, at)

    def _write_results(self, row: ir.Value, sums: ir.Value, scale: ir.Value) -> None:
        """Write the code that adds up the sums of *row*, and stores its products."""
        code, build, given = self.code, self.code.builder, self._given
        lanes = self.size // 4
        line = build.add(build.mul(row, given.outputs), self._first)
        for first in range(0, OUTPUTS, lanes):
            found = [self.whole(sums, output) for output in range(first, first + lanes)]
            columns = code.transposed(found)
            while len(columns) > 1:
                half = len(columns) // 2
                columns = [
                    build.fadd(*pair) for pair in zip(columns[:half], columns[half:], strict=True)
                ]
            product = build.fmul(columns[0], code.spread(scale, lanes))
            if given.scale is not None:
                at = build.mul(build.add(self._first, code.number(first)), code.number(4))
                factors = code.load(code.pointer(given.scale), at, self.float_kind)
                product = build.fmul(product, factors)
            offset = build.mul(build.add(line, code.number(first)), code.number(4))
            code.store(product, code.pointer(given.out), offset)


class _ByteBlock(_Block):
    """Sums of an output are those of the upper bytes of the row, and those of the lower."""

    parts, stored_bits = 2, 8

    def begin(self, rounded: ir.Value, part: int) -> ir.Value:
        """See `_Block.begin`."""
        return self.code.load(rounded, SUMS_AT + part * self.size, self.sum_kind)

    def load_total(self, sums: ir.Value, place: ir.Value) -> ir.Value:
        """See `_Block.load_total`."""
        return self.code.load(sums, place, self.sum_kind)

    def store_total(self, total: ir.Value, sums: ir.Value, place: ir.Value) -> None:
        """See `_Block.store_total`."""
        self.code.store(total, sums, place)

    def write_register(
        self, column: ir.Value, numbers: ir.Value, weights: Sequence[ir.Value], totals: _Totals
    ) -> None:
        """See `_Block.write_register`."""
        code, build = self.code, self.code.builder
        kind = code.vector(code.i8, self.size)
        high = code.same(code.i8, self.size, -128)
        places = [build.add(numbers, code.number(part * self.size)) for part in range(2)]
        halves = [[code.load(row, place, kind) for place in places] for row in self.rounded]
        for index, weight in enumerate(weights):
            value = build.xor(code.load(weight, column, kind), high)
            for of_row, both in zip(totals, halves, strict=True):
                for part, half in enumerate(both):
                    total = of_row[2 * index + part]
                    total.set(add_dots(code, total.get(), value, half))

    def whole(self, sums: ir.Value, output: int) -> ir.Value:
        """See `_Block.whole`."""
        code, build = self.code, self.code.builder
        upper, lower = (
            build.sitofp(
                code.load(sums, (2 * output + part) * self.size, self.sum_kind), self.float_kind
            )
            for part in range(2)
        )
        return code.fused(upper, code.same(code.f32, self.size // 4, 256.0), lower)


class _WordBlock(_Block):
    """Sums of an output are in float32, because 32 bits suffice for some columns only."""

    parts, stored_bits = 1, 16

    def begin(self, rounded: ir.Value, part: int) -> ir.Value:
        """See `_Block.begin`."""
        return self.code.same(self.code.f32, self.size // 4, 0.0)

    def load_total(self, sums: ir.Value, place: ir.Value) -> ir.Value:
        """See `_Block.load_total`."""
        return self.code.same(self.code.i32, self.size // 4, 0)

    def store_total(self, total: ir.Value, sums: ir.Value, place: ir.Value) -> None:
        """See `_Block.store_total`."""
        code, build = self.code, self.code.builder
        wide = build.sitofp(total, self.float_kind)
        code.store(build.fadd(code.load(sums, place, self.float_kind), wide), sums, place)

    def write_register(
        self, column: ir.Value, numbers: ir.Value, weights: Sequence[ir.Value], totals: _Totals
    ) -> None:
        """See `_Block.write_register`."""
        code, build = self.code, self.code.builder
        narrow, kind = (code.vector(each, self.size // 2) for each in (code.i8, code.i16))
        rows = [code.load(row, numbers, kind) for row in self.rounded]
        for index, weight in enumerate(weights):
            wide = build.sext(code.load(weight, column, narrow), kind)
            for of_row, each in zip(totals, rows, strict=True):
                of_row[index].set(add_pairs(code, of_row[index].get(), wide, each))

    def whole(self, sums: ir.Value, output: int) -> ir.Value:
        """See `_Block.whole`."""
        return self.code.load(sums, output * self.size, self.float_kind)


_product = LazyKernel(_write_product, arguments=6)
