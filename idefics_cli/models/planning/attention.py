"""The requirements of attention implementations: a family, a device and a package."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from idefics_cli.core.types import Attention, DtypeName
from idefics_cli.hardware.machine import Gpu, Machine
from idefics_cli.models.families.spec import find_family
from idefics_cli.models.planning.quantization import Problem


@dataclass(frozen=True, slots=True)
class Flash:
    """The requirements of a version of FlashAttention.

    Attributes:
        distribution: Name of the package.
        minimum: Oldest version of the package that transformers supports.
        capability: Lowest CUDA compute capability.
        generation: Name of the GPUs of that capability.
        install: How to install the package.
    """

    distribution: str
    minimum: tuple[int, ...]
    capability: tuple[int, int]
    generation: str
    install: str


# The requirements are those of `FLASH_ATTENTION_COMPATIBILITY_MATRIX` (transformers 5.23,
# modeling_flash_attention_utils.py), with one exception: the kernels of FlashAttention 3 are
# written for Hopper, although transformers accepts Ampere. The width of the heads needs no check:
# it is 64, 72, 96 or 128 in these models. Versions 2 and 3 take multiples of 8 up to 256, and
# version 4 takes up to 128 on Blackwell (flash_attn/cute/interface.py `_validate_head_dims`).
FLASH: Mapping[Attention, Flash] = MappingProxyType(
    {
        "flash_attention_2": Flash(
            "flash-attn",
            (2, 3, 3),
            (8, 0),
            "Ampere",
            # The package imports torch while it is built, and an isolated build cannot see torch.
            "pip install --no-build-isolation 'idefics-cli[flash]'",
        ),
        "flash_attention_3": Flash(
            "flash-attn-3",
            (),
            (9, 0),
            "Hopper",
            "build it in the folder `hopper` of github.com/Dao-AILab/flash-attention",
        ),
        "flash_attention_4": Flash(
            "flash-attn-4", (), (9, 0), "Hopper", "pip install --pre flash-attn-4"
        ),
    }
)
_USE_SDPA = "`--attention sdpa` needs nothing and is exact"


def find_problem(
    attention: Attention,
    *,
    family: str,
    dtype: DtypeName,
    gpus: tuple[Gpu, ...],
    machine: Machine,
) -> Problem | None:
    """Return why *attention* cannot run on *gpus*, or None; no *gpus* means a CPU or Apple GPU."""
    flash = FLASH.get(attention)
    if flash is None:
        return None
    row = find_family(family)
    if not row.supports_flash:
        return Problem(f"{row.title} does not support `{attention}`", _USE_SDPA)
    if not gpus:
        return Problem(f"`{attention}` needs a CUDA GPU", _USE_SDPA)
    for gpu in gpus:
        if gpu.capability < flash.capability:
            return Problem(
                f"`{attention}` needs an NVIDIA GPU of the {flash.generation} generation or "
                f"newer, and {gpu.device} is a {gpu.name}",
                _USE_SDPA,
            )
    if dtype == "float32":
        return Problem(f"`{attention}` works in 16 bit only", "`--dtype bfloat16`, or " + _USE_SDPA)
    return _package_problem(attention, flash, machine)


def find_caution(attention: Attention, family: str) -> str | None:
    """Return a known weakness of *attention* with *family*, or None."""
    known = find_family(family).flash_caution
    return f"{attention} {known}" if known and attention in FLASH else None


def find_slowness(attention: Attention) -> str | None:
    """Return a warning if *attention* decodes more slowly than `sdpa`, or None."""
    if attention not in FLASH:
        return None
    return (
        f"{attention} decodes without CUDA graphs, which is slower than `--attention sdpa`; for "
        "pictures, `sdpa` has a kernel of the same kind"
    )


def _package_problem(attention: Attention, flash: Flash, machine: Machine) -> Problem | None:
    version, hint = machine.versions.get(flash.distribution), f"{flash.install}; {_USE_SDPA}"
    if not version:
        return Problem(f"`{attention}` needs the package {flash.distribution}", hint)
    if _numbers(version) < flash.minimum:
        wanted = ".".join(map(str, flash.minimum))
        return Problem(
            f"`{attention}` needs {flash.distribution} {wanted} or newer, and {version} is there",
            hint,
        )
    return None


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"[\d.]+", version)
    return tuple(int(part) for part in match[0].split(".") if part) if match else ()
