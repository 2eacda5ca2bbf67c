"""The description of a machine, as text and as values for JSON."""

from __future__ import annotations

from idefics_cli.core.paths import display_path
from idefics_cli.core.units import counted, format_size
from idefics_cli.hardware.machine import Machine
from idefics_cli.ui.views.plan import align_columns

# The instruction sets that decide the speed of a model.
_RELEVANT_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_bf16", "bf16")


def machine_record(machine: Machine) -> dict[str, object]:
    """Return *machine* as values that JSON can hold."""
    return {
        "platform": machine.platform,
        "python": machine.python,
        "versions": dict(machine.versions),
        "broken": dict(machine.broken),
        "torch_build": machine.torch_build,
        "gpus": [
            {
                "device": f"cuda:{gpu.index}",
                "name": gpu.name,
                "total_bytes": gpu.total_bytes,
                "free_bytes": gpu.free_bytes,
                "capability": ".".join(map(str, gpu.capability)),
            }
            for gpu in machine.gpus
        ],
        "mps_bytes": machine.mps_bytes,
        "cpu": machine.cpu_name,
        "cores": machine.cores,
        "cpu_flags": _flags(machine),
        "ram_bytes": machine.ram_bytes,
        "free_ram_bytes": machine.free_ram_bytes,
        "cache": display_path(machine.cache),
        "cache_free_bytes": machine.cache_free_bytes,
        "notes": list(machine.notes),
    }


def render_machine(machine: Machine) -> str:
    """Return *machine* as lines of text, without a newline at the end."""
    rows = [
        ("system", f"{machine.platform}, Python {machine.python}"),
        (
            "processor",
            f"{machine.cpu_name}, {counted(machine.cores, 'core')}; {' '.join(_flags(machine))}",
        ),
        (
            "memory",
            f"{format_size(machine.free_ram_bytes)} of {format_size(machine.ram_bytes)} free",
        ),
    ]
    for gpu in machine.gpus:
        capability = ".".join(map(str, gpu.capability))
        free = f"{format_size(gpu.free_bytes)} of {format_size(gpu.total_bytes)} free"
        rows.append((f"cuda:{gpu.index}", f"{gpu.name}, {free}, capability {capability}"))
    if machine.mps_bytes is not None:
        rows.append(("mps", f"Apple GPU, {format_size(machine.mps_bytes)} usable"))
    rows.append(("cache", f"{display_path(machine.cache)}{_space(machine)}"))
    return "\n".join(
        ["machine", *align_columns(rows), "versions", *align_columns(_versions(machine))]
    )


def _versions(machine: Machine) -> list[tuple[str, str]]:
    rows = []
    for name, version in machine.versions.items():
        text = version or "not installed"
        if name == "torch" and machine.torch_build:
            text += f", built for {machine.torch_build}"
        if name in machine.broken:
            text += f"; cannot be imported: {machine.broken[name]}"
        rows.append((name, text))
    return rows


def _flags(machine: Machine) -> list[str]:
    return [flag for flag in _RELEVANT_FLAGS if flag in machine.cpu_flags]


def _space(machine: Machine) -> str:
    free = machine.cache_free_bytes
    return "" if free is None else f", {format_size(free)} of disk space free"
