"""The code of the kernels for weights of 12 bits, and how such weights lie.

What they take and give is told in `compact_kernel`, whose functions call them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from idefics_cli.models.kernels.jit import Code, vector_bytes

if TYPE_CHECKING:
    from llvmlite import ir

# Outputs that lie side by side, and how many of their weights along the width lie together.
LANES = 16
GROUP = 8
# Of a group of all lanes: sign and fraction of each weight, then for each lane its 8 exponents.
_EXPONENTS_AT = LANES * GROUP
GROUP_BYTES = _EXPONENTS_AT + 4 * LANES
# Exponents that are told: 0 stands for 2^-15 of the power of two below the largest weight.
_LOWEST = 15
_SMALLEST = 2.0**-_LOWEST
# How far ahead weights are asked for, in bytes; see `int4_kernel`.
_AHEAD = 3072
# Rows whose sums are in registers together, where these are 64 bytes wide.
ROWS_TOGETHER = 8


def write_pack(code: Code, block: ir.Value, arguments: Sequence[ir.Value]) -> None:
    """Write the packing of 16 outputs."""
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
            given, below, is_told = _told(code, (block, lane, group), groups, weight, highest)
            # What is noted counts as the smallest that 12 bits tell; see `write_product`.
            zeros = code.same(code.i16, GROUP, 0)
            bytes_ = build.select(is_told, _signs_and_fractions(code, given), zeros)
            _store_bytes(code, bytes_, target, base, lane)
            levels = build.sub(code.same(code.i16, GROUP, _LOWEST), below)
            _store_levels(code, build.select(is_told, levels, zeros), target, base, lane)
            missing = build.zext(build.not_(is_told), code.vector(code.i8, GROUP))
            more = code.call(f"llvm.vector.reduce.add.v{GROUP}i8", code.i8, missing)
            count.set(build.add(count.get(), build.zext(more, code.i64)))
    code.store(count.get(), code.pointer(counts), build.mul(block, code.number(8)))


def _signs_and_fractions(code: Code, given: ir.Value) -> ir.Value:
    """Return a sign and 7 bits of fraction of each weight, in the lower half of 16 bits."""
    build = code.builder
    signs = build.and_(
        build.lshr(given, code.same(code.i16, GROUP, 8)), code.same(code.i16, GROUP, 128)
    )
    return build.or_(signs, build.and_(given, code.same(code.i16, GROUP, 127)))


def _store_bytes(
    code: Code, bytes_: ir.Value, target: ir.Value, base: ir.Value, lane: ir.Value
) -> None:
    """Write the lower halves of 8 numbers of a lane, those of other lanes between them."""
    build = code.builder
    narrow = build.trunc(bytes_, code.vector(code.i8, GROUP))
    for number in range(GROUP):
        byte = build.extract_element(narrow, code.ir.Constant(code.i32, number))
        place = build.add(base, build.add(lane, code.number(LANES * number)))
        code.store(byte, target, place)


def _store_levels(
    code: Code, levels: ir.Value, target: ir.Value, base: ir.Value, lane: ir.Value
) -> None:
    """Write 8 exponents of a lane, 4 bits each, as the word that `_word` reads."""
    build = code.builder
    wide = build.zext(levels, code.vector(code.i32, GROUP))
    shifts = code.ir.Constant(code.vector(code.i32, GROUP), list(range(0, 32, 4)))
    word = code.call(f"llvm.vector.reduce.or.v{GROUP}i32", code.i32, build.shl(wide, shifts))
    place = build.add(base, build.mul(lane, code.number(4)))
    code.store(word, target, build.add(place, code.number(_EXPONENTS_AT)))


def _write_highest(
    code: Code, output: ir.Value, groups: ir.Value, weight: ir.Value, highest: ir.Value
) -> None:
    """Write the search for the largest exponent of one output."""
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
    place = build.mul(output, code.number(4))
    code.store(build.zext(whole, code.i32), code.pointer(highest), place)


def write_notes(code: Code, block: ir.Value, arguments: Sequence[ir.Value]) -> None:
    """Write the notes of the weights of 16 outputs that 12 bits do not tell."""
    groups, weight, highest, starts, places, values = arguments
    build = code.builder
    begin = code.load(code.pointer(starts), build.mul(block, code.number(8)), code.i64)
    next_ = code.variable(begin)
    zero, lanes = code.number(0), code.number(LANES)
    with code.loop(zero, groups) as group, code.loop(zero, lanes) as lane:
        given, _, is_told = _told(code, (block, lane, group), groups, weight, highest)
        missing = build.bitcast(build.not_(is_told), code.i8)
        with build.if_then(
            build.icmp_unsigned("!=", missing, code.ir.Constant(code.i8, 0)), likely=False
        ):
            for number in range(GROUP):
                bit = code.ir.Constant(code.i32, number)
                is_missing = build.not_(build.extract_element(is_told, bit))
                with build.if_then(is_missing, likely=False):
                    at = next_.get()
                    column = build.mul(group, code.number(GROUP))
                    column = build.add(column, code.number(number))
                    place = build.mul(at, code.number(8))
                    target = code.pointer(places)
                    code.store(build.trunc(lane, code.i32), target, place)
                    place = build.add(place, code.number(4))
                    code.store(build.trunc(column, code.i32), target, place)
                    bits = build.zext(build.extract_element(given, bit), code.i32)
                    bits = build.shl(bits, code.ir.Constant(code.i32, 16))
                    value = build.bitcast(bits, code.f32)
                    code.store(value, code.pointer(values), build.mul(at, code.number(4)))
                    next_.set(build.add(at, code.number(1)))


def _exponents(code: Code, given: ir.Value) -> ir.Value:
    build = code.builder
    moved = build.lshr(given, code.same(code.i16, GROUP, 7))
    return build.and_(moved, code.same(code.i16, GROUP, 255))


def _told(
    code: Code,
    place: tuple[ir.Value, ir.Value, ir.Value],
    groups: ir.Value,
    weight: ir.Value,
    highest: ir.Value,
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """Return 8 weights, how far below the highest they are, and which of them 12 bits tell."""
    (block, lane, group), build = place, code.builder
    output = build.add(build.mul(block, code.number(LANES)), lane)
    offset = build.mul(build.add(build.mul(output, groups), group), code.number(2 * GROUP))
    given = code.load(code.pointer(weight), offset, code.vector(code.i16, GROUP))
    top = code.load(code.pointer(highest), build.mul(output, code.number(4)), code.i32)
    exponents = _exponents(code, given)
    zeros = code.same(code.i16, GROUP, 0)
    below = build.sub(code.spread(build.trunc(top, code.i16), GROUP), exponents)
    is_near = build.icmp_unsigned("<=", below, code.same(code.i16, GROUP, _LOWEST))
    # An exponent of 0 is that of 0 and of numbers without a leading 1.
    is_told = build.and_(is_near, build.icmp_unsigned("!=", exponents, zeros))
    # Where all are 0 the scale is, too, so that any number is right.
    sizes = build.and_(given, code.same(code.i16, GROUP, 0x7FFF))
    all_zero = build.icmp_signed("==", top, code.ir.Constant(code.i32, 0))
    is_zero = build.and_(build.icmp_unsigned("==", sizes, zeros), code.spread(all_zero, GROUP))
    return given, below, build.or_(is_told, is_zero)


def _wide(
    code: Code, packed: ir.Value, base: ir.Value, exponents: ir.Value, number: int, part: int
) -> ir.Value:
    """Return the float32 of one place in the width, of as many lanes as a register holds."""
    build, lanes = code.builder, vector_bytes() // 4
    kind = code.vector(code.i32, lanes)
    offset = build.add(base, code.number(LANES * number + lanes * part))
    rest = build.sext(code.load(packed, offset, code.vector(code.i8, lanes)), kind)
    # The sign, spread by the extension, and the fraction.
    rest = build.shl(rest, code.same(code.i32, lanes, 16))
    rest = build.and_(rest, code.same(code.i32, lanes, 0x807F0000 - 2**32))
    shift = 23 - 4 * number
    moved = (
        build.shl(exponents, code.same(code.i32, lanes, shift))
        if shift > 0
        else build.lshr(exponents, code.same(code.i32, lanes, -shift))
    )
    levels = build.and_(moved, code.same(code.i32, lanes, _LOWEST << 23))
    # 112 ends in four zeros, so that "or" adds the level to it.
    levels = build.or_(levels, code.same(code.i32, lanes, (127 - _LOWEST) << 23))
    return build.bitcast(build.or_(rest, levels), code.vector(code.f32, lanes))


def write_unpack(code: Code, block: ir.Value, arguments: Sequence[ir.Value]) -> None:
    """Write the weights of 16 outputs as float32, one below the other."""
    groups, blocks, packed, scale, starts, places, values, wide = arguments
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
            exponents = _word(code, source, base, part)
            for number in range(GROUP):
                value = _wide(code, source, base, exponents, number, part)
                row = build.add(build.mul(group, code.number(GROUP)), code.number(number))
                place = build.add(build.mul(row, line), at)
                code.store(build.fmul(value, scales), target, place)
    with _notes(code, block, starts, places, values) as (lane, column, value):
        place = build.add(build.mul(column, line), first)
        code.store(value, target, build.add(place, build.mul(lane, code.number(4))))


class _CompactProduct(NamedTuple):
    """What the kernel of products takes.

    Attributes:
        groups: How many, along the width.
        rows: How many.
        states: Address of the rows (rows, in), float32.
        packed: Addresses of the weights from here on, see `compact_kernel.Compact`.
        out: Address of the products (rows, outputs), float32.
        outputs: How many.
    """

    groups: ir.Value
    rows: ir.Value
    states: ir.Value
    packed: ir.Value
    scale: ir.Value
    starts: ir.Value
    places: ir.Value
    values: ir.Value
    out: ir.Value
    outputs: ir.Value


def write_product(code: Code, block: ir.Value, arguments: Sequence[ir.Value]) -> None:
    """Write the products of all rows with 16 outputs."""
    given, build = _CompactProduct(*arguments), code.builder
    for portion in code.portions(
        given.rows, (ROWS_TOGETHER, 4, 1) if vector_bytes() == 64 else (2, 1)
    ):
        for part in range(4 * LANES // vector_bytes()):
            _write_rows(code, portion, block, part, given)
    width = build.mul(given.groups, code.number(GROUP))
    first = build.mul(block, code.number(LANES))
    with _notes(code, block, given.starts, given.places, given.values) as (lane, column, value):
        output = build.add(first, lane)
        place = build.mul(output, code.number(4))
        told = build.fmul(
            code.load(code.pointer(given.scale), place, code.f32),
            code.ir.Constant(code.f32, _SMALLEST),
        )
        # The products have it already with what 12 bits tell of it.
        more = build.fsub(value, told)
        with code.loop(code.number(0), given.rows) as row:
            place = build.mul(build.add(build.mul(row, width), column), code.number(4))
            state = code.load(code.pointer(given.states), place, code.f32)
            place = build.mul(build.add(build.mul(row, given.outputs), output), code.number(4))
            so_far = code.load(code.pointer(given.out), place, code.f32)
            code.store(build.fadd(so_far, build.fmul(more, state)), code.pointer(given.out), place)


def _write_rows(
    code: Code,
    rows: tuple[ir.Value, int],
    block: ir.Value,
    part: int,
    given: _CompactProduct,
) -> None:
    """Write the products of some rows with the outputs of one register."""
    (row, count), build, lanes = rows, code.builder, vector_bytes() // 4
    source, states = code.pointer(given.packed), code.pointer(given.states)
    numbers = [build.add(row, code.number(each)) for each in range(count)]
    nothing = code.same(code.f32, lanes, 0.0)
    # Several sums of each row: one product need not wait for the one before.
    chains = max(1, 4 // count)
    sums = [[code.variable(nothing) for _ in range(chains)] for _ in numbers]
    with code.loop(code.number(0), given.groups) as group:
        base = build.add(build.mul(block, given.groups), group)
        base = build.mul(base, code.number(GROUP_BYTES))
        if count == 1:
            for line in range(0, GROUP_BYTES, 64):
                code.prefetch(source, build.add(base, code.number(_AHEAD + line)))
        exponents = _word(code, source, base, part)
        for number in range(GROUP):
            value = _wide(code, source, base, exponents, number, part)
            for each, totals in zip(numbers, sums, strict=True):
                place = build.add(build.mul(each, given.groups), group)
                place = build.mul(place, code.number(4 * GROUP))
                place = build.add(place, code.number(4 * number))
                state = code.spread(code.load(states, place, code.f32), lanes)
                total = totals[number % chains]
                total.set(code.fused(value, state, total.get()))
    first = build.add(build.mul(block, code.number(4 * LANES)), code.number(4 * lanes * part))
    scales = code.load(code.pointer(given.scale), first, code.vector(code.f32, lanes))
    for each, totals in zip(numbers, sums, strict=True):
        whole = totals[0].get()
        for total in totals[1:]:
            whole = build.fadd(whole, total.get())
        place = build.add(build.mul(build.mul(each, given.outputs), code.number(4)), first)
        code.store(build.fmul(whole, scales), code.pointer(given.out), place)


def _word(code: Code, packed: ir.Value, base: ir.Value, part: int) -> ir.Value:
    """Return the exponents of a group, 8 in the word of each lane."""
    lanes = vector_bytes() // 4
    offset = code.builder.add(base, code.number(_EXPONENTS_AT + 4 * lanes * part))
    return code.load(packed, offset, code.vector(code.i32, lanes))


@contextmanager
def _notes(
    code: Code, block: ir.Value, starts: ir.Value, places: ir.Value, values: ir.Value
) -> Iterator[tuple[ir.Value, ir.Value, ir.Value]]:
    """Repeat the block's code for each note of 16 outputs: the lane, the column, the weight."""
    build = code.builder
    at = build.mul(block, code.number(8))
    begin, end = (
        code.load(code.pointer(starts), build.add(at, code.number(8 * which)), code.i64)
        for which in range(2)
    )
    with code.loop(begin, end) as note:
        place = build.mul(note, code.number(8))
        lane, column = (
            build.zext(
                code.load(code.pointer(places), build.add(place, code.number(offset)), code.i32),
                code.i64,
            )
            for offset in (0, 4)
        )
        value = code.load(code.pointer(values), build.mul(note, code.number(4)), code.f32)
        yield lane, column, value
