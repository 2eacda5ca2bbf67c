"""The code that unpacks weights of 12 bits; `kernel.py` describes its arguments."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from idefics_cli.models.kernels.bf16_12bit.layout import (
    EXPONENTS_AT,
    GROUP,
    GROUP_BYTES,
    LANES,
    LEVELS,
    PAIR_BYTES,
    PAIRS,
)
from idefics_cli.models.kernels.compiler import vector_bytes
from idefics_cli.models.kernels.jit import Code

if TYPE_CHECKING:
    from llvmlite import ir


def unpacked_pair(
    code: Code, packed: ir.Value, base: ir.Value, exponents: ir.Value, pair: int, part: int
) -> ir.Value:
    """Return two columns of a group as pairs of bfloat16, for the lanes of one register.

    Each element of the vector, 32 bits wide, is a pair; the first weight is in its lower half.
    """
    build, count = code.builder, vector_bytes() // 2
    kind = code.vector(code.i16, count)
    offset = build.add(base, code.number(PAIR_BYTES * pair + count * part))
    rest = build.zext(code.load(packed, offset, code.vector(code.i8, count)), kind)
    # The sign moves to the highest bit, and the fraction stays.
    rest = build.or_(rest, build.shl(rest, code.same(code.i16, count, 8)))
    rest = build.and_(rest, code.same(code.i16, count, 0x807F - 2**16))
    shift = 7 - 4 * pair
    moved = (
        build.shl(exponents, code.same(code.i16, count, shift))
        if shift > 0
        else build.lshr(exponents, code.same(code.i16, count, -shift))
    )
    levels = build.and_(moved, code.same(code.i16, count, LEVELS << 7))
    # The four lowest bits of 127 - 15 = 112 are zero, so "or" adds the level to it.
    levels = build.or_(levels, code.same(code.i16, count, (127 - LEVELS) << 7))
    return build.bitcast(build.or_(rest, levels), code.vector(code.i32, count // 2))


def widened(code: Code, pair: ir.Value) -> tuple[ir.Value, ir.Value]:
    """Return the first and the second weights of *pair*, from `unpacked_pair`, as float32."""
    build, lanes = code.builder, pair.type.count
    kind = code.vector(code.f32, lanes)
    first = build.shl(pair, code.same(code.i32, lanes, 16))
    second = build.and_(pair, code.same(code.i32, lanes, 0xFFFF0000 - 2**32))
    return build.bitcast(first, kind), build.bitcast(second, kind)


def write_unpack(code: Code, block: ir.Value, arguments: Sequence[ir.Value]) -> None:
    """Write the code that unpacks 16 outputs to float32, transposed."""
    groups, blocks, packed, scale, starts, positions, values, wide = arguments
    build, lanes = code.builder, vector_bytes() // 4
    source, target = code.pointer(packed), code.pointer(wide)
    line = build.mul(blocks, code.number(4 * LANES))
    first = build.mul(block, code.number(4 * LANES))
    for part in range(LANES // lanes):
        at = build.add(first, code.number(4 * lanes * part))
        scales = code.load(code.pointer(scale), at, code.vector(code.f32, lanes))
        with code.loop(code.number(0), groups) as group:
            base = build.add(build.mul(block, groups), group)
            base = build.mul(base, code.number(GROUP_BYTES))
            exponents = load_exponents(code, source, base, part)
            for pair in range(PAIRS):
                both = widened(code, unpacked_pair(code, source, base, exponents, pair, part))
                for number, value in enumerate(both, start=2 * pair):
                    row = build.add(build.mul(group, code.number(GROUP)), code.number(number))
                    offset = build.add(build.mul(row, line), at)
                    code.store(build.fmul(value, scales), target, offset)
    with outliers_of(code, block, starts, positions, values) as (lane, column, value):
        offset = build.add(build.mul(column, line), first)
        code.store(value, target, build.add(offset, build.mul(lane, code.number(4))))


def load_exponents(code: Code, packed: ir.Value, base: ir.Value, part: int) -> ir.Value:
    """Return the exponents of a group: for each lane two words, which hold 4 of them each."""
    count = vector_bytes() // 2
    offset = code.builder.add(base, code.number(EXPONENTS_AT + 2 * count * part))
    return code.load(packed, offset, code.vector(code.i16, count))


@contextmanager
def outliers_of(
    code: Code, block: ir.Value, starts: ir.Value, positions: ir.Value, values: ir.Value
) -> Iterator[tuple[ir.Value, ir.Value, ir.Value]]:
    """Repeat the code of the `with` block for each outlier of 16 outputs.

    The block gets the lane, the column and the weight of the outlier.
    """
    build = code.builder
    at = build.mul(block, code.number(8))
    start, stop = (
        code.load(code.pointer(starts), build.add(at, code.number(8 * which)), code.i64)
        for which in range(2)
    )
    with code.loop(start, stop) as index:
        offset = build.mul(index, code.number(8))
        lane, column = (
            build.zext(
                code.load(code.pointer(positions), build.add(offset, code.number(field)), code.i32),
                code.i64,
            )
            for field in (0, 4)
        )
        value = code.load(code.pointer(values), build.mul(index, code.number(4)), code.f32)
        yield lane, column, value
