"""Processor and memory as the operating system reports them, within the limits of a container.

psutil reads the memory of the machine, on every system. This module adds what psutil lacks:

- the limits that control groups set to memory and processor time, so that a plan fits a container;
- the number of physical cores that this process may use (psutil counts all of the machine);
- the name and the instruction sets of the processor.
"""

from __future__ import annotations

import os
import platform
import re
import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path


def read_processor(root: Path = Path("/")) -> tuple[str, frozenset[str]]:
    """Return the name and the instruction sets of the processor, as far as they are known."""
    fields: dict[str, str] = {}
    for line in _read(root / "proc/cpuinfo").splitlines():
        key, separator, value = line.partition(":")
        if separator:
            fields.setdefault(key.strip().lower(), value.strip())
    flags = set((fields.get("flags") or fields.get("features") or "").split())
    name = fields.get("model name") or fields.get("hardware")
    if name is None and sys.platform == "darwin":
        name = _sysctl("machdep.cpu.brand_string")
        if _sysctl("hw.optional.arm.FEAT_BF16") == "1":
            flags.add("bf16")
    return name or platform.processor() or "unknown processor", frozenset(flags)


def read_driver(root: Path = Path("/")) -> str:
    """Return the version of the NVIDIA driver; "" if there is none, or the system is not Linux."""
    found = re.search(r"\s(\d+\.[\d.]+)\s", _read(root / "proc/driver/nvidia/version"))
    return found[1] if found else ""


def count_cores(root: Path = Path("/")) -> int:
    """Return how many physical cores the affinity and the CPU quota of this process allow."""
    cores = len(_cores(root))
    quota = _cpu_quota(root)
    return max(1, cores if quota is None else min(cores, int(quota)))


def divide_cores(count: int, root: Path = Path("/")) -> list[frozenset[int]]:
    """Divide the processors of this process into *count* parts, without dividing a physical core.

    Returns:
        The numbers of the logical processors of each part. All sets are empty if the system lets
        no process choose its processors, or if there are fewer cores than parts.
    """
    cores = _cores(root)
    if not hasattr(os, "sched_setaffinity") or len(cores) < count:
        return [frozenset()] * count
    starts = [part * len(cores) // count for part in range(count + 1)]
    parts = (cores[start:end] for start, end in pairwise(starts))
    return [frozenset(cpu for core in part for cpu in core) for part in parts]


def _cores(root: Path) -> list[list[int]]:
    """Return the logical processors of each physical core that the affinity allows."""
    try:
        logical = sorted(os.sched_getaffinity(0))  # type: ignore[attr-defined, unused-ignore] # not on macOS and Windows
    except AttributeError:
        logical = list(range(os.cpu_count() or 1))
    cores: dict[str, list[int]] = {}
    for cpu in logical:
        path = root / f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        cores.setdefault(_read(path).strip() or str(cpu), []).append(cpu)
    return [*cores.values()]


def read_memory(
    root: Path = Path("/"), *, machine: tuple[int, int] | None = None
) -> tuple[int, int]:
    """Return total and available memory in bytes, within the limit of a container.

    Args:
        root: Folder that holds /proc and /sys.
        machine: Total and available memory of the machine; None reads them.
    """
    total, free = machine or _machine_memory()
    for limit, used in _container_memory(root):
        if 0 < limit < total:
            total = limit
        free = min(free, max(0, limit - used))
    return total, free


def _machine_memory() -> tuple[int, int]:
    import psutil

    memory = psutil.virtual_memory()
    return int(memory.total), int(memory.available)


def _container_memory(root: Path) -> list[tuple[int, int]]:
    """Return limit and usage in bytes of every control group of this process with a limit."""
    found = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            found += _group_limits(root / "sys/fs/cgroup", path, "memory.max", "memory.current")
        elif "memory" in controllers.split(","):
            found += _group_limits(
                root / "sys/fs/cgroup/memory",
                path,
                "memory.limit_in_bytes",
                "memory.usage_in_bytes",
            )
    return found


def _group_limits(mount: Path, path: str, limit: str, use: str) -> list[tuple[int, int]]:
    # In a container, *path* may be the name of a group that is not mounted. Then the root of the
    # mount is the group of the container.
    group = mount / path.strip("/")
    found = []
    for folder in (group, *group.parents):
        value = _read(folder / limit).strip()
        # If there is no limit, cgroup version 2 has "max", and version 1 has a number near 2**63.
        if value.isdigit() and int(value) < 2**60:
            used = int(_read(folder / use).strip() or 0)
            found.append((int(value), max(0, used - _reclaimable(folder))))
        if folder == mount:
            break
    return found


def _reclaimable(group: Path) -> int:
    # Cached pages of files that were not used lately do not count as used, because the kernel drops
    # them before memory runs out.
    match = re.search(r"^(?:total_)?inactive_file (\d+)", _read(group / "memory.stat"), re.M)
    return int(match[1]) if match else 0


def _cpu_quota(root: Path) -> float | None:
    quotas = []
    for line in _read(root / "proc/self/cgroup").splitlines():
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if number == "0":
            text = _read(root / "sys/fs/cgroup" / path.strip("/") / "cpu.max")
            text = text or _read(root / "sys/fs/cgroup/cpu.max")
        elif "cpu" in controllers.split(","):
            folder = root / "sys/fs/cgroup/cpu" / path.strip("/")
            text = f"{_read(folder / 'cpu.cfs_quota_us')} {_read(folder / 'cpu.cfs_period_us')}"
        else:
            continue
        match = re.match(r"\s*(\d+)\s+(\d+)", text)
        if match and int(match[2]) > 0:
            quotas.append(int(match[1]) / int(match[2]))
    return min(quotas, default=None)


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _sysctl(name: str) -> str | None:
    return output_of(["sysctl", "-n", name]).strip() or None


def output_of(command: Sequence[str]) -> str:
    """Return what *command* writes; "" if it does not exist or takes more than 5 seconds."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=5, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout
