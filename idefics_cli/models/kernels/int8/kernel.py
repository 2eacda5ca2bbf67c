"""Products of 8-bit weights with a few rows.

The rows are rounded to 16 bits; see `dots.py`. For shapes that do not fit there, they stay in
float32.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from idefics_cli.models.kernels import jit
from idefics_cli.models.kernels.blocks import Distance, first_output, write_prefetch
from idefics_cli.models.kernels.compiler import vector_bytes
from idefics_cli.models.kernels.int8 import dots
from idefics_cli.models.kernels.jit import Code, LazyKernel, Variable

if TYPE_CHECKING:
    from llvmlite import ir

# The kernel multiplies this many weights along the width in one pass of its loop.
STEP = 64
# The width is a multiple of this: the number of float32 values in the widest register.
LANES = 16
# Number of outputs that are computed together: a row is read once for all of them.
OUTPUTS_TOGETHER = 4
Stored = Literal["int8", "bfloat16", "float32"]
"""How weights are stored that are laid out in rows, one row for each output."""
_BYTES: Mapping[Stored, int] = MappingProxyType({"int8": 1, "bfloat16": 2, "float32": 4})
# The kernel prefetches weights 4 outputs ahead, or at this distance in bytes if an output has more
# than `_SHORT_BYTES`.
_PREFETCH_BYTES = 4096
_SHORT_BYTES = 3 * 2**12


def product(rows: Tensor, weight: Tensor) -> Tensor:
    """Return (N, out) float32, the products of *rows* (N, in) with *weight* (out, in) int8.

    Args:
        rows: Of any float dtype; *in* is a multiple of 16.
        weight: Contiguous, with at least 4 outputs.
    """
    rows = rows.float().contiguous()
    outputs, width = weight.shape
    if dots.fits(outputs, width):
        return dots.product(rows, weight)
    out = torch.empty(len(rows), outputs)
    addresses = (tensor.data_ptr() for tensor in (rows, weight, out))
    _product(-(-outputs // OUTPUTS_TOGETHER), len(rows), width, outputs, *addresses)
    return out


def fits(weight: Tensor) -> bool:
    """Whether `product` can multiply by *weight*."""
    outputs, width = weight.shape
    return width % LANES == 0 and outputs >= OUTPUTS_TOGETHER


def passes_self_test() -> bool:
    """Whether the kernel can be compiled here and computes a small example correctly."""
    return jit.passes(_computes_an_example)


def _computes_an_example() -> bool:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randint(-127, 128, (50, 192), generator=generator, dtype=torch.int8)
    rows = torch.randn(7, 192, generator=generator)
    exact = functional.linear(rows, weight.float())
    few = 10  # too few outputs for `dots.py`
    errors = [
        (product(rows, weight[:count]) - exact[:, :count]).norm() / exact[:, :count].norm()
        for count in (few, len(weight))
    ]
    return bool(errors[0] < 1e-5 and errors[1] < 2e-4)


class _RowsProduct(NamedTuple):
    """Arguments of the kernel of products.

    Attributes:
        rows: Number of rows.
        width: Numbers of a row, a multiple of 16.
        outputs: Number of outputs.
        activations: Address of the rows (rows, width), float32.
        weight: Address of the weights (outputs, width).
        out: Address of the products (rows, outputs), float32.
        stored: How the weights are stored.
        scale: Address of the factor of each output, float32; None for no factors.
    """

    rows: ir.Value
    width: ir.Value
    outputs: ir.Value
    activations: ir.Value
    weight: ir.Value
    out: ir.Value
    stored: Stored = "int8"
    scale: ir.Value | None = None

    def load(self, code: Code, offset: ir.Value, lanes: int) -> ir.Value:
        """Return *lanes* weights as float32, the first of which is weight number *offset*."""
        wide = code.vector(code.f32, lanes)
        if self.stored == "float32":
            return code.load(self.weight, code.builder.mul(offset, code.number(4)), wide)
        if self.stored == "bfloat16":
            halves = code.vector(code.i16, lanes)
            at = code.builder.mul(offset, code.number(2))
            return code.from_bfloat16(code.load(self.weight, at, halves))
        narrow = code.load(self.weight, offset, code.vector(code.i8, lanes))
        return code.builder.sitofp(narrow, wide)


def _write_product(code: Code, piece: ir.Value, arguments: Sequence[ir.Value]) -> None:
    """Write the code that multiplies all rows by 4 outputs."""
    outputs = _RowsProduct(*arguments).outputs
    write_outputs(code, first_output(code, piece, outputs, OUTPUTS_TOGETHER), arguments)


def write_outputs(
    code: Code,
    first: ir.Value,
    arguments: Sequence[ir.Value],
    *,
    stored: Stored = "int8",
    scale: ir.Value | None = None,
) -> None:
    """Write the code that multiplies all rows by 4 outputs.

    Args:
        code: Where the code is written.
        first: Number of the first output.
        arguments: Those of `_RowsProduct` but *stored*.
        stored: How the weights are stored.
        scale: Address of the factor of each output, float32; None for no factors.
    """
    given, build = _RowsProduct(*arguments)._replace(stored=stored, scale=scale), code.builder
    given = given._replace(
        activations=code.pointer(given.activations),
        weight=code.pointer(given.weight),
        out=code.pointer(given.out),
    )
    outputs = [build.add(first, code.number(each)) for each in range(OUTPUTS_TOGETHER)]
    for row, count in code.portions(given.rows, (4, 2, 1) if vector_bytes() == 64 else (2, 1)):
        rows = [build.add(row, code.number(each)) for each in range(count)]
        _write_rows(code, rows, outputs, given)


def _write_rows(
    code: Code, rows: Sequence[ir.Value], outputs: Sequence[ir.Value], given: _RowsProduct
) -> None:
    """Write the code that multiplies some rows by some outputs."""
    build, lanes = code.builder, vector_bytes() // 4
    zeros = code.same(code.f32, lanes, 0.0)
    # One row has two sums for each output, so that a multiplication does not wait for the one
    # before it.
    chains = 2 if len(rows) == 1 else 1
    sums = [[[code.variable(zeros) for _ in range(chains)] for _ in outputs] for _ in rows]
    whole = build.and_(given.width, code.number(-STEP))
    with code.loop(code.number(0), whole, STEP) as start:
        _write_prefetch(code, outputs, given, start)
        for number, part in enumerate(range(0, STEP, lanes)):
            column = build.add(start, code.number(part))
            chosen = [[totals[number % chains] for totals in each] for each in sums]
            _write_part(code, rows, outputs, given, column, chosen)
    first = [[totals[0] for totals in each] for each in sums]
    with code.loop(whole, given.width, lanes) as column:
        _write_part(code, rows, outputs, given, column, first)
    for row, each in zip(rows, sums, strict=True):
        for output, totals in zip(outputs, each, strict=True):
            whole = totals[0].get()
            for total in totals[1:]:
                whole = build.fadd(whole, total.get())
            product = code.total(whole)
            if given.scale is not None:
                at = build.mul(output, code.number(4))
                factor = code.load(code.pointer(given.scale), at, code.f32)
                product = build.fmul(product, factor)
            offset = build.add(build.mul(row, given.outputs), output)
            code.store(product, given.out, build.mul(offset, code.number(4)))


def _write_prefetch(
    code: Code, outputs: Sequence[ir.Value], given: _RowsProduct, start: ir.Value
) -> None:
    build, size = code.builder, _BYTES[given.stored]
    line = build.mul(given.width, code.number(size))
    ahead = build.mul(line, code.number(len(outputs)))
    write_prefetch(
        code,
        given.weight,
        build.mul(outputs[0], line),
        line,
        build.mul(start, code.number(size)),
        Distance(ahead, code.number(_PREFETCH_BYTES)),
        outputs=len(outputs),
        step=STEP * size,
        longest=_SHORT_BYTES,
    )


def _write_part(
    code: Code,
    rows: Sequence[ir.Value],
    outputs: Sequence[ir.Value],
    given: _RowsProduct,
    column: ir.Value,
    sums: Sequence[Sequence[Variable]],
) -> None:
    """Write the code for the columns that fill one register: it adds their products to *sums*."""
    build, lanes = code.builder, vector_bytes() // 4
    wide = code.vector(code.f32, lanes)
    activations = []
    for row in rows:
        offset = build.mul(build.add(build.mul(row, given.width), column), code.number(4))
        activations.append(code.load(given.activations, offset, wide))
    for index, output in enumerate(outputs):
        offset = build.add(build.mul(output, given.width), column)
        value = given.load(code, offset, lanes)
        for activation, totals in zip(activations, sums, strict=True):
            totals[index].set(code.fused(value, activation, totals[index].get()))


_product = LazyKernel(_write_product, arguments=6)
