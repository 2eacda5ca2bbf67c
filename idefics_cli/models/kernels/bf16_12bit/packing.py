"""The code that packs weights into 12 bits; `kernel.py` describes its arguments."""

from __future__ import annotations

from collections.abc import Sequence
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
from idefics_cli.models.kernels.jit import Code

if TYPE_CHECKING:
    from llvmlite import ir


def write_pack(code: Code, block: ir.Value, arguments: Sequence[ir.Value]) -> None:
    """Write the code that packs 16 outputs and counts their outliers."""
    groups, weight, highest, packed, counts = arguments
    build = code.builder
    first = build.mul(block, code.number(LANES))
    with code.loop(first, build.add(first, code.number(LANES))) as output:
        _write_highest(code, output, groups, weight, highest)
    count = code.variable(code.number(0))
    target = code.pointer(packed)
    with code.loop(code.number(0), groups) as group:
        base = build.add(build.mul(block, groups), group)
        base = build.mul(base, code.number(GROUP_BYTES))
        with code.loop(code.number(0), code.number(LANES)) as lane:
            given, below, fits = _representable(code, (block, lane, group), groups, weight, highest)
            # An outlier is stored as the smallest number that 12 bits hold. `write_product` later
            # adds the difference to the outlier.
            zeros = code.same(code.i16, GROUP, 0)
            bytes_ = build.select(fits, _signs_and_fractions(code, given), zeros)
            _store_bytes(code, bytes_, target, base, lane)
            levels = build.sub(code.same(code.i16, GROUP, LEVELS), below)
            _store_levels(code, build.select(fits, levels, zeros), target, base, lane)
            missing = build.zext(build.not_(fits), code.vector(code.i8, GROUP))
            more = code.call(f"llvm.vector.reduce.add.v{GROUP}i8", code.i8, missing)
            count.set(build.add(count.get(), build.zext(more, code.i64)))
    code.store(count.get(), code.pointer(counts), build.mul(block, code.number(8)))


def _signs_and_fractions(code: Code, given: ir.Value) -> ir.Value:
    """Return sign and 7 bits of fraction of each weight, in the lower half of 16 bits."""
    build = code.builder
    signs = build.and_(
        build.lshr(given, code.same(code.i16, GROUP, 8)), code.same(code.i16, GROUP, 128)
    )
    return build.or_(signs, build.and_(given, code.same(code.i16, GROUP, 127)))


def _store_bytes(
    code: Code, bytes_: ir.Value, target: ir.Value, base: ir.Value, lane: ir.Value
) -> None:
    """Write the lower halves of 8 numbers of a lane, interleaved with those of other lanes."""
    build = code.builder
    narrow = build.trunc(bytes_, code.vector(code.i8, GROUP))
    for number in range(GROUP):
        byte = build.extract_element(narrow, code.ir.Constant(code.i32, number))
        offset = build.add(base, build.mul(lane, code.number(2)))
        place = number // 2 * PAIR_BYTES + number % 2
        code.store(byte, target, build.add(offset, code.number(place)))


