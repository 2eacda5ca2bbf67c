"""Code that kernels share: the first output of a block, and the scale of numbers to round."""

from __future__ import annotations

from typing import TYPE_CHECKING

from idefics_cli.models.kernels.jit import Code

if TYPE_CHECKING:
    from llvmlite import ir


def first_output(code: Code, block: ir.Value, outputs: ir.Value, size: int) -> ir.Value:
    """Return the number of the first output of *block*, a block of *size* outputs.

    If the last block would not be full, it begins earlier. Two threads may then compute the same
    outputs, so each stores its results only.
    """
    build = code.builder
    first = build.mul(block, code.number(size))
    last = build.sub(outputs, code.number(size))
    return build.select(build.icmp_signed("<", first, last), first, last)


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
