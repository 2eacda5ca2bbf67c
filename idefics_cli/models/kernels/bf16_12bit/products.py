"""The code that multiplies rows by weights of 12 bits; see `kernel.py`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from idefics_cli.models.kernels.bf16_12bit.layout import (
    GROUP,
    GROUP_BYTES,
    LANES,
    PAIRS,
    SMALLEST,
    TILE_ROWS,
)
from idefics_cli.models.kernels.bf16_12bit.unpacking import (
    load_exponents,
    outliers_of,
    start_group,
    unpacked_pair,
    widened,
    write_groups,
)
from idefics_cli.models.kernels.compiler import has_feature, vector_bytes
from idefics_cli.models.kernels.jit import Code

if TYPE_CHECKING:
    from llvmlite import ir


# The kernel prefetches the weights at this distance in bytes; `int4/kernel.py` says why.
_PREFETCH_BYTES = 3072
# This instruction multiplies pairs of bfloat16 and adds both products to a float32.
PAIR_PRODUCT = "llvm.x86.avx512bf16.dpbf16ps.512"
# With registers of 64 bytes, this many rows are multiplied together, so that the weights are
# unpacked once for all these rows.
ROWS_TOGETHER = 16
# With registers of 32 bytes, weights for more than `_FEW_ROWS` rows are first unpacked to float32,
# `_GROUPS_TOGETHER` groups at a time: 16 kB.
_FEW_ROWS = 2
_GROUPS_TOGETHER = 32


def multiplies_bfloat16() -> bool:
    """Return whether the kernels multiply pairs of bfloat16."""
    return vector_bytes() == 64 and has_feature("avx512bf16")


def unpacks_to_memory() -> bool:
    """Return whether the kernel, for more than two rows, unpacks weights once, to memory.

    The kernel is then the fastest way for any number of rows. Otherwise it unpacks in registers,
    anew for every few rows.
    """
    return vector_bytes() == 32


class CompactProduct(NamedTuple):
    """Arguments of the kernel of products.

    Attributes:
        groups: Number of groups along the width.
        rows: Number of rows.
        activations: Address of the rows (rows, in): bfloat16 if the processor multiplies pairs of
            them (`multiplies_bfloat16`), else float32.
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
    """Write the code that computes 16 outputs of all rows."""
    given, build = CompactProduct(*arguments), code.builder
    if not unpacks_to_memory():
        _write_few_rows(code, block, given, (ROWS_TOGETHER, 8, 4, 2, 1))
    else:
        are_few = build.icmp_signed("<=", given.rows, code.number(_FEW_ROWS))
        with build.if_else(are_few) as (few, more):
            with few:
                _write_few_rows(code, block, given, (2, 1))
            with more:
                _write_more_rows(code, block, given)
    write_outliers_added(code, block, given)


