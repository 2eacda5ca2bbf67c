"""Attention among all patches of a tile in bfloat16, by code that is compiled for the processor.

Eight queries are computed together: their scores stay in the processor's cache, in float32, until
the values are added. torch computes scores, softmax and sums by three functions, which write all
scores to memory in bfloat16 in between. For 1,024 patches with 12 heads of 64, this code takes 0.7
of the time of `attention.py`'s blocks, and half its error (one thread, AMD Zen 5).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from idefics_cli.models.kernels.bf16_12bit.products import PAIR_PRODUCT, multiplies_bfloat16
from idefics_cli.models.kernels.jit import Code, LazyKernel, Variable, passes

if TYPE_CHECKING:
    from llvmlite import ir

# Numbers of float32 in a register of 64 bytes. A product of pairs takes as many pairs of bfloat16.
_LANES = 16
_QUERIES = 8
# Number of blocks of 16 keys that are multiplied together, and of queries that share the values
# they read. All sums then stay in registers.
_BLOCKS, _SHARING = 3, 4
# The scores of 8 queries take 160 kB of a thread's stack.
_MOST_KEYS = 5120
_MOST_WIDTH = 128
# 2^x for x from -0.5 to 0.5: a polynomial through the Chebyshev nodes. The error is 1e-4 of the
# value, which is then rounded to bfloat16, with an error of up to 4e-3.
_COEFFICIENTS = (0.055838282946220126, 0.24263947854625845, 0.6931367338836214, 0.9999245569508709)
_SMALLEST = -126.0


def fits(query: Tensor, key: Tensor) -> bool:
    """Whether `attend` computes these (B, heads, tokens, width); both have as many heads."""
    width = query.shape[3]
    return (
        query.dtype == key.dtype == torch.bfloat16
        and width % 8 == 0
        and _LANES <= width <= _MOST_WIDTH
        and 0 < key.shape[2] <= _MOST_KEYS
        and multiplies_bfloat16()
        and _is_usable()
    )


def attend(query: Tensor, key: Tensor, value: Tensor, scaling: float) -> Tensor:
    """Return the attention (B, queries, heads, width) of *query* to all keys; see `fits`."""
    batch, heads, queries, width = query.shape
    if query.stride(3) != 1:
        query = query.contiguous()
    if key.stride() != value.stride() or key.stride(3) != 1:
        key, value = key.contiguous(), value.contiguous()
    keys = key.shape[2]
    blocks = -(-keys // _LANES)
    out = query.new_empty(batch, queries, heads, width)
    packed = torch.empty(2, batch * heads, blocks * _LANES * width, dtype=torch.bfloat16)
    pack, product = _kernels(width)
    size = query.element_size()
    strides = [size * step for step in (key.stride(0), key.stride(1), key.stride(2))]
    shared = [heads, keys, blocks]
    addresses = [packed[0].data_ptr(), packed[1].data_ptr()]
    pack(batch * heads * blocks, *shared, key.data_ptr(), value.data_ptr(), *strides, *addresses)
    parts = -(-queries // _QUERIES)
    strides = [size * step for step in (query.stride(0), query.stride(1), query.stride(2))]
    # The weights are powers of 2, so that an exponential takes one product less.
    factor = int(torch.tensor(scaling * math.log2(math.e)).view(torch.int32))
    product(
        batch * heads * parts,
        *(*shared, queries, parts, factor, query.data_ptr(), *strides, *addresses),
        out.data_ptr(),
    )
    return out


@cache
def _is_usable() -> bool:
    """Whether the code can be compiled here and computes a small example correctly."""
    return passes(_is_right)


def _is_right() -> bool:
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, 2, count, 24, generator=generator).to(torch.bfloat16)
        for count in (11, 37, 37)
    )
    given = attend(query, key, value, 0.3).float()
    scores = query.float() @ key.float().transpose(2, 3) * 0.3
    exact = (scores.softmax(-1) @ value.float()).transpose(1, 2)
    return bool((given - exact).norm() < 0.01 * exact.norm())


@cache
def _kernels(width: int) -> tuple[LazyKernel, LazyKernel]:
    def pack(code: Code, piece: ir.Value, arguments: Sequence[ir.Value]) -> None:
        _write_packing(code, piece, _Packing(*arguments), width)

    def product(code: Code, piece: ir.Value, arguments: Sequence[ir.Value]) -> None:
        _Writer(code, _Product(*arguments), width).write(piece)

    return (
        LazyKernel(pack, arguments=len(_Packing._fields)),
        LazyKernel(product, arguments=len(_Product._fields)),
    )


class _Packing(NamedTuple):
    """Arguments of the code that lays out one block of 16 keys and their values.

    Keys become (pairs of numbers, keys), values (pairs of keys, numbers), so that a register holds
    what a product of pairs multiplies. The steps are bytes from one to the next.
    """

    heads: ir.Value
    keys: ir.Value
    blocks: ir.Value
    key: ir.Value
    value: ir.Value
    batch_step: ir.Value
    head_step: ir.Value
    key_step: ir.Value
    packed_keys: ir.Value
    packed_values: ir.Value


class _Product(NamedTuple):
    """Arguments of the code that computes 8 queries of a head.

    `parts` is the number of pieces of a head, `scaling` the bits of a float32, the factor of the
    scores. `out` is the address of (B, queries, heads, width) bfloat16.
    """

    heads: ir.Value
    keys: ir.Value
    blocks: ir.Value
    queries: ir.Value
    parts: ir.Value
    scaling: ir.Value
    query: ir.Value
    batch_step: ir.Value
    head_step: ir.Value
    query_step: ir.Value
    packed_keys: ir.Value
    packed_values: ir.Value
    out: ir.Value


def _head_at(code: Code, number: ir.Value, given: _Packing | _Product) -> ir.Value:
    """Return the offset of the head *number*, counted over the batch."""
    build = code.builder
    row = build.mul(build.udiv(number, given.heads), given.batch_step)
    return build.add(row, build.mul(build.urem(number, given.heads), given.head_step))


def _line_at(code: Code, number: ir.Value, count: ir.Value, step: ir.Value) -> ir.Value:
    """Return the offset of the line *number*; the last one stands in for those that are missing."""
    build = code.builder
    return build.mul(code.smaller(number, build.sub(count, code.number(1))), step)


def _write_packing(code: Code, piece: ir.Value, given: _Packing, width: int) -> None:
    """Write the code that lays out the block *piece*, counted over heads and batch."""
    build = code.builder
    block, head = build.urem(piece, given.blocks), build.udiv(piece, given.blocks)
    start = _head_at(code, head, given)
    lines = [
        build.add(
            start,
            _line_at(
                code,
                build.add(build.mul(block, code.number(_LANES)), code.number(number)),
                given.keys,
                given.key_step,
            ),
        )
        for number in range(_LANES)
    ]
    size = code.number(2 * _LANES * width)
    keys = code.pointer(build.add(given.packed_keys, build.mul(piece, size)))
    values = code.pointer(build.add(given.packed_values, build.mul(piece, size)))
    _write_keys(code, code.pointer(given.key), lines, keys, width)
    _write_values(code, code.pointer(given.value), lines, values, width)


def _write_keys(
    code: Code, source: ir.Value, lines: Sequence[ir.Value], keys: ir.Value, width: int
) -> None:
    build = code.builder
    whole = width // 2 // _LANES * _LANES
    for first in range(0, whole, _LANES):
        rows = [
            code.load(
                source, build.add(line, code.number(4 * first)), code.vector(code.i32, _LANES)
            )
            for line in lines
        ]
        for number, column in enumerate(code.transposed(rows)):
            code.store(column, keys, 4 * _LANES * (first + number))
    for pair in range(whole, width // 2):
        for number, line in enumerate(lines):
            both = code.load(source, build.add(line, code.number(4 * pair)), code.i32)
            code.store(both, keys, 4 * (_LANES * pair + number))


def _write_values(
    code: Code, source: ir.Value, lines: Sequence[ir.Value], values: ir.Value, width: int
) -> None:
    build, half = code.builder, code.vector(code.i16, 8)
    order = [place for index in range(8) for place in (index, index + 8)]
    mixed = code.ir.Constant(code.vector(code.i32, 16), order)
    for number in range(0, _LANES, 2):
        for first in range(0, width, 8):
            one, two = (
                code.load(source, build.add(line, code.number(2 * first)), half)
                for line in lines[number : number + 2]
            )
            at = 2 * number * width + 4 * first
            code.store(build.shuffle_vector(one, two, mixed), values, at)


class _Writer:
    """Writes the code for some queries of a head."""

    def __init__(self, code: Code, given: _Product, width: int) -> None:
        self._code, self._given, self._width = code, given, width
        self._kind = code.vector(code.f32, _LANES)
        self._scores = code.room(4 * _QUERIES * _MOST_KEYS)
        self._wholes = code.room(4 * _QUERIES)
        self._line = code.builder.mul(given.blocks, code.number(4 * _LANES))

    def write(self, piece: ir.Value) -> None:
        """Write the code for the queries *piece*, counted over heads and batch."""
        code, given, build = self._code, self._given, self._code.builder
        part, head = build.urem(piece, given.parts), build.udiv(piece, given.parts)
        start = build.add(given.query, _head_at(code, head, given))
        first = build.mul(part, code.number(_QUERIES))
        numbers = [build.add(first, code.number(number)) for number in range(_QUERIES)]
        queries = [
            code.pointer(build.add(start, _line_at(code, number, given.queries, given.query_step)))
            for number in numbers
        ]
        size = build.mul(build.mul(head, given.blocks), code.number(2 * _LANES * self._width))
        keys = code.pointer(build.add(given.packed_keys, size))
        for block, count in code.portions(given.blocks, (_BLOCKS, 1)):
            self._write_scores(queries, keys, block, count)
        with code.loop(code.number(0), code.number(_QUERIES)) as number:
            self._write_weights(number)
        values = code.pointer(build.add(given.packed_values, size))
        step = build.mul(given.heads, code.number(2 * self._width))
        row = build.mul(build.mul(build.udiv(head, given.heads), given.queries), step)
        column = build.mul(build.urem(head, given.heads), code.number(2 * self._width))
        out = code.pointer(build.add(given.out, build.add(row, column)))
        for begin in range(0, _QUERIES, _SHARING):
            places = [
                _line_at(code, number, given.queries, step)
                for number in numbers[begin : begin + _SHARING]
            ]
            self._write_sums(begin, values, out, places)

    def _write_scores(
        self, queries: Sequence[ir.Value], keys: ir.Value, block: ir.Value, count: int
    ) -> None:
        code, build = self._code, self._code.builder
        pairs = self._width // 2
        totals = [
            [code.variable(code.same(code.f32, _LANES, 0.0)) for _ in range(count)] for _ in queries
        ]
        start = build.mul(block, code.number(4 * _LANES * pairs))
        with code.loop(code.number(0), code.number(pairs)) as pair:
            at = build.add(start, build.mul(pair, code.number(4 * _LANES)))
            vectors = [
                code.load(
                    keys,
                    build.add(at, code.number(4 * _LANES * pairs * number)),
                    code.vector(code.i32, _LANES),
                )
                for number in range(count)
            ]
            place = build.mul(pair, code.number(4))
            for query, sums in zip(queries, totals, strict=True):
                both = code.spread(code.load(query, place, code.i32), _LANES)
                for total, vector in zip(sums, vectors, strict=True):
                    total.set(code.call(PAIR_PRODUCT, self._kind, total.get(), vector, both))
        self._store_scores(block, totals)

    def _store_scores(self, block: ir.Value, totals: Sequence[Sequence[Variable]]) -> None:
        """Write the code that scales and stores scores; a place without a key gets -infinity."""
        code, build = self._code, self._code.builder
        scaling = build.bitcast(build.trunc(self._given.scaling, code.i32), code.f32)
        scaling = code.spread(scaling, _LANES)
        lanes = code.ir.Constant(code.vector(code.i32, _LANES), list(range(_LANES)))
        lowest = code.same(code.f32, _LANES, float("-inf"))
        for number in range(len(totals[0])):
            here = build.mul(build.add(block, code.number(number)), code.number(_LANES))
            left = build.trunc(build.sub(self._given.keys, here), code.i32)
            is_key = build.icmp_signed("<", lanes, code.spread(left, _LANES))
            for index, sums in enumerate(totals):
                score = build.fmul(sums[number].get(), scaling)
                at = build.add(
                    build.mul(self._line, code.number(index)), build.mul(here, code.number(4))
                )
                code.store(build.select(is_key, score, lowest), self._scores, at)

    def _write_weights(self, number: ir.Value) -> None:
        """Write the code that replaces the scores of a query by the weights of its values."""
        code, build, kind = self._code, self._code.builder, self._kind
        base = build.mul(self._line, number)
        most = code.variable(code.same(code.f32, _LANES, float("-inf")))
        with code.loop(code.number(0), self._given.blocks) as block:
            at = build.add(base, build.mul(block, code.number(4 * _LANES)))
            found = code.load(self._scores, at, kind)
            most.set(code.call(f"llvm.maxnum.v{_LANES}f32", kind, most.get(), found))
        top = code.call(f"llvm.vector.reduce.fmax.v{_LANES}f32", code.f32, most.get())
        top = code.spread(top, _LANES)
        whole = code.variable(code.same(code.f32, _LANES, 0.0))
        with code.loop(code.number(0), self._given.blocks) as block:
            at = build.add(base, build.mul(block, code.number(4 * _LANES)))
            weight = _power(code, build.fsub(code.load(self._scores, at, kind), top))
            whole.set(build.fadd(whole.get(), weight))
            # The weights in bfloat16 take the first half of the place of the scores.
            at = build.add(base, build.mul(block, code.number(2 * _LANES)))
            code.store(_halves(code, weight), self._scores, at)
        share = build.fdiv(code.ir.Constant(code.f32, 1.0), code.total(whole.get()))
        code.store(share, self._wholes, build.mul(number, code.number(4)))

    def _write_sums(
        self, begin: int, values: ir.Value, out: ir.Value, places: Sequence[ir.Value]
    ) -> None:
        """Write the code that adds the weighted values for some queries, from *begin* on."""
        code, build, width = self._code, self._code.builder, self._width
        # If the width is no multiple of 16, the last two registers overlap.
        columns = sorted({*range(0, width - _LANES, _LANES), width - _LANES})
        totals: list[list[Variable]] = [
            [code.variable(code.same(code.f32, _LANES, 0.0)) for _ in columns] for _ in places
        ]
        pairs = build.mul(self._given.blocks, code.number(_LANES // 2))
        bases = [
            build.mul(self._line, code.number(begin + number)) for number in range(len(places))
        ]
        with code.loop(code.number(0), pairs) as pair:
            at = build.mul(pair, code.number(4 * width))
            vectors = [
                code.load(
                    values,
                    build.add(at, code.number(4 * column)),
                    code.vector(code.i32, _LANES),
                )
                for column in columns
            ]
            place = build.mul(pair, code.number(4))
            for base, sums in zip(bases, totals, strict=True):
                both = code.load(self._scores, build.add(base, place), code.i32)
                both = code.spread(both, _LANES)
                for total, vector in zip(sums, vectors, strict=True):
                    total.set(code.call(PAIR_PRODUCT, self._kind, total.get(), vector, both))
        for number, (place, sums) in enumerate(zip(places, totals, strict=True)):
            share = code.load(self._wholes, 4 * (begin + number), code.f32)
            share = code.spread(share, _LANES)
            for column, total in zip(columns, sums, strict=True):
                mean = code.to_bfloat16(code.rounded(build.fmul(total.get(), share)))
                code.store(mean, out, build.add(place, code.number(2 * column)))


def _power(code: Code, values: ir.Value) -> ir.Value:
    """Return 2 to the power of *values*, none above 0; NaN stays NaN."""
    build, count = code.builder, values.type.count
    smallest = code.same(code.f32, count, _SMALLEST)
    values = build.select(build.fcmp_ordered("<", values, smallest), smallest, values)
    whole = code.call(f"llvm.rint.v{count}f32", values.type, values)
    rest = build.fsub(values, whole)
    found = code.same(code.f32, count, _COEFFICIENTS[0])
    for coefficient in _COEFFICIENTS[1:]:
        found = code.fused(found, rest, code.same(code.f32, count, coefficient))
    kind = code.vector(code.i32, count)
    # The whole part is added to the exponent.
    exponent = build.shl(build.fptosi(whole, kind), code.same(code.i32, count, 23))
    return build.bitcast(build.add(build.bitcast(found, kind), exponent), values.type)


def _halves(code: Code, weights: ir.Value) -> ir.Value:
    """Return *weights*, none negative, as bfloat16; halves go up.

    A NaN stays NaN: its lower 16 bits are zeros, because it came from bfloat16 or from the
    processor, so that nothing is carried into its sign.
    """
    build, count = code.builder, weights.type.count
    bits = build.bitcast(weights, code.vector(code.i32, count))
    bits = build.add(bits, code.same(code.i32, count, 0x8000))
    return build.trunc(
        build.lshr(bits, code.same(code.i32, count, 16)), code.vector(code.i16, count)
    )
