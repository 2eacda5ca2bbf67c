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
    build = code.builder
    line = build.mul(blocks, code.number(4 * LANES))
    target = code.pointer(build.add(wide, build.mul(block, code.number(4 * LANES))))
    every = (code.number(0), groups)
    write_groups(code, block, every, (groups, packed, scale), target, line, ahead=GROUP_BYTES)
    with outliers_of(code, block, starts, positions, values) as (lane, column, value):
        offset = build.add(build.mul(column, line), build.mul(lane, code.number(4)))
        code.store(value, target, offset)


def write_groups(
    code: Code,
    block: ir.Value,
    chosen: tuple[ir.Value, ir.Value],
    weights: tuple[ir.Value, ir.Value, ir.Value],
    target: ir.Value,
    line: ir.Value,
    *,
    ahead: int,
) -> None:
    """Write the code that unpacks some groups of 16 outputs to float32, without the outliers.

    Args:
        code: Where the code is written.
        block: Number of the block of outputs.
        chosen: The first group, and the one after the last.
        weights: Number of groups along the width; addresses of the weights and of their scales.
        target: Pointer to (columns, 16) float32; its first column is that of the first group.
        line: Bytes from one column of *target* to the next.
        ahead: See `start_group`.
    """
    (first, stop), (groups, packed, scale) = chosen, weights
    build, lanes = code.builder, vector_bytes() // 4
    source, places = code.pointer(packed), range(0, 4 * LANES, 4 * lanes)
    scales = _scales(code, block, scale)
    with code.loop(first, stop) as group:
        base = start_group(code, source, (block, groups, group), ahead=ahead)
        column = build.mul(build.sub(group, first), code.number(GROUP))
        for part, (place, factor) in enumerate(zip(places, scales, strict=True)):
            exponents = load_exponents(code, source, base, part)
            for pair in range(PAIRS):
                both = widened(code, unpacked_pair(code, source, base, exponents, pair, part))
                for number, value in enumerate(both, start=2 * pair):
                    at = build.mul(build.add(column, code.number(number)), line)
                    at = build.add(at, code.number(place))
                    code.store(build.fmul(value, factor), target, at)


def _scales(code: Code, block: ir.Value, scale: ir.Value) -> list[ir.Value]:
    """Return the scales of 16 outputs, one register after the other."""
    lanes = vector_bytes() // 4
    first = code.builder.mul(block, code.number(4 * LANES))
    return [
        code.load(
            code.pointer(scale),
            code.builder.add(first, code.number(place)),
            code.vector(code.f32, lanes),
        )
        for place in range(0, 4 * LANES, 4 * lanes)
    ]


def start_group(
    code: Code, packed: ir.Value, place: tuple[ir.Value, ir.Value, ir.Value], *, ahead: int
) -> ir.Value:
    """Return where a group begins in *packed*, and prefetch what is *ahead* bytes after it.

    *place* is the index of the block of outputs, the count of groups along the width, and the index
    of the group.
    """
    (block, groups, group), build = place, code.builder
    base = build.mul(build.add(build.mul(block, groups), group), code.number(GROUP_BYTES))
    for line in range(0, GROUP_BYTES, 64):
        code.prefetch(packed, build.add(base, code.number(ahead + line)))
    return base


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
