"""Processor, memory, GPUs and packages are found, in containers and with broken libraries too."""

from __future__ import annotations

import importlib
import os
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from idefics_cli.core.units import GIB
from idefics_cli.hardware import machine
from idefics_cli.hardware.load import count_other_tasks
from idefics_cli.hardware.machine import Machine, probe_machine, runs_on
from idefics_cli.hardware.system import (
    count_cores,
    divide_cores,
    read_driver,
    read_memory,
    read_processor,
)

MEMORY = (16 * GIB, 8 * GIB)


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    return root


def test_memory_is_that_of_the_machine_without_a_container(tmp_path: Path) -> None:
    write(tmp_path, {"proc/self/cgroup": "0::/\n"})
    assert read_memory(tmp_path, machine=MEMORY) == (16 * GIB, 8 * GIB)


@pytest.mark.parametrize("folder", ["", "system.slice/app"])
def test_a_container_limit_of_version_2_counts(tmp_path: Path, folder: str) -> None:
    base = f"sys/fs/cgroup/{folder}"
    write(
        tmp_path,
        {
            "proc/self/cgroup": f"0::/{folder}\n",
            f"{base}/memory.max": str(4 * GIB),
            f"{base}/memory.current": str(3 * GIB),
            f"{base}/memory.stat": f"anon {GIB}\ninactive_file {GIB}\n",
        },
    )
    # Of the 3 GiB in use, 1 GiB is pages of files, which can be dropped.
    assert read_memory(tmp_path, machine=MEMORY) == (4 * GIB, 2 * GIB)


def test_the_limit_of_a_parent_group_counts(tmp_path: Path) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "0::/outer/inner\n",
            "sys/fs/cgroup/outer/inner/memory.max": "max\n",
            "sys/fs/cgroup/outer/memory.max": str(6 * GIB),
            "sys/fs/cgroup/outer/memory.current": str(5 * GIB),
        },
    )
    assert read_memory(tmp_path, machine=MEMORY) == (6 * GIB, 1 * GIB)


def test_a_container_limit_of_version_1_counts(tmp_path: Path) -> None:
    base = "sys/fs/cgroup/memory"
    write(
        tmp_path,
        {
            "proc/self/cgroup": "5:cpu:/\n4:memory:/docker/abc\n",
            # In a container, the group of the container is mounted as the root.
            f"{base}/memory.limit_in_bytes": str(2 * GIB),
            f"{base}/memory.usage_in_bytes": str(1 * GIB),
            f"{base}/memory.stat": f"total_inactive_file {GIB // 2}\n",
        },
    )
    assert read_memory(tmp_path, machine=MEMORY) == (2 * GIB, 3 * GIB // 2)


@pytest.mark.parametrize("limit", ["max", "9223372036854771712", ""])
def test_no_limit_is_no_limit(tmp_path: Path, limit: str) -> None:
    write(
        tmp_path,
        {
            "proc/self/cgroup": "4:memory:/\n0::/\n",
            "sys/fs/cgroup/memory.max": limit,
            "sys/fs/cgroup/memory/memory.limit_in_bytes": limit,
        },
    )
    assert read_memory(tmp_path, machine=MEMORY) == (16 * GIB, 8 * GIB)


def test_this_machine_has_memory_and_cores() -> None:
    total, free = read_memory()
    assert 0 < free <= total
    assert count_cores() >= 1


@pytest.mark.parametrize(
    ("flags", "is_native"),
    [
        ("fpu avx2 avx512f", False),
        ("fpu avx512f avx512_bf16", True),
        ("fpu amx_bf16 amx_tile", True),
    ],
)
def test_instruction_sets_decide_on_bfloat16(tmp_path: Path, flags: str, is_native: bool) -> None:
    text = f"processor\t: 0\nmodel name\t: Some CPU: fast\nflags\t\t: {flags}\n\nprocessor\t: 1\n"
    name, found = read_processor(write(tmp_path, {"proc/cpuinfo": text}))
    assert name == "Some CPU: fast"
    assert found == set(flags.split())
    assert Machine(cpu_flags=found).cpu_bf16 is is_native


def test_arm_processors_name_their_features(tmp_path: Path) -> None:
    write(tmp_path, {"proc/cpuinfo": "processor : 0\nFeatures : fp asimd bf16 i8mm\n"})
    assert Machine(cpu_flags=read_processor(tmp_path)[1]).cpu_bf16


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "NVRM version: NVIDIA UNIX x86_64 Kernel Module  550.54.15  Tue Mar  5 22:23:56 UTC\n"
            "GCC version:  gcc version 12.2.0\n",
            "550.54.15",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.65.06  Release Build\n",
            "580.65.06",
        ),
        ("something else", ""),
    ],
)
def test_the_version_of_the_driver_is_read(text: str, expected: str, tmp_path: Path) -> None:
    assert read_driver(write(tmp_path, {"proc/driver/nvidia/version": text})) == expected


