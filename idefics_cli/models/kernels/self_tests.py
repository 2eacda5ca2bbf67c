"""The self-tests of the kernels that a plan names."""

from __future__ import annotations

from collections.abc import Mapping

from idefics_cli.core.types import KernelChoice
from idefics_cli.models.kernels.table import KERNELS, Kernel


def find_failing_kernels(
    choice: KernelChoice, *, device: str = "cpu", kernels: Mapping[str, Kernel] = KERNELS
) -> tuple[str, ...]:
    """Run the self-tests of the kernels of *choice*; return the names of those that fail.

    All of them together take less than a second, most of it for compiling.

    Args:
        choice: The names of the kernels.
        device: The device of the model.
        kernels: The table of all kernels.
    """
    return tuple(name for name in choice.names if not kernels[name].passes_self_test(device))
