"""Code that kernels share: pieces of work, prefetching, and the scale of numbers to round."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from idefics_cli.models.kernels.jit import Code

if TYPE_CHECKING:
    from llvmlite import ir


def first_output(code: Code, block: ir.Value, outputs: ir.Value, size: int) -> ir.Value:
    """Return the number of the first output of *block*, a block of *size* outputs.

    If the last block would not be full, it begins earlier. Two threads may then compute the same
    outputs, so each stores its results only.
    """
    first = code.builder.mul(block, code.number(size))
    return code.smaller(first, code.builder.sub(outputs, code.number(size)))


def rows_of_piece(count: int, *, most: int, step: int) -> int:
    """Return how many of *count* rows a piece has: up to *most*, and a multiple of *step*.

    All pieces but the last have this number, and they are as equal as they can be.
    """
    pieces = -(-count // most)
    return -(-count // (pieces * step)) * step


class RowsAndOutputs(NamedTuple):
    """The rows and the outputs of a piece of a product.

    Attributes:
        first_row: Number of the first row.
        rows: Number of rows.
        first: Number of the first output, or block of outputs.
        stop: One more than the number of the last of them.
    """

    first_row: ir.Value
    rows: ir.Value
    first: ir.Value
    stop: ir.Value


def find_piece(
    code: Code,
    piece: ir.Value,
    rows: tuple[ir.Value, ir.Value],
    outputs: tuple[ir.Value, int],
) -> RowsAndOutputs:
    """Return the rows and outputs of *piece*; pieces with the same rows follow each other.

    Args:
        code: Where the code is written.
        piece: Number of the piece, from 0.
        rows: Number of all rows, and of those of a piece.
        outputs: Number of all outputs, or blocks of outputs, and of those of a piece.
    """
    build, (total, most) = code.builder, outputs
    parts = build.udiv(build.add(total, code.number(most - 1)), code.number(most))
    first_row = build.mul(build.udiv(piece, parts), rows[1])
    first = build.mul(build.urem(piece, parts), code.number(most))
    return RowsAndOutputs(
        first_row,
        code.smaller(rows[1], build.sub(rows[0], first_row)),
        first,
        code.smaller(build.add(first, code.number(most)), total),
    )


class Distance(NamedTuple):
    """How many bytes ahead to prefetch, if an output has few bytes of weights, or many."""

    short: ir.Value
    long: ir.Value


def write_prefetch(
    code: Code,
    weights: ir.Value,
    first: ir.Value,
    line: ir.Value,
    start: ir.Value,
    distance: Distance,
    *,
    outputs: int,
    step: int,
    longest: int,
) -> None:
    """Write the code that prefetches weights in a loop that reads several outputs in turn.

    Short lines are prefetched in the order of their addresses, because the processor then helps and
    prefetches further ahead. In the order in which the loop reads them, a product with 960 bytes
    for each output took 1.5 times as long (AMD Zen 3).

    Args:
        code: Where the code is written.
        weights: Pointer to weights.
        first: Where those of the first output begin, in bytes from *weights*.
        line: Bytes of the weights of an output.
        start: How many bytes of each output the loop has read.
        distance: How far ahead; 0 is what the loop reads next.
        outputs: Number of outputs; their weights follow each other.
        step: How many bytes of each output the loop reads in one pass, a multiple of 64.
        longest: The most bytes of a short line.
    """
    build = code.builder
    is_short = build.icmp_signed("<=", line, code.number(longest))
    ahead = build.select(is_short, distance.short, distance.long)
    pace = build.select(is_short, code.number(outputs), code.number(1))
    gap = build.select(is_short, code.number(step), line)
    place = build.add(first, build.add(build.mul(start, pace), ahead))
    for number in range(outputs):
        at = build.add(place, build.mul(gap, code.number(number)))
        for part in range(0, step, 64):
            code.prefetch(weights, build.add(at, code.number(part)))


def size_bits(code: Code, values: ir.Value) -> ir.Value:
    """Return the absolute values of a vector of float32 as integers, which have the same order.

    NaN is above all others. `fmax` ignores NaN, which would make a reply of damaged weights look
    sound.
    """
    count = values.type.count
    sizes = code.call(f"llvm.fabs.v{count}f32", values.type, values)
    return code.builder.bitcast(sizes, code.vector(code.i32, count))


def scale_and_factor(code: Code, sizes: ir.Value, highest: int) -> tuple[ir.Value, ir.Value]:
    """Return the scale of numbers up to *highest*, and the factor that makes them.

    Args:
        code: Where the code is written.
        sizes: A vector from `size_bits`; its largest element becomes *highest*.
        highest: The largest number.
    """
    build, f32 = code.builder, code.f32
    bits = code.call(f"llvm.vector.reduce.umax.v{sizes.type.count}i32", code.i32, sizes)
    largest, limit = build.bitcast(bits, f32), code.ir.Constant(f32, float(highest))
    # If all values are zero, their scale is 0; they are divided by 1 instead.
    is_zero = build.fcmp_ordered("==", largest, code.ir.Constant(f32, 0.0))
    divisor = build.select(is_zero, code.ir.Constant(f32, 1.0), largest)
    return build.fdiv(largest, limit), build.fdiv(limit, divisor)
