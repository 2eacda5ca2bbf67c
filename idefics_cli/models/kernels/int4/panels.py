"""Products of 4-bit weights with many rows of 8-bit numbers, for registers of 32 bytes.

A thread takes 64 outputs and some hundred rows. It unpacks the weights of 16 outputs to bytes that
stay in the L1 cache, and multiplies four rows at a time by them. `kernel.py` unpacks them anew for
every two rows. Both compute the same numbers, bit for bit; this one takes 0.7 of the time for 64
rows and more (960 to 2,560 and back, AMD Zen 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from idefics_cli.models.kernels.blocks import find_piece, rows_of_piece
from idefics_cli.models.kernels.byte_dots import add_byte_pairs, has_dots, sum_pairs
from idefics_cli.models.kernels.compiler import vector_bytes
from idefics_cli.models.kernels.int4.layout import (
    GROUP,
    GROUP_BYTES,
    HEAD_BYTES,
    LANES,
    SCALE_BYTES,
    WEIGHT_BYTES,
    add_group,
    step_and_lowest,
)
from idefics_cli.models.kernels.jit import Code, LazyKernel, Variable

if TYPE_CHECKING:
    from llvmlite import ir

FEWEST_ROWS = 32
"""With fewer rows, `kernel.py` is as fast."""
_REGISTER = 32
# A register holds a value of 32 bits for each of so many outputs, or four bytes.
_OUTPUTS = _REGISTER // 4
_PARTS = LANES // _OUTPUTS
# A piece has the weights of so many blocks of 16 outputs.
_BLOCKS = 4
# A panel holds so many groups of a block: for each group its weights as bytes, four consecutive
# ones of each output side by side, then the steps and the lowest values in float32.
_GROUPS = 16
_STEPS_AT = LANES * GROUP
_LOWEST_AT = _STEPS_AT + 4 * LANES
_PANEL_BYTES = _LOWEST_AT + 4 * LANES
# So many rows of 16 groups stay in the L2 cache, while all panels of a piece use them.
_MOST_ROWS = 256
# The sums of so many rows fit into the registers.
_ROWS_TOGETHER = 4
# So many times four columns are multiplied in a pass of the loop over the columns of a group.
_FOURS_TOGETHER = 2


def gains() -> bool:
    """Whether products of many rows take less time here than in `kernel.py`."""
    return vector_bytes() == _REGISTER and not has_dots()


def product(numbers: Tensor, scales: Tensor, packed: Tensor) -> Tensor:
    """Return (N, out) float32, the products of rounded rows with 4-bit weights.

    Args:
        numbers: (N, in) int8, from `kernel.round_rows`.
        scales: (N, in / 32, 2) float32, from `kernel.round_rows`.
        packed: (out / 16, `layout.bytes_of_block`) uint8, from `layout.pack`.
    """
    count, blocks, groups = len(numbers), len(packed), scales.shape[1]
    out = torch.empty(count, blocks * LANES)
    together = rows_of_piece(count, most=_MOST_ROWS, step=_ROWS_TOGETHER)
    pieces = -(-count // together) * -(-blocks // _BLOCKS)
    sizes = (count, together, groups, blocks, GROUP // 4)
    _product(pieces, *sizes, *(each.data_ptr() for each in (packed, numbers, scales, out)))
    return out


class _Int4PanelProduct(NamedTuple):
    """Arguments of the kernel.

    Attributes:
        rows: Number of rows.
        together: Number of rows of a piece.
        groups: Number of groups along the width.
        blocks: Number of blocks of 16 outputs.
        fours: Number of columns of a group, divided by 4. If LLVM knew it, it would write out the
            loop over the columns, and the rows' numbers would not fit into the registers.
        packed: Address of the weights.
        numbers: Address of the rounded rows.
        scales: Address of the scales and sums of the rows.
        out: Address of the products (rows, outputs), float32.
    """

    rows: ir.Value
    together: ir.Value
    groups: ir.Value
    blocks: ir.Value
    fours: ir.Value
    packed: ir.Value
    numbers: ir.Value
    scales: ir.Value
    out: ir.Value


def _write_product(code: Code, piece: ir.Value, arguments: Sequence[ir.Value]) -> None:
    """Write the code that multiplies some rows by up to 64 outputs."""
    given = _Int4PanelProduct(*arguments)
    rows, blocks = (given.rows, given.together), (given.blocks, _BLOCKS)
    mine = find_piece(code, piece, rows, blocks)
    panel = code.room(_PANEL_BYTES * _GROUPS)
    with (
        code.loop(code.number(0), given.groups, _GROUPS) as first,
        code.loop(mine.first, mine.stop) as block,
    ):
        writer = _Int4Panel(code, given, block, first)
        writer.write_panel(panel)
        for row, count in code.portions(mine.rows, (_ROWS_TOGETHER, 1)):
            writer.write_rows(panel, code.builder.add(mine.first_row, row), count)


class _Int4Panel:
    """Writes the code that multiplies rows by a block of 16 outputs, in some of their groups.

    Args:
        code: Where the code is written.
        given: The arguments of the kernel.
        block: Number of the block.
        first: Number of the first group.
    """

    def __init__(
        self, code: Code, given: _Int4PanelProduct, block: ir.Value, first: ir.Value
    ) -> None:
        build = code.builder
        self._code, self._given, self._block, self._first = code, given, block, first
        self._stop = code.smaller(build.add(first, code.number(_GROUPS)), given.groups)
        size = build.mul(given.groups, code.number(GROUP_BYTES))
        size = build.add(size, code.number(HEAD_BYTES))
        self._head = build.add(given.packed, build.mul(block, size))
        self._bytes = code.vector(code.i8, _REGISTER)
        self._floats = code.vector(code.f32, _OUTPUTS)

    def write_panel(self, panel: ir.Value) -> None:
        """Write the code that unpacks the weights to *panel*."""
        code, build = self._code, self._code.builder
        groups = code.pointer(build.add(self._head, code.number(HEAD_BYTES)))
        low, shift = (code.same(code.i8, _REGISTER, value) for value in (15, 4))
        with code.loop(self._first, self._stop) as group:
            source = build.mul(group, code.number(GROUP_BYTES))
            target = self._place(group)
            for start in range(0, WEIGHT_BYTES, _REGISTER):
                both = code.load(groups, build.add(source, code.number(start)), self._bytes)
                # 64 bytes hold four consecutive weights of 16 outputs in their lower halves, and
                # the next four weights in the upper halves.
                line, part = divmod(start, 4 * LANES)
                halves = (build.and_(both, low), build.lshr(both, shift))
                for half, weights in enumerate(halves):
                    at = 8 * LANES * line + 4 * LANES * half + part
                    code.store(weights, panel, build.add(target, code.number(at)))
            for part in range(_PARTS):
                step, lowest = step_and_lowest(code, groups, source, part)
                at = build.add(target, code.number(_REGISTER * part))
                code.store(step, panel, build.add(at, code.number(_STEPS_AT)))
                code.store(lowest, panel, build.add(at, code.number(_LOWEST_AT)))

    def write_rows(self, panel: ir.Value, row: ir.Value, count: int) -> None:
        """Write the code that multiplies *count* rows, from *row*, by the weights at *panel*."""
        code, build, given = self._code, self._code.builder, self._given
        rows = [build.add(row, code.number(number)) for number in range(count)]
        lines = [build.add(build.mul(each, given.blocks), self._block) for each in rows]
        outs = [
            code.pointer(build.add(given.out, build.mul(line, code.number(4 * LANES))))
            for line in lines
        ]
        is_first = build.icmp_signed("==", self._first, code.number(0))
        is_last = build.icmp_signed("==", self._stop, given.groups)
        nothing = code.same(code.f32, _OUTPUTS, 0.0)
        totals = [
            [
                code.variable(build.select(is_first, nothing, self._part(out, part)))
                for part in range(_PARTS)
            ]
            for out in outs
        ]
        with code.loop(self._first, self._stop) as group:
            positions = [build.add(build.mul(each, given.groups), group) for each in rows]
            self._add_group(panel, self._place(group), positions, totals)
        for out, of_row in zip(outs, totals, strict=True):
            for part, total in enumerate(of_row):
                found, scale = total.get(), self._part(code.pointer(self._head), part)
                found = build.select(is_last, build.fmul(found, scale), found)
                code.store(found, out, _REGISTER * part)

    def _add_group(
        self,
        panel: ir.Value,
        place: ir.Value,
        positions: Sequence[ir.Value],
        totals: Sequence[Sequence[Variable]],
    ) -> None:
        """Add the products of one group to *totals*."""
        code, build, given = self._code, self._code.builder, self._given
        dots = self._dots(panel, place, positions)
        steps, lowest = (
            [
                code.load(panel, build.add(place, code.number(at + _REGISTER * part)), self._floats)
                for part in range(_PARTS)
            ]
            for at in (_STEPS_AT, _LOWEST_AT)
        )
        for position, of_row, sums in zip(positions, totals, dots, strict=True):
            address = build.add(given.scales, build.mul(position, code.number(SCALE_BYTES)))
            scale, whole = (code.load(code.pointer(address), at, code.f32) for at in (0, 4))
            for part, total in enumerate(of_row):
                add_group(code, total, sums[part], (scale, whole), (steps[part], lowest[part]))

    def _dots(
        self, panel: ir.Value, place: ir.Value, positions: Sequence[ir.Value]
    ) -> list[list[ir.Value]]:
        """Return for each row the dot products of one group with its weights, in 32 bits."""
        code, build, numbers = self._code, self._code.builder, self._given.numbers
        nothing = code.same(code.i16, _REGISTER // 2, 0)
        sums = [[code.variable(nothing) for _ in range(_PARTS)] for _ in positions]
        lines = [build.add(numbers, build.mul(each, code.number(GROUP))) for each in positions]
        with code.loop(code.number(0), self._given.fours, _FOURS_TOGETHER) as first:
            for number in range(_FOURS_TOGETHER):
                four = build.add(first, code.number(number))
                at = build.add(place, build.mul(four, code.number(4 * LANES)))
                weights = [
                    code.load(panel, build.add(at, code.number(_REGISTER * part)), self._bytes)
                    for part in range(_PARTS)
                ]
                for of_row, line in zip(sums, lines, strict=True):
                    source = code.load(
                        code.pointer(line), build.mul(four, code.number(4)), code.i32
                    )
                    spread = code.spread(source, _OUTPUTS)
                    for total, weight in zip(of_row, weights, strict=True):
                        # An element adds 16 products of at most 15 * 127, which 16 bits can hold.
                        total.set(add_byte_pairs(code, total.get(), weight, spread))
        return [[sum_pairs(code, each.get()) for each in of_row] for of_row in sums]

    def _place(self, group: ir.Value) -> ir.Value:
        """Return where a group starts in the panel, in bytes."""
        build = self._code.builder
        return build.mul(build.sub(group, self._first), self._code.number(_PANEL_BYTES))

    def _part(self, base: ir.Value, part: int) -> ir.Value:
        """Return the float32 values of register *part* of a block at *base*."""
        return self._code.load(base, _REGISTER * part, self._floats)


_product = LazyKernel(_write_product, arguments=9)
