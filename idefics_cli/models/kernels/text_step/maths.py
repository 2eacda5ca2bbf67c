"""Code for the functions of numbers that a decode step needs, on vectors of float32."""

from __future__ import annotations

from typing import TYPE_CHECKING

from idefics_cli.models.kernels.jit import Code

if TYPE_CHECKING:
    from llvmlite import ir

# exp(x) is 2^n * exp(r) with |r| at most ln(2) / 2. The coefficients are those of `expf` in Cephes
# (S. Moshier); the error is at most 2 units of the last place.
_COEFFICIENTS = (
    *(1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3),
    *(4.1665795894e-2, 1.6666665459e-1, 5.0000001201e-1),
)
_LOG2_E = 1.44269504088896341
_LN2 = (0.693359375, -2.12194440e-4)
# Beyond these limits 2^n is no float32.
_SMALLEST, _LARGEST = -87.0, 88.0


def exponential(code: Code, values: ir.Value) -> ir.Value:
    """Return e to the power of *values*; NaN stays NaN."""
    build, count = code.builder, values.type.count

    def same(value: float) -> ir.Value:
        return code.same(code.f32, count, value)

    # `maxnum` and `minnum` would replace NaN by a limit. Comparisons keep it, as torch does, so
    # that a reply tells that the numbers went out of range.
    for sign, limit in (("<", same(_SMALLEST)), (">", same(_LARGEST))):
        values = build.select(build.fcmp_ordered(sign, values, limit), limit, values)
    power = code.call(f"llvm.rint.v{count}f32", values.type, build.fmul(values, same(_LOG2_E)))
    rest = values
    for part in _LN2:
        rest = code.fused(power, same(-part), rest)
    found = same(_COEFFICIENTS[0])
    for coefficient in _COEFFICIENTS[1:]:
        found = code.fused(found, rest, same(coefficient))
    found = code.fused(build.fmul(found, rest), rest, build.fadd(rest, same(1.0)))
    whole = build.fptosi(power, code.vector(code.i32, count))
    whole = build.add(whole, code.same(code.i32, count, 127))
    bits = build.shl(whole, code.same(code.i32, count, 23))
    return build.fmul(found, build.bitcast(bits, values.type))


def highest(code: Code, values: ir.Value) -> ir.Value:
    """Return the largest element of *values*."""
    return code.call(f"llvm.vector.reduce.fmax.v{values.type.count}f32", code.f32, values)
