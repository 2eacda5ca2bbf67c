"""Compiled kernels do every piece of work once, in one thread and in several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import pytest
import torch

from idefics_cli.models.kernels import compiler, jit
from idefics_cli.models.kernels.int8.linear import CompiledInt8Linear
from idefics_cli.models.kernels.openmp import torch_threads
from tests.support.kernels import needs_compiler

if TYPE_CHECKING:
    from llvmlite import ir


def count_up(code: jit.Code, piece: ir.Value, arguments: Sequence[ir.Value]) -> None:
    """Write code that adds a number to the counter of the piece."""
    (counters, number), build = arguments, code.builder
    place = build.mul(piece, code.number(8))
    pointer = code.pointer(counters)
    code.store(build.add(code.load(pointer, place, code.i64), number), pointer, place)


@needs_compiler
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("pieces", [0, 1, 2, 7, 1000])
def test_each_piece_is_done_once(pieces: int, threads: int) -> None:
    kernel = jit.CompiledKernel(count_up, arguments=2)
    counters = torch.zeros(pieces + 1, dtype=torch.int64)
    with torch_threads(threads):
        for _ in range(3):
            kernel(pieces, counters.data_ptr(), 5)
    assert counters.tolist() == [15] * pieces + [0]


@needs_compiler
def test_a_lazy_kernel_is_compiled_once_for_each_width(width_of_registers: int) -> None:
    written: list[int] = []

    def body(code: jit.Code, piece: ir.Value, arguments: Sequence[ir.Value], /) -> None:
        written.append(compiler.vector_bytes())
        count_up(code, piece, arguments)

    kernel, counters = jit.LazyKernel(body, arguments=2), torch.zeros(1, dtype=torch.int64)
    for _ in range(3):
        kernel(1, counters.data_ptr(), 5)
    assert counters.tolist() == [15]
    assert written == [width_of_registers]


def test_a_check_passes_if_it_returns_true_and_raises_nothing() -> None:
    def finds_no_such_function() -> bool:
        raise AttributeError("create_pass_builder")

    def finds_no_compiler() -> bool:
        raise ImportError("llvmlite")

    assert jit.passes(lambda: True)
    assert not jit.passes(lambda: False)
    assert not jit.passes(finds_no_such_function)
    assert not jit.passes(finds_no_compiler)


@needs_compiler
def test_where_the_table_says_that_kernels_can_be_compiled_they_can() -> None:
    assert CompiledInt8Linear.passes_self_test()
