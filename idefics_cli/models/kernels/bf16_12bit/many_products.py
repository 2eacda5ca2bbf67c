"""The code that multiplies many rows by weights of 12 bits, in pairs of bfloat16."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from idefics_cli.models.kernels.bf16_12bit.layout import GROUP, GROUP_BYTES, LANES, PAIRS, TILE_ROWS
from idefics_cli.models.kernels.bf16_12bit.products import (
    PAIR_PRODUCT,
    CompactProduct,
    write_outliers_added,
)
from idefics_cli.models.kernels.bf16_12bit.unpacking import (
    load_exponents,
    start_group,
    unpacked_pair,
)
from idefics_cli.models.kernels.jit import Code, Variable

if TYPE_CHECKING:
    from llvmlite import ir


# At most this many rows are computed together. Their sums stay in the cache.
MOST_ROWS = 252
# The weights of this many groups of 16 outputs are unpacked together: 16 kB.
_GROUPS_TOGETHER = 64


def write_interleave(code: Code, tile: ir.Value, arguments: Sequence[ir.Value]) -> None:
    """Write the code that copies a tile of rows of bfloat16, so that the pairs of a column follow.

    The pairs that a tile has in a column are then side by side.
    """
    pairs, rows, source, target = arguments
    build, kind = code.builder, code.vector(code.i32, LANES)
    last = build.sub(rows, code.number(1))
    line = build.mul(pairs, code.number(4))
    places = []
    for number in range(TILE_ROWS):
        row = build.add(build.mul(tile, code.number(TILE_ROWS)), code.number(number))
        # The last row stands in for those that are missing in the last tile.
        row = code.smaller(row, last)
        places.append(code.pointer(build.add(source, build.mul(row, line))))
    start = build.mul(build.mul(tile, line), code.number(TILE_ROWS))
    out = code.pointer(build.add(target, start))
    kept = code.ir.Constant(code.vector(code.i32, TILE_ROWS), list(range(TILE_ROWS)))
    whole = build.and_(pairs, code.number(-LANES))
    with code.loop(code.number(0), whole, LANES) as pair:
        at = build.mul(pair, code.number(4))
        vectors = [code.load(place, at, kind) for place in places]
        vectors += vectors[: LANES - TILE_ROWS]
        first = build.mul(at, code.number(TILE_ROWS))
        for number, column in enumerate(code.transposed(vectors)):
            offset = build.add(first, code.number(4 * TILE_ROWS * number))
            code.store(build.shuffle_vector(column, column, kept), out, offset)
    with code.loop(whole, pairs) as pair:
        at = build.mul(pair, code.number(4))
        for number, place in enumerate(places):
            offset = build.add(build.mul(at, code.number(TILE_ROWS)), code.number(4 * number))
            code.store(code.load(place, at, code.i32), out, offset)


def write_many_products(
    code: Code, piece: ir.Value, arguments: Sequence[ir.Value], *, blocks: int
) -> None:
    """Write the code that multiplies some tiles of rows by some blocks of 16 outputs.

    The rows are interleaved by `write_interleave`, and their number is a multiple of `TILE_ROWS`.
    The weights are unpacked into memory that stays in the cache, once for these rows.

    Args:
        code: Where the code is written.
        piece: Number of the rows and the blocks that are computed together, from 0.
        arguments: See `CompactProduct`; the products are bfloat16.
        blocks: Number of blocks that are computed together, 1 or 2.
    """
    given, build, most = CompactProduct(*arguments), code.builder, code.number(MOST_ROWS)
    parts = build.udiv(given.outputs, code.number(LANES * blocks))
    row = build.mul(build.udiv(piece, parts), most)
    left = build.sub(given.rows, row)
    line = build.mul(given.groups, code.number(2 * GROUP))
    given = given._replace(
        rows=code.smaller(left, most),
        activations=build.add(given.activations, build.mul(row, line)),
        out=build.add(given.out, build.mul(build.mul(row, given.outputs), code.number(2))),
    )
    first = build.mul(build.urem(piece, parts), code.number(blocks))
    numbers = [build.add(first, code.number(number)) for number in range(blocks)]
    unpacked = code.room(4 * LANES * PAIRS * _GROUPS_TOGETHER * blocks)
    sums = code.room(4 * LANES * MOST_ROWS * blocks)
    with code.loop(code.number(0), given.groups, _GROUPS_TOGETHER) as start:
        stop = code.smaller(build.add(start, code.number(_GROUPS_TOGETHER)), given.groups)
        for index, block in enumerate(numbers):
            _write_unpacked(
                code, block, (start, stop), given, _Alternating(unpacked, index, blocks)
            )
        with code.loop(code.number(0), given.rows, TILE_ROWS) as row:
            _write_tile(code, row, blocks, (start, stop), given, (unpacked, sums))
    for index, block in enumerate(numbers):
        _write_results(code, block, given, _Alternating(sums, index, blocks))


class _Alternating(NamedTuple):
    """A block of outputs in memory where the vectors of some blocks alternate.

    Attributes:
        memory: The memory of all blocks.
        number: Number of the block.
        blocks: Number of blocks.
    """

    memory: ir.Value
    number: int
    blocks: int

    def start(self, code: Code) -> ir.Value:
        """Return the address of the first vector."""
        build = code.builder
        at = build.ptrtoint(self.memory, code.i64)
        return build.add(at, code.number(4 * LANES * self.number))

    @property
    def line(self) -> int:
        """Bytes from one vector to the next."""
        return 4 * LANES * self.blocks


def _write_unpacked(
    code: Code,
    block: ir.Value,
    groups: tuple[ir.Value, ir.Value],
    given: CompactProduct,
    target: _Alternating,
) -> None:
    """Write the code that unpacks some groups of 16 outputs to *target*, as pairs of bfloat16."""
    (first, stop), build, source = groups, code.builder, code.pointer(given.packed)
    unpacked, line = code.pointer(target.start(code)), target.line
    with code.loop(first, stop) as group:
        ahead = GROUP_BYTES * _GROUPS_TOGETHER
        base = start_group(code, source, (block, given.groups, group), ahead=ahead)
        exponents = load_exponents(code, source, base, 0)
        place = build.mul(build.sub(group, first), code.number(line * PAIRS))
        for pair in range(PAIRS):
            at = build.add(place, code.number(line * pair))
            code.store(unpacked_pair(code, source, base, exponents, pair, 0), unpacked, at)


def _write_tile(
    code: Code,
    row: ir.Value,
    blocks: int,
    groups: tuple[ir.Value, ir.Value],
    given: CompactProduct,
    memory: tuple[ir.Value, ir.Value],
) -> None:
    """Write the code that adds the products of a tile with unpacked weights to the sums.

    *memory* holds the unpacked weights, and the sums of all rows.
    """
    (unpacked, sums), build = memory, code.builder
    kind, zeros = code.vector(code.f32, LANES), code.same(code.f32, LANES, 0.0)
    is_first = build.icmp_signed("==", groups[0], code.number(0))
    line = build.mul(row, code.number(4 * LANES * blocks))
    places = [
        build.add(line, code.number(4 * LANES * index)) for index in range(TILE_ROWS * blocks)
    ]
    totals = [
        code.variable(build.select(is_first, zeros, code.load(sums, place, kind)))
        for place in places
    ]
    _write_pairs(code, row, blocks, groups, given, unpacked, totals)
    for place, total in zip(places, totals, strict=True):
        code.store(total.get(), sums, place)


def _write_pairs(
    code: Code,
    row: ir.Value,
    blocks: int,
    groups: tuple[ir.Value, ir.Value],
    given: CompactProduct,
    unpacked: ir.Value,
    totals: Sequence[Variable],
) -> None:
    """Write the code that adds the products of a tile with unpacked weights to *totals*."""
    (first, stop), build, kind = groups, code.builder, code.vector(code.f32, LANES)
    pairs = build.mul(build.sub(stop, first), code.number(PAIRS))
    start = build.mul(row, build.mul(given.groups, code.number(2 * GROUP)))
    start = build.add(start, build.mul(first, code.number(4 * TILE_ROWS * PAIRS)))
    activations = code.pointer(build.add(given.activations, start))
    with code.loop(code.number(0), pairs) as pair:
        at = build.mul(pair, code.number(4 * LANES * blocks))
        weights = [
            code.load(
                unpacked,
                build.add(at, code.number(4 * LANES * index)),
                code.vector(code.i32, LANES),
            )
            for index in range(blocks)
        ]
        place = build.mul(pair, code.number(4 * TILE_ROWS))
        for number in range(TILE_ROWS):
            both = code.load(activations, build.add(place, code.number(4 * number)), code.i32)
            spread = code.spread(both, LANES)
            for index, weight in enumerate(weights):
                total = totals[number * blocks + index]
                total.set(code.call(PAIR_PRODUCT, kind, total.get(), weight, spread))


def _write_results(
    code: Code, block: ir.Value, given: CompactProduct, source: _Alternating
) -> None:
    """Write the code that scales the sums of a block of outputs, and rounds them to bfloat16."""
    build, kind = code.builder, code.vector(code.f32, LANES)
    here, line = source.start(code), source.line
    scales = code.load(code.pointer(given.scale), build.mul(block, code.number(4 * LANES)), kind)
    out = code.pointer(given.out)
    with code.loop(code.number(0), given.rows) as row:
        place, base = build.mul(row, code.number(line)), code.pointer(here)
        code.store(build.fmul(code.load(base, place, kind), scales), base, place)
    write_outliers_added(code, block, given, tile=(here, line))
    with code.loop(code.number(0), given.rows) as row:
        product = code.load(code.pointer(here), build.mul(row, code.number(line)), kind)
        offset = build.add(build.mul(row, given.outputs), build.mul(block, code.number(LANES)))
        code.store(code.to_bfloat16(code.rounded(product)), out, build.mul(offset, code.number(2)))
