"""The code of the kernels for 12-bit weights, and the layout of such weights.

The functions of `kernel.py` call these kernels and describe their arguments and results.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from idefics_cli.models.kernels.jit import Code, vector_bytes

if TYPE_CHECKING:
    from llvmlite import ir

# The weights of this many outputs are stored side by side: a register of 64 bytes has 16 lanes of
# float32, and each output is one lane.
LANES = 16
# This many weights along the width are stored together: their exponents of 4 bits fill a 32-bit
# word.
GROUP = 8
# Layout of one group of 16 lanes: first a byte for each weight with its sign and fraction, then a
# 32-bit word for each lane with its 8 exponents.
_EXPONENTS_AT = LANES * GROUP
GROUP_BYTES = _EXPONENTS_AT + 4 * LANES
# An exponent is stored as a level from 0 to 15. Level 15 is the exponent of the largest weight of
# the output. Level 0 is an exponent that is smaller by 15, a factor of 2^-15.
_LEVELS = 15
_SMALLEST = 2.0**-_LEVELS
# The kernel prefetches the weights at this distance in bytes; `int4/kernel.py` says why.
_PREFETCH_BYTES = 3072
# With registers of 64 bytes, this many rows are multiplied together, so that the weights are
# unpacked once for all these rows.
ROWS_TOGETHER = 8


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
            levels = build.sub(code.same(code.i16, GROUP, _LEVELS), below)
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
        offset = build.add(base, build.add(lane, code.number(LANES * number)))
        code.store(byte, target, offset)


def _store_levels(
    code: Code, levels: ir.Value, target: ir.Value, base: ir.Value, lane: ir.Value
) -> None:
    """Write 8 exponents of a lane, 4 bits each, as the word that `_load_word` reads."""
    build = code.builder
    wide = build.zext(levels, code.vector(code.i32, GROUP))
    shifts = code.ir.Constant(code.vector(code.i32, GROUP), list(range(0, 32, 4)))
    word = code.call(f"llvm.vector.reduce.or.v{GROUP}i32", code.i32, build.shl(wide, shifts))
    offset = build.add(base, build.mul(lane, code.number(4)))
    code.store(word, target, build.add(offset, code.number(_EXPONENTS_AT)))


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
    is_near = build.icmp_unsigned("<=", below, code.same(code.i16, GROUP, _LEVELS))
    # Zero and subnormal numbers have the exponent 0; 12 bits cannot represent them.
    fits = build.and_(is_near, build.icmp_unsigned("!=", exponents, zeros))
    # If all weights of an output are zero, its scale is zero too, and any stored number gives zero.
    sizes = build.and_(given, code.same(code.i16, GROUP, 0x7FFF))
    all_zero = build.icmp_signed("==", top, code.ir.Constant(code.i32, 0))
    is_zero = build.and_(build.icmp_unsigned("==", sizes, zeros), code.spread(all_zero, GROUP))
    return given, below, build.or_(fits, is_zero)


def _wide(
    code: Code, packed: ir.Value, base: ir.Value, exponents: ir.Value, number: int, part: int
) -> ir.Value:
    """Return the weights in one column of a group as float32, for the lanes of one register."""
    build, lanes = code.builder, vector_bytes() // 4
    kind = code.vector(code.i32, lanes)
    offset = build.add(base, code.number(LANES * number + lanes * part))
    rest = build.sext(code.load(packed, offset, code.vector(code.i8, lanes)), kind)
    # The next two lines keep the sign, which `sext` has copied to all upper bits, and the fraction.
    rest = build.shl(rest, code.same(code.i32, lanes, 16))
    rest = build.and_(rest, code.same(code.i32, lanes, 0x807F0000 - 2**32))
    shift = 23 - 4 * number
    moved = (
        build.shl(exponents, code.same(code.i32, lanes, shift))
        if shift > 0
        else build.lshr(exponents, code.same(code.i32, lanes, -shift))
    )
    levels = build.and_(moved, code.same(code.i32, lanes, _LEVELS << 23))
    # The four lowest bits of 127 - 15 = 112 are zero, so "or" adds the level to it.
    levels = build.or_(levels, code.same(code.i32, lanes, (127 - _LEVELS) << 23))
    return build.bitcast(build.or_(rest, levels), code.vector(code.f32, lanes))


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
            exponents = _load_word(code, source, base, part)
            for number in range(GROUP):
                value = _wide(code, source, base, exponents, number, part)
                row = build.add(build.mul(group, code.number(GROUP)), code.number(number))
                offset = build.add(build.mul(row, line), at)
                code.store(build.fmul(value, scales), target, offset)
    with _outliers(code, block, starts, positions, values) as (lane, column, value):
        offset = build.add(build.mul(column, line), first)
        code.store(value, target, build.add(offset, build.mul(lane, code.number(4))))


class _CompactProduct(NamedTuple):
    """Arguments of the kernel of products.

    Attributes:
        groups: Number of groups along the width.
        rows: Number of rows.
        activations: Address of the rows (rows, in), float32.
        packed: Address of `Compact.packed`. The next four are addresses of the fields of `Compact`
            with the same names.
        out: Address of the products (rows, outputs), float32.
        outputs: Number of outputs.
    """

    groups: ir.Value
    rows: ir.Value
    activations: ir.Value
    packed: ir.Value
    scale: ir.Value
    starts: ir.Value
    positions: ir.Value
    values: ir.Value
    out: ir.Value
    outputs: ir.Value


def write_product(code: Code, block: ir.Value, arguments: Sequence[ir.Value]) -> None:
    """Write the code that multiplies all rows by 16 outputs."""
    given, build = _CompactProduct(*arguments), code.builder
    for portion in code.portions(
        given.rows, (ROWS_TOGETHER, 4, 1) if vector_bytes() == 64 else (2, 1)
    ):
        for part in range(4 * LANES // vector_bytes()):
            _write_rows(code, portion, block, part, given)
    width = build.mul(given.groups, code.number(GROUP))
    first = build.mul(block, code.number(LANES))
    with _outliers(code, block, given.starts, given.positions, given.values) as (
        lane,
        column,
        value,
    ):
        output = build.add(first, lane)
        offset = build.mul(output, code.number(4))
        stored = build.fmul(
            code.load(code.pointer(given.scale), offset, code.f32),
            code.ir.Constant(code.f32, _SMALLEST),
        )
        # The products already contain the number that is stored in place of the outlier, so only
        # the difference is added.
        more = build.fsub(value, stored)
        with code.loop(code.number(0), given.rows) as row:
            offset = build.mul(build.add(build.mul(row, width), column), code.number(4))
            activation = code.load(code.pointer(given.activations), offset, code.f32)
            offset = build.mul(build.add(build.mul(row, given.outputs), output), code.number(4))
            so_far = code.load(code.pointer(given.out), offset, code.f32)
            code.store(
                build.fadd(so_far, build.fmul(more, activation)), code.pointer(given.out), offset
            )


def _write_rows(
    code: Code,
    rows: tuple[ir.Value, int],
    block: ir.Value,
    part: int,
    given: _CompactProduct,
) -> None:
    """Write the code that multiplies some rows by the outputs of one register."""
    (row, count), build, lanes = rows, code.builder, vector_bytes() // 4
    source, activations = code.pointer(given.packed), code.pointer(given.activations)
    numbers = [build.add(row, code.number(each)) for each in range(count)]
    nothing = code.same(code.f32, lanes, 0.0)
    # Each row has several sums, so that a multiplication does not wait for the one before it.
    chains = max(1, 4 // count)
    sums = [[code.variable(nothing) for _ in range(chains)] for _ in numbers]
    with code.loop(code.number(0), given.groups) as group:
        base = build.add(build.mul(block, given.groups), group)
        base = build.mul(base, code.number(GROUP_BYTES))
        if count == 1:
            for line in range(0, GROUP_BYTES, 64):
                code.prefetch(source, build.add(base, code.number(_PREFETCH_BYTES + line)))
        exponents = _load_word(code, source, base, part)
        for number in range(GROUP):
            value = _wide(code, source, base, exponents, number, part)
            for each, totals in zip(numbers, sums, strict=True):
                offset = build.add(build.mul(each, given.groups), group)
                offset = build.mul(offset, code.number(4 * GROUP))
                offset = build.add(offset, code.number(4 * number))
                activation = code.spread(code.load(activations, offset, code.f32), lanes)
                total = totals[number % chains]
                total.set(code.fused(value, activation, total.get()))
    first = build.add(build.mul(block, code.number(4 * LANES)), code.number(4 * lanes * part))
    scales = code.load(code.pointer(given.scale), first, code.vector(code.f32, lanes))
    for each, totals in zip(numbers, sums, strict=True):
        whole = totals[0].get()
        for total in totals[1:]:
            whole = build.fadd(whole, total.get())
        offset = build.add(build.mul(build.mul(each, given.outputs), code.number(4)), first)
        code.store(build.fmul(whole, scales), code.pointer(given.out), offset)


def _load_word(code: Code, packed: ir.Value, base: ir.Value, part: int) -> ir.Value:
    """Return the exponents of a group: for each lane a word, which holds 8 of them."""
    lanes = vector_bytes() // 4
    offset = code.builder.add(base, code.number(_EXPONENTS_AT + 4 * lanes * part))
    return code.load(packed, offset, code.vector(code.i32, lanes))


@contextmanager
def _outliers(
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
