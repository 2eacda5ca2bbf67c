"""Rows in 16 bits, as `dots.py` multiplies them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from idefics_cli.models.kernels.blocks import scale_and_factor, size_bits
from idefics_cli.models.kernels.byte_dots import add_dots, has_dots
from idefics_cli.models.kernels.compiler import vector_bytes
from idefics_cli.models.kernels.jit import Code, LazyKernel, Variable

if TYPE_CHECKING:
    from llvmlite import ir

EXTRA_BYTES = 192
"""A rounded row takes two bytes for each number, and this many more; see `write_rounding`."""

SUMS_AT = 64
"""Where the sums of a rounded row begin; see `write_rounding`."""

# The upper byte is at most 127 and the lower at least -128, so no number is larger than this.
_HIGHEST = 127 * 256


def round_rows(rows: Tensor) -> Tensor:
    """Return *rows* (N, in) float32 in 16 bits, (N, 2 in + 192) uint8; see `write_rounding`."""
    count, width = rows.shape
    rounded = torch.empty(count, 2 * width + EXTRA_BYTES, dtype=torch.uint8)
    _round(count, width, rows.data_ptr(), rounded.data_ptr())
    return rounded


def write_rounding(code: Code, row: ir.Value, arguments: Sequence[ir.Value]) -> None:
    """Write the code that rounds one row.

    A rounded row begins with its scale, in float32; its numbers begin at byte 192. If the processor
    multiplies bytes, a register of upper bytes and one of lower bytes alternate. At byte 64 there
    is then a register of sums for each kind: minus 128 times the bytes. They undo the 128 that is
    added to all weights to keep them from being negative.
    """
    width, rows, rounded = arguments
    build, size = code.builder, vector_bytes()
    floats, wide = code.vector(code.f32, size), code.vector(code.i32, size)
    source = code.pointer(build.add(rows, build.mul(row, build.mul(width, code.number(4)))))
    target = code.pointer(build.add(rounded, build.mul(row, row_bytes(code, width))))
    factor = _write_scale(code, source, target, width)
    zero = code.same(code.i32, size // 4, 0)
    sums = [code.variable(zero) for _ in range(2 if has_dots() else 0)]
    with code.loop(code.number(0), width, size) as column:
        values = code.load(source, build.mul(column, code.number(4)), floats)
        values = code.call(f"llvm.rint.v{size}f32", floats, build.fmul(values, factor))
        whole = build.fptosi(values, wide)
        at = build.add(build.mul(column, code.number(2)), code.number(EXTRA_BYTES))
        if has_dots():
            _write_bytes(code, whole, target, at, sums)
        else:
            code.store(build.trunc(whole, code.vector(code.i16, size)), target, at)
    for part, total in enumerate(sums):
        code.store(build.neg(total.get()), target, SUMS_AT + part * size)


def _write_bytes(
    code: Code, whole: ir.Value, target: ir.Value, at: ir.Value, sums: Sequence[Variable]
) -> None:
    """Write the code that stores the bytes of *whole*, and adds to their sums."""
    build, size = code.builder, vector_bytes()
    high = code.same(code.i8, size, -128)
    upper = build.add(whole, code.same(code.i32, size, 128))
    upper = build.ashr(upper, code.same(code.i32, size, 8))
    for part, (value, total) in enumerate(zip((upper, whole), sums, strict=True)):
        narrow = build.trunc(value, code.vector(code.i8, size))
        code.store(narrow, target, build.add(at, code.number(part * size)))
        total.set(add_dots(code, total.get(), high, narrow))


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


def row_bytes(code: Code, width: ir.Value) -> ir.Value:
    """Return the bytes of a rounded row of *width* numbers."""
    build = code.builder
    return build.add(build.mul(width, code.number(2)), code.number(EXTRA_BYTES))


_round = LazyKernel(write_rounding, arguments=3)
