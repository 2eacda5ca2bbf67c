"""Imitated machines for plans."""

from __future__ import annotations

from idefics_cli.core.units import GIB
from idefics_cli.hardware.machine import Gpu, Machine

VERSIONS: dict[str, str | None] = {
    "torch": "2.13.0",
    "transformers": "5.23.0",
    "bitsandbytes": "0.50.2",
    "accelerate": "1.15.0",
}
RTX_3070 = ("RTX 3070", 8, (8, 6))
RTX_2080_TI = ("RTX 2080 Ti", 11, (7, 5))
RTX_4090 = ("RTX 4090", 24, (8, 9))
A100 = ("A100", 80, (8, 0))
H100 = ("H100", 80, (9, 0))


def cpu(ram: int, *flags: str, **more: object) -> Machine:
    """Return an x86 machine without GPU: *ram* GiB, 1.5 of them in use, 8 cores, and *flags*.

    A test that runs a model gives `cores=2`; see `tests.support.commands.TWO_CORES`.
    """
    return machine(ram, flags=("avx2", *flags), **more)


def gpus(*cards: tuple[str, int, tuple[int, int]], ram: int = 64, **more: object) -> Machine:
    """Return a machine with *cards* (name, GiB, capability), 0.4 GiB of each in use."""
    found = tuple(
        Gpu(i, name, size * GIB, int((size - 0.4) * GIB), capability)
        for i, (name, size, capability) in enumerate(cards)
    )
    more.setdefault("torch_build", "cuda 13.0")
    return machine(ram, flags=("avx2", "avx512f", "avx512_bf16"), gpus=found, **more)


def apple(ram: int, **more: object) -> Machine:
    """Return an Apple machine with *ram* GiB, which has no bitsandbytes."""
    versions = {**VERSIONS, "bitsandbytes": None}
    size = int(ram * 0.75 * GIB)
    more = {"mps_bytes": size, "mps_bf16": True, "platform": "Darwin arm64", **more}
    return machine(ram, flags=("bf16",), versions=versions, **more)


def machine(ram: int, *, flags: tuple[str, ...], **more: object) -> Machine:
    """Return a machine with *ram* GiB, 1.5 of them in use, and 8 cores."""
    is_avx512 = any(flag.startswith("avx512") for flag in flags)
    capability = "AVX512" if is_avx512 else "AVX2" if "avx2" in flags else "DEFAULT"
    fields: dict[str, object] = {
        "cores": 8,
        "cpu_name": "Test CPU",
        "torch_cpu_capability": capability,
        "platform": "Linux x86_64",
        "ram_bytes": ram * GIB,
        "free_ram_bytes": int((ram - 1.5) * GIB),
        "versions": VERSIONS,
        **more,
    }
    return Machine(cpu_flags=frozenset(flags), **fields)  # type: ignore[arg-type] # any field
