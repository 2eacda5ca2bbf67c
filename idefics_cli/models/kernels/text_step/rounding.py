"""Code that rounds the rows of a linear layer of a decode step to what its weights multiply."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from idefics_cli.models.kernels.bf16_12bit import products as compact
from idefics_cli.models.kernels.int4 import kernel as int4
from idefics_cli.models.kernels.int4 import layout as int4_layout
from idefics_cli.models.kernels.int8 import rounding as int8
from idefics_cli.models.kernels.jit import Code
from idefics_cli.models.kernels.text_step.layout import Format, LinearField
from idefics_cli.models.kernels.text_step.products import LANES, field, takes_dots

if TYPE_CHECKING:
    from llvmlite import ir


class Rounding(NamedTuple):
    """Arguments of the function that rounds rows.

    Attributes:
        linear: Address of the fields of the layer.
        rows: Number of rows.
        activations: Address of the rows (rows, width), float32.
        numbers: Address at which the rounded rows are written; see `products.Product`.
        scales: Address at which their scales are written.
    """

    linear: ir.Value
    rows: ir.Value
    activations: ir.Value
    numbers: ir.Value
    scales: ir.Value


def write_rounding(code: Code, given: Rounding, formats: Sequence[Format]) -> None:
    """Write the code that rounds all rows; it does nothing if the layer needs float32.

    Args:
        code: Where the code is written.
        given: The arguments.
        formats: The formats of all layers.
    """
    build = code.builder
    chosen = field(code, given.linear, LinearField.FORMAT)
    width = field(code, given.linear, LinearField.WIDTH)
    if Format.INT4 in formats:
        with build.if_then(build.icmp_signed("==", chosen, code.number(Format.INT4))):
            groups = build.udiv(width, code.number(int4_layout.GROUP))
            arguments = (groups, given.activations, given.numbers, given.scales)
            with code.loop(code.number(0), given.rows) as row:
                int4.write_rounding(code, row, arguments, halves=False)
    if Format.INT8 in formats:
        is_int8 = build.icmp_signed("==", chosen, code.number(Format.INT8))
        with (
            build.if_then(build.and_(is_int8, takes_dots(code, width))),
            code.loop(code.number(0), given.rows) as row,
        ):
            int8.write_rounding(code, row, (width, given.activations, given.numbers))
    if Format.BFLOAT16_12BIT in formats and compact.multiplies_bfloat16():
        with build.if_then(build.icmp_signed("==", chosen, code.number(Format.BFLOAT16_12BIT))):
            _write_halves(code, given, build.mul(width, given.rows))


def _write_halves(code: Code, given: Rounding, count: ir.Value) -> None:
    """Write the code that copies *count* numbers, which bfloat16 holds exactly, as bfloat16."""
    build = code.builder
    source, target = code.pointer(given.activations), code.pointer(given.numbers)
    with code.loop(code.number(0), count, LANES) as place:
        at = build.mul(place, code.number(4))
        values = code.load(source, at, code.vector(code.f32, LANES))
        code.store(code.to_bfloat16(values), target, build.mul(place, code.number(2)))