def test_without_a_driver_there_is_no_version(tmp_path: Path) -> None:
    assert read_driver(tmp_path) == ""


def test_two_threads_of_a_core_count_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    for cpu, siblings in enumerate(("0,2", "1,3", "0,2", "1,3")):
        path = f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list"
        write(tmp_path, {path: siblings + "\n"})
    assert count_cores(tmp_path) == 2
    assert count_cores(tmp_path / "nowhere") == 4
    if os.name != "nt":
        monkeypatch.setattr("os.sched_setaffinity", lambda pid, cpus: None, raising=False)
        assert divide_cores(2, tmp_path) == [{0, 2}, {1, 3}], "no core is divided"
        assert divide_cores(3, tmp_path / "nowhere") == [{0}, {1}, {2, 3}]
        assert divide_cores(3, tmp_path) == [frozenset()] * 3, "fewer cores than parts"
        monkeypatch.delattr("os.sched_setaffinity")
        assert divide_cores(2, tmp_path) == [frozenset()] * 2, "as on macOS"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, 2),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "50000 100000\n"}, 1),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, 4),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/x\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "300000\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            },
            3,
        ),
        (
            {
                "proc/self/cgroup": "3:cpu,cpuacct:/x\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/x/cpu.cfs_period_us": "100000\n",
            },
            4,
        ),
    ],
)
def test_the_share_of_a_container_bounds_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], cores: int
) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {0, 1, 2, 3}, raising=False)
    assert count_cores(write(tmp_path, files)) == cores


@pytest.mark.parametrize(
    ("capability", "built_for", "runs"),
    [
        ((8, 9), ["sm_80", "sm_90"], True),  # same generation, later minor version
        ((8, 0), ["sm_86"], False),
        ((7, 5), ["sm_80", "sm_90"], False),
        ((9, 0), ["sm_80"], False),
        ((12, 0), ["sm_80", "compute_90"], True),  # PTX is compiled by the driver
        ((9, 0), ["sm_90a"], True),
        ((12, 0), ["sm_120"], True),
        ((6, 1), [], True),
        ((9, 4), ["gfx942"], True),
    ],
)
def test_a_gpu_is_usable_if_torch_was_built_for_it(
    capability: tuple[int, int], built_for: list[str], runs: bool
) -> None:
    assert runs_on(capability, built_for) is runs


class FakeCuda(SimpleNamespace):
    """The functions of torch.cuda that are used; the GPU named "broken" raises an error."""

    def __init__(self, *names: str) -> None:
        super().__init__()
        self.names = names

    def is_available(self) -> bool:
        return bool(self.names)

    def device_count(self) -> int:
        return len(self.names)

    def get_arch_list(self) -> list[str]:
        return ["sm_75", "sm_80", "sm_90"]

    def get_device_name(self, index: int) -> str:
        return self.names[index]

    def get_device_capability(self, index: int) -> tuple[int, int]:
        return {"old": (5, 0), "A100": (8, 0)}.get(self.names[index], (9, 0))

    def mem_get_info(self, index: int) -> tuple[int, int]:
        if self.names[index] == "broken":
            raise RuntimeError("CUDA error: uncorrectable ECC error\nmore lines")
        return 70 * GIB, 80 * GIB


def test_gpus_are_found_and_unusable_ones_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    monkeypatch.setattr(torch, "cuda", FakeCuda("A100", "broken", "old"))
    found = probe_machine()
    (gpu,) = found.gpus
    assert (gpu.index, gpu.name, gpu.free_bytes) == (0, "A100", 70 * GIB)
    assert (gpu.device, gpu.capability) == ("cuda", (8, 0))
    broken, old = found.notes
    assert broken == "cuda:1 is left out: CUDA error: uncorrectable ECC error"
    assert old == "cuda:2 (old) is left out: torch is built for sm_75, sm_80, sm_90"


def test_a_metal_that_does_not_start_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    def fail() -> int:
        raise RuntimeError("no device\nmore lines")

    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(torch.mps, "recommended_max_memory", fail)
    found = probe_machine()
    assert found.mps_bytes is None
    assert found.notes == ("Metal does not start: no device",)


def test_a_gpu_of_amd_for_which_torch_is_not_built_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    class Rocm(FakeCuda):
        def get_arch_list(self) -> list[str]:
            return ["gfx906", "gfx90a:xnack-", "gfx1030", "gfx1100"]

        def get_device_capability(self, index: int) -> tuple[int, int]:
            return {"gfx906": (9, 0), "gfx90a": (9, 0), "gfx1030": (10, 3)}.get(
                self.names[index], (11, 0)
            )

        def get_device_properties(self, index: int) -> SimpleNamespace:
            return SimpleNamespace(gcnArchName=f"{self.names[index]}:sramecc+:xnack-")

    monkeypatch.setattr(torch, "cuda", Rocm("gfx1100", "gfx1103", "gfx1030", "gfx906", "gfx90a"))
    found = probe_machine()
    assert [(gpu.architecture, gpu.has_native_bf16) for gpu in found.gpus] == [
        ("gfx1100", True),
        ("gfx1030", False),
        ("gfx906", False),
        ("gfx90a", True),
    ]
    (note,) = found.notes
    assert note.startswith("cuda:1 (gfx1103) is left out: torch is built for gfx906, ")


