"""What tests of kernels share."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from idefics_cli.core.types import LoadSpec
from idefics_cli.hardware.machine import Machine, probe_processor
from idefics_cli.models.kernels.byte_dots import has_dots
from idefics_cli.models.kernels.compiler import vector_bytes
from idefics_cli.models.kernels.int8.rounding import EXTRA_BYTES, round_rows
from idefics_cli.models.kernels.table import KERNELS, compiler_problem
from idefics_cli.models.planning.kernels import choose_kernels

HERE = probe_processor()

needs_compiler = pytest.mark.skipif(
    compiler_problem(HERE) is not None, reason=str(compiler_problem(HERE))
)

_float32_problem = KERNELS["float32_12bit"].problem(HERE)
packs_float32 = pytest.mark.skipif(_float32_problem is not None, reason=str(_float32_problem))
"""For tests of float32 models with weights in 12 bits."""
FLOAT32_WAY = (
    f"cpu float32 sdpa {'with kernels' if _float32_problem is not None else 'float32_12bit'}"
)
"""Name of the way of a self-check that a plan takes for float32 here."""


def with_kernels(spec: LoadSpec, machine: Machine = HERE) -> LoadSpec:
    """Return *spec* with the kernels that a plan for *machine* has."""
    return replace(spec, kernels=choose_kernels(spec, machine))


def spec_of(folder: Path, **changes: Any) -> LoadSpec:
    """Return how the checkpoint in *folder* is loaded here, with kernels, but for *changes*."""
    family = json.loads((folder / "config.json").read_text())["model_type"]
    return with_kernels(LoadSpec(repo=str(folder), family=family, **changes))


def relative_error(given: Tensor, wanted: Tensor) -> float:
    """How far *given* is from *wanted*, by the norm of the latter."""
    return float((given.double() - wanted.double()).norm() / wanted.double().norm())


def as_rounded(rows: Tensor) -> Tensor:
    """Return *rows* as the kernels for 8-bit weights round them, in float64."""
    rounded, size = round_rows(rows), vector_bytes()
    scale = rounded[:, :4].contiguous().view(torch.float32).double()
    stored = rounded[:, EXTRA_BYTES:].contiguous()
    if not has_dots():
        return stored.view(torch.int16).double() * scale
    numbers = stored.view(torch.int8)
    upper, lower = numbers.reshape(len(rows), -1, 2, size).double().unbind(2)
    return (256 * upper + lower).reshape(rows.shape) * scale


def refusing(*arguments: object) -> Tensor:
    """Stand in for a kernel that the processor cannot run."""
    raise RuntimeError("no such instruction")


def zeros(rows: Tensor, *rest: object) -> Tensor:
    """Stand in for a product of a layer with 96 outputs that computes wrongly."""
    return torch.zeros(len(rows), 96, dtype=rows.dtype)


def lying(product: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a stand-in for the kernel *product* that gives zeros."""

    def lies(*arguments: object) -> Tensor:
        return torch.zeros_like(product(*arguments))

    return lies