def _store_levels(
    code: Code, levels: ir.Value, target: ir.Value, base: ir.Value, lane: ir.Value
) -> None:
    """Write 8 exponents of a lane, 4 bits each, as the words that `_load_exponents` reads."""
    build = code.builder
    kind = code.vector(code.i16, GROUP)
    shifts = code.ir.Constant(kind, [4 * (number // 2) for number in range(GROUP)])
    shifted = build.shl(levels, shifts)
    offset = build.add(build.add(base, build.mul(lane, code.number(4))), code.number(EXPONENTS_AT))
    for which in range(2):
        chosen = code.ir.Constant(code.vector(code.i32, PAIRS), list(range(which, GROUP, 2)))
        part = build.shuffle_vector(shifted, shifted, chosen)
        word = code.call(f"llvm.vector.reduce.or.v{PAIRS}i16", code.i16, part)
        code.store(word, target, build.add(offset, code.number(2 * which)))


def _write_highest(
    code: Code, output: ir.Value, groups: ir.Value, weight: ir.Value, highest: ir.Value
) -> None:
    """Write the code that finds the largest exponent of one output."""
    build, kind = code.builder, code.vector(code.i16, GROUP)
    width = build.mul(groups, code.number(GROUP))
    source = code.pointer(weight)
    first = build.mul(build.mul(output, width), code.number(2))
    largest = code.variable(code.same(code.i16, GROUP, 0))
    with code.loop(code.number(0), groups) as group:
        offset = build.add(first, build.mul(group, code.number(2 * GROUP)))
        exponents = _exponents(code, code.load(source, offset, kind))
        largest.set(code.call(f"llvm.umax.v{GROUP}i16", kind, largest.get(), exponents))
    whole = code.call(f"llvm.vector.reduce.umax.v{GROUP}i16", code.i16, largest.get())
    offset = build.mul(output, code.number(4))
    code.store(build.zext(whole, code.i32), code.pointer(highest), offset)


def write_outliers(code: Code, block: ir.Value, arguments: Sequence[ir.Value]) -> None:
    """Write the code that collects the outliers of 16 outputs: weights that 12 bits cannot hold."""
    groups, weight, highest, starts, positions, values = arguments
    build = code.builder
    start = code.load(code.pointer(starts), build.mul(block, code.number(8)), code.i64)
    index = code.variable(start)
    zero, lanes = code.number(0), code.number(LANES)
    with code.loop(zero, groups) as group, code.loop(zero, lanes) as lane:
        given, _, fits = _representable(code, (block, lane, group), groups, weight, highest)
        missing = build.bitcast(build.not_(fits), code.i8)
        with build.if_then(
            build.icmp_unsigned("!=", missing, code.ir.Constant(code.i8, 0)), likely=False
        ):
            for number in range(GROUP):
                bit = code.ir.Constant(code.i32, number)
                is_outlier = build.not_(build.extract_element(fits, bit))
                with build.if_then(is_outlier, likely=False):
                    column = build.mul(group, code.number(GROUP))
                    column = build.add(column, code.number(number))
                    value = build.extract_element(given, bit)
                    _store_outlier(code, index.get(), (lane, column, value), positions, values)
                    index.set(build.add(index.get(), code.number(1)))


def _store_outlier(
    code: Code,
    index: ir.Value,
    outlier: tuple[ir.Value, ir.Value, ir.Value],
    positions: ir.Value,
    values: ir.Value,
) -> None:
    """Write outlier *index* of the list: its lane, its column, and its bfloat16 value."""
    (lane, column, value), build = outlier, code.builder
    offset, target = build.mul(index, code.number(8)), code.pointer(positions)
    code.store(build.trunc(lane, code.i32), target, offset)
    offset = build.add(offset, code.number(4))
    code.store(build.trunc(column, code.i32), target, offset)
    bits = build.shl(build.zext(value, code.i32), code.ir.Constant(code.i32, 16))
    wide = build.bitcast(bits, code.f32)
    code.store(wide, code.pointer(values), build.mul(index, code.number(4)))


def _exponents(code: Code, given: ir.Value) -> ir.Value:
    build = code.builder
    moved = build.lshr(given, code.same(code.i16, GROUP, 7))
    return build.and_(moved, code.same(code.i16, GROUP, 255))


def _representable(
    code: Code,
    position: tuple[ir.Value, ir.Value, ir.Value],
    groups: ir.Value,
    weight: ir.Value,
    highest: ir.Value,
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Return 8 weights, their exponents' distances from the highest, and which fit into 12 bits."""
    (block, lane, group), build = position, code.builder
    output = build.add(build.mul(block, code.number(LANES)), lane)
    offset = build.mul(build.add(build.mul(output, groups), group), code.number(2 * GROUP))
    given = code.load(code.pointer(weight), offset, code.vector(code.i16, GROUP))
    top = code.load(code.pointer(highest), build.mul(output, code.number(4)), code.i32)
    exponents = _exponents(code, given)
    zeros = code.same(code.i16, GROUP, 0)
    below = build.sub(code.spread(build.trunc(top, code.i16), GROUP), exponents)
    is_near = build.icmp_unsigned("<=", below, code.same(code.i16, GROUP, LEVELS))
    # Zero and subnormal numbers have the exponent 0; 12 bits cannot represent them.
    fits = build.and_(is_near, build.icmp_unsigned("!=", exponents, zeros))
    # If all weights of an output are zero, its scale is zero too, and any stored number gives zero.
    sizes = build.and_(given, code.same(code.i16, GROUP, 0x7FFF))
    all_zero = build.icmp_signed("==", top, code.ir.Constant(code.i32, 0))
    is_zero = build.and_(build.icmp_unsigned("==", sizes, zeros), code.spread(all_zero, GROUP))
    return given, below, build.or_(fits, is_zero)
