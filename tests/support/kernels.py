"""What the tests of the kernels that are compiled for this processor share."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType

import pytest
import torch
from torch import Tensor

from idefics_cli.models.kernels import jit
from idefics_cli.models.kernels.bf16_12bit import code as compact_code
from idefics_cli.models.kernels.bf16_12bit import kernel as compact_kernel
from idefics_cli.models.kernels.int4 import kernel as int4_kernel
from idefics_cli.models.kernels.int8 import kernel as int8_kernel

MODULES = (compact_kernel, int4_kernel, int8_kernel)
# Where their code is written for registers of some width.
CODE = (compact_code, int4_kernel, int8_kernel)
FAULTS = ("refuses", "lies", "absent")

needs_kernels = pytest.mark.skipif(
    not jit.is_available(), reason="kernels are compiled on x86 Linux"
)


def relative_error(given: Tensor, wanted: Tensor) -> float:
    """How far *given* is from *wanted*, by the norm of the latter."""
    return float((given.double() - wanted.double()).norm() / wanted.double().norm())


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Let torch, and so the kernels, use *count* threads in the block."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def compiled_anew() -> Iterator[None]:
    """Forget what was compiled and found out before the block, and in it."""
    _forget()
    try:
        yield
    finally:
        _forget()


def _forget() -> None:
    """Let all be compiled and found out again."""
    for module in MODULES:
        for known in vars(module).values():
            # Not what is imported: it does not change.
            if hasattr(known, "cache_clear") and known.__module__ == module.__name__:
                known.cache_clear()


def spoil(module: ModuleType, fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the products of *module* have one of `FAULTS`; to be called in `compiled_anew`."""
    product = module.product

    def refuses(rows: Tensor, weight: object) -> Tensor:
        raise RuntimeError("no such instruction")

    def lies(rows: Tensor, weight: object) -> Tensor:
        return torch.zeros_like(product(rows, weight))

    if fault == "absent":
        monkeypatch.setattr(jit, "is_available", lambda: False)
    else:
        monkeypatch.setattr(module, "product", {"refuses": refuses, "lies": lies}[fault])