def _write_few_rows(
    code: Code, block: ir.Value, given: CompactProduct, sizes: Sequence[int]
) -> None:
    """Write the code that multiplies rows by weights that are unpacked in registers."""
    for portion in code.portions(given.rows, sizes):
        for part in range(4 * LANES // vector_bytes()):
            _write_rows(code, portion, block, part, given)


def _write_more_rows(code: Code, block: ir.Value, given: CompactProduct) -> None:
    """Write the code that unpacks weights to memory that stays in the cache, for all rows."""
    build = code.builder
    weights = code.room(_GROUPS_TOGETHER * GROUP * 4 * LANES)
    with code.loop(code.number(0), given.groups, _GROUPS_TOGETHER) as start:
        stop = code.smaller(build.add(start, code.number(_GROUPS_TOGETHER)), given.groups)
        # The next groups come from memory while these are multiplied.
        write_groups(
            code,
            block,
            (start, stop),
            (given.groups, given.packed, given.scale),
            weights,
            code.number(4 * LANES),
            ahead=GROUP_BYTES * _GROUPS_TOGETHER,
        )
        for portion in code.portions(given.rows, (6, 4, 2, 1)):
            _write_sums(code, portion, block, (start, stop), given, weights)


def _write_sums(
    code: Code,
    rows: tuple[ir.Value, int],
    block: ir.Value,
    groups: tuple[ir.Value, ir.Value],
    given: CompactProduct,
    weights: ir.Value,
) -> None:
    """Write the code that adds the products of some rows with unpacked weights to the results."""
    (row, count), (first, stop) = rows, groups
    build, lanes = code.builder, vector_bytes() // 4
    kind, zeros = code.vector(code.f32, lanes), code.same(code.f32, lanes, 0.0)
    is_first = build.icmp_signed("==", first, code.number(0))
    numbers = [build.add(row, code.number(each)) for each in range(count)]
    line = build.mul(given.groups, code.number(4 * GROUP))
    start = build.add(given.activations, build.mul(first, code.number(4 * GROUP)))
    sources = [code.pointer(build.add(start, build.mul(each, line))) for each in numbers]
    out = build.add(given.out, build.mul(block, code.number(4 * LANES)))
    line = build.mul(given.outputs, code.number(4))
    targets = [code.pointer(build.add(out, build.mul(each, line))) for each in numbers]
    places = range(0, 4 * LANES, 4 * lanes)
    sums = [
        [code.variable(build.select(is_first, zeros, code.load(each, at, kind))) for at in places]
        for each in targets
    ]
    columns = build.mul(build.sub(stop, first), code.number(GROUP))
    with code.loop(code.number(0), columns) as column:
        base = build.mul(column, code.number(4 * LANES))
        values = [code.load(weights, build.add(base, code.number(at)), kind) for at in places]
        for source, totals in zip(sources, sums, strict=True):
            activation = code.load(source, build.mul(column, code.number(4)), code.f32)
            spread = code.spread(activation, lanes)
            for value, total in zip(values, totals, strict=True):
                total.set(code.fused(value, spread, total.get()))
    for target, totals in zip(targets, sums, strict=True):
        for at, total in zip(places, totals, strict=True):
            code.store(total.get(), target, at)


def write_outliers_added(
    code: Code,
    block: ir.Value,
    given: CompactProduct,
    *,
    tile: tuple[ir.Value, int] | None = None,
) -> None:
    """Write the code that adds what the outliers of 16 outputs change in the products.

    *tile* is the address of the sums of the block and the bytes from one row to the next, if the
    rows are interleaved; None if the products are in `CompactProduct.out`.
    """
    build = code.builder
    first = build.mul(block, code.number(LANES))
    line = build.mul(given.outputs, code.number(4)) if tile is None else code.number(tile[1])
    out = build.add(given.out, build.mul(first, code.number(4))) if tile is None else tile[0]
    with outliers_of(code, block, given.starts, given.positions, given.values) as (
        lane,
        column,
        value,
    ):
        offset = build.mul(build.add(first, lane), code.number(4))
        stored = build.fmul(
            code.load(code.pointer(given.scale), offset, code.f32),
            code.ir.Constant(code.f32, SMALLEST),
        )
        # The products already contain the number that is stored in place of the outlier, so only
        # the difference is added.
        more = build.fsub(value, stored)
        with code.loop(code.number(0), given.rows) as row:
            activation = _load_activation(code, given, row, column, is_interleaved=tile is not None)
            at = build.add(build.mul(row, line), build.mul(lane, code.number(4)))
            so_far = code.load(code.pointer(out), at, code.f32)
            code.store(build.fadd(so_far, build.fmul(more, activation)), code.pointer(out), at)


def _write_rows(
    code: Code,
    rows: tuple[ir.Value, int],
    block: ir.Value,
    part: int,
    given: CompactProduct,
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
        base = start_group(code, source, (block, given.groups, group), ahead=_PREFETCH_BYTES)
        exponents = load_exponents(code, source, base, part)
        for pair in range(PAIRS):
            weights = unpacked_pair(code, source, base, exponents, pair, part)
            for each, totals in zip(numbers, sums, strict=True):
                place = build.add(build.mul(each, given.groups), group)
                total = totals[pair % chains]
                total.set(_multiply(code, weights, activations, (place, pair), total.get()))
    first = build.add(build.mul(block, code.number(4 * LANES)), code.number(4 * lanes * part))
    scales = code.load(code.pointer(given.scale), first, code.vector(code.f32, lanes))
    for each, totals in zip(numbers, sums, strict=True):
        whole = totals[0].get()
        for total in totals[1:]:
            whole = build.fadd(whole, total.get())
        offset = build.add(build.mul(build.mul(each, given.outputs), code.number(4)), first)
        code.store(build.fmul(whole, scales), code.pointer(given.out), offset)


def _multiply(
    code: Code,
    weights: ir.Value,
    activations: ir.Value,
    place: tuple[ir.Value, int],
    total: ir.Value,
) -> ir.Value:
    """Return *total* plus the products of pairs of weights with two activations.

    Args:
        code: Where the code is written.
        weights: From `unpacked_pair`.
        activations: See `CompactProduct`.
        place: Number of the group of activations, and of the pair within it.
        total: The sums so far, float32.
    """
    (group, pair), build, lanes = place, code.builder, weights.type.count
    if multiplies_bfloat16():
        offset = build.mul(group, code.number(2 * GROUP))
        both = code.load(activations, build.add(offset, code.number(4 * pair)), code.i32)
        return code.call(PAIR_PRODUCT, total.type, total, weights, code.spread(both, lanes))
    offset = build.add(build.mul(group, code.number(4 * GROUP)), code.number(8 * pair))
    for number, value in enumerate(widened(code, weights)):
        at = build.add(offset, code.number(4 * number))
        activation = code.spread(code.load(activations, at, code.f32), lanes)
        total = code.fused(value, activation, total)
    return total


def _load_activation(
    code: Code, given: CompactProduct, row: ir.Value, column: ir.Value, *, is_interleaved: bool
) -> ir.Value:
    """Return one activation as float32."""
    build = code.builder
    width = build.mul(given.groups, code.number(GROUP))
    place, source = build.add(build.mul(row, width), column), code.pointer(given.activations)
    if not multiplies_bfloat16():
        return code.load(source, build.mul(place, code.number(4)), code.f32)
    if is_interleaved:
        tile = build.udiv(row, code.number(TILE_ROWS))
        lane = build.urem(row, code.number(TILE_ROWS))
        pairs = build.lshr(width, code.number(1))
        pair = build.add(build.mul(tile, pairs), build.lshr(column, code.number(1)))
        place = build.add(build.mul(pair, code.number(TILE_ROWS)), lane)
        place = build.add(build.mul(place, code.number(2)), build.and_(column, code.number(1)))
    half = code.load(source, build.mul(place, code.number(2)), code.i16)
    bits = build.shl(build.zext(half, code.i32), code.ir.Constant(code.i32, 16))
    return build.bitcast(bits, code.f32)
