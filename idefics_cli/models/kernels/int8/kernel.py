"""Products of 8-bit weights with a few rows, which stay in float32.

Time relative to torch's kernel: 0.86 for 1 row, 0.6 for 4 and 0.5 for 16 (32,000 x 4,096,
torch 2.13, 3 threads of a Xeon with AVX512, interleaved).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from idefics_cli.models.kernels import jit
from idefics_cli.models.kernels.jit import Code, LazyKernel, Variable, vector_bytes

if TYPE_CHECKING:
    from llvmlite import ir

# The kernel multiplies this many weights along the width in one pass of its loop, so the width must
# be a multiple of it.
STEP = 64
# Number of outputs that are computed together: a row is read once for all of them.
_OUTPUTS_TOGETHER = 4
# The kernel prefetches the weights at this distance in bytes; `int4/kernel.py` says why.
_PREFETCH_BYTES = 512


def product(rows: Tensor, weight: Tensor) -> Tensor:
    """Return (N, out) float32, the products of *rows* (N, in) with *weight* (out, in) int8.

    Args:
        rows: Of any float dtype; *in* is a multiple of 64.
        weight: Contiguous, with at least 4 outputs.
    """
    rows = rows.float().contiguous()
    outputs, width = weight.shape
    out = torch.empty(len(rows), outputs)
    addresses = (tensor.data_ptr() for tensor in (rows, weight, out))
    _product(-(-outputs // _OUTPUTS_TOGETHER), len(rows), width, outputs, *addresses)
    return out


def fits(weight: Tensor) -> bool:
    """Whether `product` can multiply by *weight*."""
    outputs, width = weight.shape
    return width % STEP == 0 and outputs >= _OUTPUTS_TOGETHER


def passes_self_test() -> bool:
    """Whether the kernel can be compiled here and computes a small example correctly."""
    return jit.passes(_computes_an_example)


def _computes_an_example() -> bool:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (10, 192), generator=generator, dtype=torch.int8)
    rows = torch.randn(7, 192, generator=generator)
    given = product(rows, weight)
    exact = functional.linear(rows, weight.float())
    return bool((given - exact).norm() < 1e-5 * exact.norm())


class _Int8Product(NamedTuple):
    """Arguments of the kernel of products.

    Attributes:
        rows: Number of rows.
        width: Numbers of a row.
        outputs: Number of outputs.
        activations: Address of the rows (rows, width), float32.
        weight: Address of the weights (outputs, width), int8.
        out: Address of the products (rows, outputs), float32.
    """

    rows: ir.Value
    width: ir.Value
    outputs: ir.Value
    activations: ir.Value
    weight: ir.Value
    out: ir.Value


def _write_product(code: Code, piece: ir.Value, arguments: Sequence[ir.Value]) -> None:
    """Write the code that multiplies all rows by a few outputs."""
    given, build = _Int8Product(*arguments), code.builder
    first = build.mul(piece, code.number(_OUTPUTS_TOGETHER))
    # If the last piece would not be full, it begins earlier, and some outputs are computed twice.
    highest = build.sub(given.outputs, code.number(_OUTPUTS_TOGETHER))
    first = build.select(build.icmp_signed("<", first, highest), first, highest)
    given = given._replace(
        activations=code.pointer(given.activations),
        weight=code.pointer(given.weight),
        out=code.pointer(given.out),
    )
    outputs = [build.add(first, code.number(each)) for each in range(_OUTPUTS_TOGETHER)]
    for row, count in code.portions(given.rows, (4, 1) if vector_bytes() == 64 else (2, 1)):
        rows = [build.add(row, code.number(each)) for each in range(count)]
        _write_rows(code, rows, outputs, given)


def _write_rows(
    code: Code, rows: Sequence[ir.Value], outputs: Sequence[ir.Value], given: _Int8Product
) -> None:
    """Write the code that multiplies some rows by some outputs."""
    build, lanes = code.builder, vector_bytes() // 4
    zeros = code.same(code.f32, lanes, 0.0)
    sums = [[code.variable(zeros) for _ in outputs] for _ in rows]
    with code.loop(code.number(0), given.width, STEP) as start:
        if len(rows) == 1:
            for output in outputs:
                offset = build.add(build.mul(output, given.width), start)
                code.prefetch(given.weight, build.add(offset, code.number(_PREFETCH_BYTES)))
        for part in range(0, STEP, lanes):
            _write_part(code, rows, outputs, given, build.add(start, code.number(part)), sums)
    add = f"llvm.vector.reduce.fadd.v{lanes}f32"
    for row, totals in zip(rows, sums, strict=True):
        for output, total in zip(outputs, totals, strict=True):
            whole = code.call(add, code.f32, code.ir.Constant(code.f32, -0.0), total.get())
            offset = build.add(build.mul(row, given.outputs), output)
            code.store(whole, given.out, build.mul(offset, code.number(4)))


def _write_part(
    code: Code,
    rows: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    given: _Int8Product,
    column: ir.Value,
    sums: Sequence[Sequence[Variable]],
) -> None:
    """Write the code for the columns that fill one register: it adds their products to *sums*."""
    build, lanes = code.builder, vector_bytes() // 4
    narrow, wide = code.vector(code.i8, lanes), code.vector(code.f32, lanes)
    activations = []
    for row in rows:
        offset = build.mul(build.add(build.mul(row, given.width), column), code.number(4))
        activations.append(code.load(given.activations, offset, wide))
    for index, output in enumerate(outputs):
        offset = build.add(build.mul(output, given.width), column)
        value = build.sitofp(code.load(given.weight, offset, narrow), wide)
        for activation, totals in zip(activations, sums, strict=True):
            totals[index].set(code.fused(value, activation, totals[index].get()))


_product = LazyKernel(_write_product, arguments=6)
