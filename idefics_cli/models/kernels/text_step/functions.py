"""The functions that a step calls: they are compiled once for all stages."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from idefics_cli.models.kernels.jit import Code
from idefics_cli.models.kernels.text_step.attention import Attention, AttentionWriter
from idefics_cli.models.kernels.text_step.layout import Format
from idefics_cli.models.kernels.text_step.products import Product, write_products
from idefics_cli.models.kernels.text_step.rounding import Rounding, write_rounding

if TYPE_CHECKING:
    from llvmlite import ir

BARRIER = "GOMP_barrier"
"""The function of the OpenMP library in which threads wait for each other."""


@dataclass(frozen=True, slots=True)
class StepKind:
    """What the code of a step depends on.

    Attributes:
        formats: The formats of the linear layers, in ascending order.
        head_width: Width of an attention head.
        is_bfloat16: Whether the model is in bfloat16: every result is then rounded to it, as torch
            does. Else it is in float32.
    """

    formats: tuple[Format, ...]
    head_width: int
    is_bfloat16: bool


class StepFunctions:
    """Adds the functions to a module.

    Args:
        module: The module of the step.
        kind: What the code depends on.

    Attributes:
        product: Computes a block of outputs of a linear layer; see `Product`.
        store_state: Stores the new state of a KV head; see `Attention`.
        attention: Attends to the states of a KV head.
        rounding: Rounds rows as a layer needs them; see `Rounding`.
        barrier: Waits for the other threads.
    """

    def __init__(self, module: ir.Module, kind: StepKind) -> None:
        from llvmlite import ir

        self._module, self._ir = module, ir
        self.product = self._add(
            "product",
            len(Product._fields),
            lambda code, values: write_products(code, Product(*values), kind.formats),
        )

        def attention(code: Code, values: Sequence[ir.Value]) -> AttentionWriter:
            given, build = Attention(*values), code.builder
            scaling = build.bitcast(build.trunc(given.scaling, code.i32), code.f32)
            return AttentionWriter(
                code,
                given._replace(scaling=scaling),
                kind.head_width,
                is_bfloat16=kind.is_bfloat16,
            )

        count = len(Attention._fields)
        self.store_state = self._add(
            "store_state", count, lambda code, values: attention(code, values).write_state()
        )
        self.attention = self._add(
            "attention", count, lambda code, values: attention(code, values).write_attention()
        )
        self.rounding = self._add(
            "round_rows",
            len(Rounding._fields),
            lambda code, values: write_rounding(code, Rounding(*values), kind.formats),
        )
        self.barrier = ir.Function(module, ir.FunctionType(ir.VoidType(), []), name=BARRIER)

    def _add(
        self, name: str, arguments: int, write: Callable[[Code, Sequence[ir.Value]], None]
    ) -> ir.Function:
        ir = self._ir
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)] * arguments)
        function = ir.Function(self._module, kind, name=name)
        function.linkage = "internal"
        function.attributes.add("noinline")
        code = Code(function)
        write(code, function.args)
        code.builder.ret_void()
        return function