def test_a_warning_of_the_driver_becomes_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    import warnings

    import torch

    class OldDriver(FakeCuda):
        def is_available(self) -> bool:
            warnings.warn("The NVIDIA driver on your system is too old", stacklevel=1)
            return False

    monkeypatch.setattr(torch, "cuda", OldDriver())
    found = probe_machine()
    assert found.gpus == ()
    assert found.notes == ("The NVIDIA driver on your system is too old",)


@pytest.mark.parametrize("error", [ImportError("libcudart.so.13 is missing"), OSError("no")])
def test_a_broken_torch_is_reported_and_not_raised(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    class Finder:
        def find_spec(self, name: str, *rest: object) -> None:
            if name == "torch":
                raise error

    monkeypatch.delitem(sys.modules, "torch")
    monkeypatch.setattr(sys, "meta_path", [Finder(), *sys.meta_path])
    found = probe_machine()
    assert dict(found.broken) == {"torch": str(error)}
    assert found.torch_build is None
    assert found.gpus == ()


def test_packages_that_cannot_be_imported_are_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    def fake_import(name: str) -> ModuleType:
        if name == "bitsandbytes":
            raise RuntimeError("CUDA Setup failed\ndetails")
        return ModuleType(name)

    monkeypatch.setattr(importlib, "import_module", fake_import)
    assert machine.broken_packages() == {"bitsandbytes": "CUDA Setup failed"}


def test_a_probe_of_this_machine_has_what_a_plan_needs() -> None:
    found = probe_machine()
    assert found.ram_bytes > 0
    assert found.cores >= 1
    assert found.versions["torch"]
    assert found.has("transformers")
    assert not found.has("no-such-package")
    assert found.torch_build


class ManyCards(FakeCuda):
    """Cards of which torch knows the UUID; *asked* lists those that got a CUDA context."""

    def __init__(self, *names: str) -> None:
        super().__init__(*names)
        self.asked: list[int] = []

    def get_device_properties(self, index: int) -> SimpleNamespace:
        return SimpleNamespace(uuid=f"uuid-{index}", total_memory=81 * GIB)

    def mem_get_info(self, index: int) -> tuple[int, int]:
        self.asked.append(index)
        return super().mem_get_info(index)


DRIVER = """#!/bin/sh
echo "GPU-uuid-0, Default, 1024"
echo "GPU-uuid-1, Default, 40960"
echo "GPU-uuid-2, Default, 20480"
echo "GPU-uuid-3, Exclusive_Process, 30720"
"""


@pytest.mark.parametrize(
    ("names", "asked", "free"),
    [
        # One card is asked anyway. Without the driver's word, every card is.
        (("A100",), [0], {0: 70}),
        # The card with the most free memory is likely to be used.
        (("A100", "A100", "A100"), [1], {0: 1, 1: 70, 2: 20}),
        # If it is broken, the next one is asked.
        (("A100", "broken", "A100"), [1, 2], {0: 1, 2: 70}),
        # Only a context shows whether this process may use a card of one process.
        (("A100", "A100", "A100", "A100"), [1, 3], {0: 1, 1: 70, 2: 20, 3: 70}),
    ],
)
def test_of_several_gpus_only_the_one_with_the_most_free_memory_gets_a_context(
    names: tuple[str, ...],
    asked: list[int],
    free: dict[int, int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    program = tmp_path / "nvidia-smi"
    program.write_text(DRIVER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    cuda = ManyCards(*names)
    monkeypatch.setattr(torch, "cuda", cuda)
    found = probe_machine()
    assert cuda.asked == asked
    assert {gpu.index: gpu.free_bytes // GIB for gpu in found.gpus} == free
    assert [gpu.total_bytes // GIB for gpu in found.gpus if gpu.index not in asked] == [81] * (
        len(free) - len(set(asked) & set(free))
    )


def test_gpus_are_asked_one_by_one_if_the_driver_has_no_program(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setenv("PATH", str(tmp_path))
    cuda = ManyCards("A100", "A100")
    monkeypatch.setattr(torch, "cuda", cuda)
    assert [gpu.free_bytes for gpu in probe_machine().gpus] == [70 * GIB] * 2
    assert cuda.asked == [0, 1]


@pytest.mark.parametrize(
    ("line", "expected"),
    [("0.20 0.18 0.12 4/116 2387\n", 3), ("0.00 0.00 0.00 1/80 9\n", 0), ("", 0), ("a b c d", 0)],
)
def test_threads_of_other_programs_that_run_are_counted(
    line: str, expected: int, tmp_path: Path
) -> None:
    assert count_other_tasks(tmp_path) == 0
    (tmp_path / "loadavg").write_text(line)
    assert count_other_tasks(tmp_path) == expected
