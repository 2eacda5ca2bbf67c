"""Code for the linear layers of a decode step, in every format of their weights.

All layers compute blocks of 16 outputs. The addresses of their weights are:

- FLOAT32, BFLOAT16: the weights (outputs, width).
- INT8: the weights (outputs, width), and the scale of each output, float32.
- INT4: the weights, as `int4.layout.pack` returns them.
- BFLOAT16_12BIT: the fields of `bf16_12bit.kernel.Compact`, in their order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, NamedTuple

from idefics_cli.models.kernels.bf16_12bit import products as compact
from idefics_cli.models.kernels.bf16_12bit.layout import GROUP
from idefics_cli.models.kernels.blocks import first_output
from idefics_cli.models.kernels.int4 import kernel as int4
from idefics_cli.models.kernels.int4 import layout as int4_layout
from idefics_cli.models.kernels.int8 import dots
from idefics_cli.models.kernels.int8 import kernel as rows_kernel
from idefics_cli.models.kernels.jit import Code
from idefics_cli.models.kernels.text_step.layout import FIELD_BYTES, Format, LinearField

if TYPE_CHECKING:
    from llvmlite import ir

LANES = 16
"""Number of outputs of a block."""


class Product(NamedTuple):
    """Arguments of the function that computes a block of outputs.

    Attributes:
        block: Number of the block, from 0.
        rows: Number of rows.
        linear: Address of the fields of the layer.
        activations: Address of the rows (rows, width), float32.
        numbers: Address of the rows in the format that the layer needs: in 8 bits for INT4, see
            `int4.kernel.round_rows`; in 16 bits for INT8, if `takes_dots`, see `int8.rounding`; in
            bfloat16 for BFLOAT16_12BIT, if the processor multiplies it.
        scales: Address of their scales.
        out: Address of the products (rows, outputs), float32.
    """

    block: ir.Value
    rows: ir.Value
    linear: ir.Value
    activations: ir.Value
    numbers: ir.Value
    scales: ir.Value
    out: ir.Value


def field(code: Code, table: ir.Value, index: int) -> ir.Value:
    """Return field *index* of the table at the address *table*."""
    return code.load(code.pointer(table), FIELD_BYTES * index, code.i64)


def write_products(code: Code, product: Product, formats: Sequence[Format]) -> None:
    """Write the code that computes a block of outputs of a layer of one of *formats*."""
    build = code.builder
    chosen = field(code, product.linear, LinearField.FORMAT)
    for each in formats:
        is_chosen = build.icmp_signed("==", chosen, code.number(each))
        with build.if_then(is_chosen):
            _WRITERS[each](code, product)


def _weights(code: Code, product: Product, count: int) -> list[ir.Value]:
    first = LinearField.WEIGHTS
    return [field(code, product.linear, first + index) for index in range(count)]


def _write_float32(code: Code, product: Product) -> None:
    _write_rows(code, product, "float32")


def _write_bfloat16(code: Code, product: Product) -> None:
    _write_rows(code, product, "bfloat16")


def _write_int8(code: Code, product: Product) -> None:
    weight, scale = _weights(code, product, 2)
    width = field(code, product.linear, LinearField.WIDTH)
    outputs = field(code, product.linear, LinearField.OUTPUTS)
    with code.builder.if_else(takes_dots(code, width)) as (yes, no):
        with yes:
            first = first_output(code, product.block, outputs, LANES)
            arguments = (product.rows, width, outputs, product.numbers, weight, product.out)
            dots.write_outputs(code, first, arguments, scale=scale)
        with no:
            _write_rows(code, product, "int8", scale=scale)


def takes_dots(code: Code, width: ir.Value) -> ir.Value:
    """Return whether `int8/dots.py` multiplies by 8-bit weights of *width*."""
    build = code.builder
    is_whole = build.icmp_signed("==", build.urem(width, code.number(dots.STEP)), code.number(0))
    return build.and_(is_whole, build.icmp_signed("<=", width, code.number(dots.MOST_WIDTH)))


def _write_rows(
    code: Code, product: Product, stored: rows_kernel.Stored, *, scale: ir.Value | None = None
) -> None:
    build = code.builder
    width = field(code, product.linear, LinearField.WIDTH)
    outputs = field(code, product.linear, LinearField.OUTPUTS)
    (weight, *_) = _weights(code, product, 1)
    first = first_output(code, product.block, outputs, LANES)
    arguments = (product.rows, width, outputs, product.activations, weight, product.out)
    stop = build.add(first, code.number(LANES))
    with code.loop(first, stop, rows_kernel.OUTPUTS_TOGETHER) as output:
        rows_kernel.write_outputs(code, output, arguments, stored=stored, scale=scale)


def _write_int4(code: Code, product: Product) -> None:
    width = field(code, product.linear, LinearField.WIDTH)
    outputs = field(code, product.linear, LinearField.OUTPUTS)
    groups = code.builder.udiv(width, code.number(int4_layout.GROUP))
    (packed, *_) = _weights(code, product, 1)
    arguments = (groups, product.rows, packed, product.numbers, product.scales)
    int4.write_product(code, product.block, (*arguments, product.out, outputs))


def _write_12bit(code: Code, product: Product) -> None:
    width = field(code, product.linear, LinearField.WIDTH)
    outputs = field(code, product.linear, LinearField.OUTPUTS)
    groups = code.builder.udiv(width, code.number(GROUP))
    rows = product.numbers if compact.multiplies_bfloat16() else product.activations
    arguments = (groups, product.rows, rows, *_weights(code, product, 5))
    compact.write_product(code, product.block, (*arguments, product.out, outputs))


_WRITERS: Mapping[Format, Callable[[Code, Product], None]] = MappingProxyType(
    {
        Format.FLOAT32: _write_float32,
        Format.BFLOAT16: _write_bfloat16,
        Format.BFLOAT16_12BIT: _write_12bit,
        Format.INT8: _write_int8,
        Format.INT4: _write_int4,
    }
)
