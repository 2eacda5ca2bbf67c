"""Kernels that are compiled here: every piece is done once, by all threads, and alone."""

from __future__ import annotations

import platform
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import pytest
import torch

from idefics_cli.hardware.machine import probe_machine
from idefics_cli.models.kernels import jit
from tests.support.kernels import needs_kernels, torch_threads

if TYPE_CHECKING:
    from llvmlite import ir


def count_up(code: jit.Code, piece: ir.Value, arguments: Sequence[ir.Value]) -> None:
    """Add a number to the counter of the piece."""
    (counters, number), build = arguments, code.builder
    place = build.mul(piece, code.number(8))
    pointer = code.pointer(counters)
    code.store(build.add(code.load(pointer, place, code.i64), number), pointer, place)


@pytest.fixture
def _forgotten() -> Iterator[None]:
    jit.is_available.cache_clear()
    yield
    jit.is_available.cache_clear()


@needs_kernels
@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("pieces", [0, 1, 2, 7, 1000])
def test_each_piece_is_done_once(pieces: int, threads: int) -> None:
    kernel = jit.Kernel(count_up, arguments=2)
    counters = torch.zeros(pieces + 1, dtype=torch.int64)
    with torch_threads(threads):
        for _ in range(3):
            kernel(pieces, counters.data_ptr(), 5)
    assert counters.tolist() == [15] * pieces + [0]


@needs_kernels
def test_on_this_machine_they_are_to_be_had_and_the_compiler_is_installed() -> None:
    import llvmlite.binding as llvm

    assert llvm.get_host_cpu_features()["avx2"]
    assert jit.vector_bytes() in (32, 64)


def test_a_probe_of_this_machine_finds_them_too() -> None:
    assert probe_machine().compiles_kernels == jit.is_available()


@pytest.mark.usefixtures("_forgotten")
@pytest.mark.parametrize("lacks", ["linux", "x86", "llvmlite", "openmp", "avx2"])
def test_elsewhere_there_are_none(lacks: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_openmp() -> None:
        raise AttributeError("GOMP_parallel")

    if lacks == "linux":
        monkeypatch.setattr(jit.sys, "platform", "win32")
    elif lacks == "x86":
        monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    elif lacks == "llvmlite":
        monkeypatch.setattr(jit.importlib.util, "find_spec", lambda name: None)
    elif lacks == "openmp":
        monkeypatch.setattr(jit, "_openmp", no_openmp)
    else:
        monkeypatch.setattr(jit, "_features", lambda: frozenset({"sse4.2"}))
    assert not jit.is_available()


@needs_kernels
def test_a_check_passes_if_it_says_so_where_kernels_are_to_be_had(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def finds_no_such_function() -> bool:
        raise AttributeError("create_pass_builder")

    assert jit.passes(lambda: True)
    assert not jit.passes(lambda: False)
    assert not jit.passes(finds_no_such_function)
    monkeypatch.setattr(jit, "is_available", lambda: False)
    assert not jit.passes(lambda: True)
