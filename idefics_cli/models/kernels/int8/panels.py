"""Products of 8-bit weights with many rows of 16-bit numbers.

A thread takes 64 outputs and some hundred rows. It widens the weights to 16 bits and lays them out
in panels, in which a register holds two weights of each output. So two numbers of a row, repeated
all over a register, are multiplied by the weights of all its outputs at once. `dots.py` reads
weights as they are, but loads twice as many registers for a product, and adds up registers at its
end. Laying out pays for many rows: with 1,024 rows, products take 0.8 of the time of `dots.py`, and
0.6 of the time of float32 (768 to 3,072, AMD Zen 3).

Only processors that do not multiply bytes gain: with the instruction of `byte_dots.py`, `dots.py`
is faster.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from idefics_cli.models.kernels import jit
from idefics_cli.models.kernels.blocks import find_piece, rows_of_piece
from idefics_cli.models.kernels.byte_dots import add_pairs, has_dots
from idefics_cli.models.kernels.compiler import vector_bytes
from idefics_cli.models.kernels.int8.rounding import EXTRA_BYTES, round_rows, row_bytes
from idefics_cli.models.kernels.jit import Code, LazyKernel

if TYPE_CHECKING:
    from llvmlite import ir

FEWEST_ROWS = 64
"""With fewer rows, `dots.py` is as fast."""
# A row is padded to a multiple of this many numbers.
_STEP = 64
# Number of outputs of a piece.
_OUTPUTS = 64
# Of so many columns, the sums of products fit into 32 bits, and a panel stays in the L1 cache.
_COLUMNS = 512
# So many rows of `_COLUMNS` columns stay in the L2 cache, while all panels of a piece use them.
_MOST_ROWS = 256
# The sums of so many rows fit into the registers.
_ROWS_TOGETHER = 6


def fits(outputs: int) -> bool:
    """Whether the kernel can multiply by weights of *outputs* outputs, and gains from it."""
    return not has_dots() and outputs % _panel_outputs() == 0


def passes_self_test() -> bool:
    """Whether the kernel, where it is used, computes a small example correctly."""
    return has_dots() or jit.passes(_computes_an_example)


def product(rows: Tensor, weight: Tensor, scale: Tensor, bias: Tensor | None) -> Tensor:
    """Return (N, out) float32, the outputs of a linear layer.

    Args:
        rows: (N, in) float32.
        weight: (out, in) int8 from -127 to 127, contiguous; `fits` accepts *out*.
        scale: (out,) float32, the factor of each output.
        bias: (out,) float32; None for no bias.
    """
    if missing := -rows.shape[1] % _STEP:
        rows, weight = (functional.pad(each, (0, missing)) for each in (rows, weight))
    count, (outputs, width) = len(rows), weight.shape
    rounded = round_rows(rows.contiguous())
    bias = torch.zeros(outputs) if bias is None else bias.contiguous()
    out = torch.empty(count, outputs)
    tensors = (rounded, weight, scale, bias, out)
    together = rows_of_piece(count, most=_MOST_ROWS, step=_ROWS_TOGETHER)
    pieces = -(-count // together) * -(-outputs // _OUTPUTS)
    _product(pieces, count, together, width, outputs, *(each.data_ptr() for each in tensors))
    return out


def _computes_an_example() -> bool:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (96, 192), generator=generator, dtype=torch.int8)
    rows, scale = torch.randn(7, 192, generator=generator), torch.rand(96, generator=generator)
    exact = functional.linear(rows, weight.float()) * scale
    return bool((product(rows, weight, scale, None) - exact).norm() < 2e-4 * exact.norm())


def _panel_outputs() -> int:
    """Return the number of outputs of a panel: those of two registers."""
    return vector_bytes() // 2


class _PanelProduct(NamedTuple):
    """Arguments of the kernel.

    Attributes:
        rows: Number of rows.
        together: Number of rows of a piece.
        width: Numbers of a row, a multiple of 64.
        outputs: Number of outputs.
        rounded: Address of the rows, from `round_rows`.
        weight: Address of the weights (outputs, width).
        scale: Address of the factor of each output, float32.
        bias: Address of what is added to each output, float32.
        out: Address of the outputs (rows, outputs), float32.
    """

    rows: ir.Value
    together: ir.Value
    width: ir.Value
    outputs: ir.Value
    rounded: ir.Value
    weight: ir.Value
    scale: ir.Value
    bias: ir.Value
    out: ir.Value


def _write_product(code: Code, piece: ir.Value, arguments: Sequence[ir.Value]) -> None:
    """Write the code that multiplies some rows by up to 64 outputs."""
    given, build = _PanelProduct(*arguments), code.builder
    rows, outputs = (given.rows, given.together), (given.outputs, _OUTPUTS)
    mine = find_piece(code, piece, rows, outputs)
    panel = code.room(2 * _COLUMNS * _panel_outputs())
    with code.loop(code.number(0), given.width, _COLUMNS) as start:
        left = build.sub(given.width, start)
        columns = _Columns(start, code.smaller(code.number(_COLUMNS), left))
        with code.loop(mine.first, mine.stop, _panel_outputs()) as output:
            block = _PanelBlock(code, given, columns, output)
            block.write_panel(panel)
            for row, count in code.portions(mine.rows, (_ROWS_TOGETHER, 2, 1)):
                block.write_rows(panel, build.add(mine.first_row, row), count)


class _Columns(NamedTuple):
    """The columns that are multiplied at a time: the first of them, and their number."""

    first: ir.Value
    count: ir.Value


class _PanelBlock:
    """Writes the code that multiplies rows by the outputs of one panel, in some columns.

    Args:
        code: Where the code is written.
        given: The arguments of the kernel.
        columns: The columns.
        output: Number of the first output.
    """

    def __init__(
        self, code: Code, given: _PanelProduct, columns: _Columns, output: ir.Value
    ) -> None:
        self._code, self._given, self._columns, self._output = code, given, columns, output
        self._lanes = vector_bytes() // 4
        self._pairs = code.vector(code.i16, 2 * self._lanes)
        self._floats = code.vector(code.f32, self._lanes)

    def write_panel(self, panel: ir.Value) -> None:
        """Write the code that lays out the weights at *panel*: of each two columns, all outputs."""
        code, build, lanes = self._code, self._code.builder, self._lanes
        narrow = code.vector(code.i8, 2 * lanes)
        for half in range(2):
            output = build.add(self._output, code.number(half * lanes))
            first = build.add(build.mul(output, self._given.width), self._columns.first)
            source = code.pointer(build.add(self._given.weight, first))
            with code.loop(code.number(0), self._columns.count, 2 * lanes) as column:
                lines = [
                    build.add(column, build.mul(self._given.width, code.number(line)))
                    for line in range(lanes)
                ]
                wide = [build.sext(code.load(source, at, narrow), self._pairs) for at in lines]
                whole = [build.bitcast(each, code.vector(code.i32, lanes)) for each in wide]
                place = build.mul(column, code.number(4 * lanes))
                for pair, values in enumerate(code.transposed(whole)):
                    at = build.add(place, code.number(4 * lanes * (2 * pair + half)))
                    code.store(values, panel, at)

    def write_rows(self, panel: ir.Value, row: ir.Value, count: int) -> None:
        """Write the code that multiplies *count* rows, from *row*, by the weights at *panel*."""
        code, build, lanes = self._code, self._code.builder, self._lanes
        line = row_bytes(code, self._given.width)
        rows = [build.add(row, code.number(each)) for each in range(count)]
        heads = [build.add(self._given.rounded, build.mul(each, line)) for each in rows]
        start = build.add(build.mul(self._columns.first, code.number(2)), code.number(EXTRA_BYTES))
        numbers = [code.pointer(build.add(head, start)) for head in heads]
        zero = code.same(code.i32, lanes, 0)
        sums = [[code.variable(zero) for _ in range(2)] for _ in rows]
        with code.loop(code.number(0), self._columns.count, 4) as column:
            for part in (0, 2):
                place = build.add(column, code.number(part))
                at = build.mul(place, code.number(4 * lanes))
                weights = [
                    code.load(panel, build.add(at, code.number(4 * lanes * half)), self._pairs)
                    for half in range(2)
                ]
                for source, of_row in zip(numbers, sums, strict=True):
                    pair = code.load(source, build.mul(place, code.number(2)), code.i32)
                    spread = build.bitcast(code.spread(pair, lanes), self._pairs)
                    for total, weight in zip(of_row, weights, strict=True):
                        total.set(add_pairs(code, total.get(), weight, spread))
        for each, head, of_row in zip(rows, heads, sums, strict=True):
            scale = code.load(code.pointer(head), 0, code.f32)
            self._write_outputs(each, scale, [total.get() for total in of_row])

    def _write_outputs(self, row: ir.Value, scale: ir.Value, sums: Sequence[ir.Value]) -> None:
        """Write the code that adds *sums* to the outputs of *row*."""
        code, build, given = self._code, self._code.builder, self._given
        is_first = build.icmp_signed("==", self._columns.first, code.number(0))
        line = build.mul(row, given.outputs)
        for half, total in enumerate(sums):
            output = build.add(self._output, code.number(half * self._lanes))
            at = build.mul(output, code.number(4))
            place = build.mul(build.add(line, output), code.number(4))
            bias = code.load(code.pointer(given.bias), at, self._floats)
            so_far = code.load(code.pointer(given.out), place, self._floats)
            factor = code.load(code.pointer(given.scale), at, self._floats)
            factor = build.fmul(factor, code.spread(scale, self._lanes))
            found = build.sitofp(total, self._floats)
            found = code.fused(found, factor, build.select(is_first, bias, so_far))
            code.store(found, code.pointer(given.out), place)


_product = LazyKernel(_write_product, arguments=9)
