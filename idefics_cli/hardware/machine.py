"""The devices, memory, processor and library versions of this machine."""

from __future__ import annotations

import importlib
import os
import platform
import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from idefics_cli.core.imports import import_bitsandbytes, quick_imports
from idefics_cli.core.paths import free_bytes, hub_cache
from idefics_cli.core.versions import installed_version
from idefics_cli.hardware.gpu_memory import read_free_memory
from idefics_cli.hardware.system import count_cores, read_driver, read_memory, read_processor

PACKAGES = (
    "idefics-cli",
    "torch",
    "transformers",
    "bitsandbytes",
    "accelerate",
    "llvmlite",
    "huggingface-hub",
    "safetensors",
    "tokenizers",
    "pillow",
    "flash-attn",
    "flash-attn-3",
    "flash-attn-4",
)
# Instruction sets that multiply bfloat16 directly, by their names in /proc/cpuinfo (x86 and ARM).
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
_BF16_CAPABILITY = (8, 0)
# AMD GPUs that multiply bfloat16 directly: those with matrix cores (CDNA, MI100 and later), and
# RDNA 3 and later. RDNA 1 and 2 (gfx10) and Vega (gfx900, gfx906) do not.
_BF16_ARCHITECTURES = re.compile(r"gfx(908|90a|94|95|11|12)")


@dataclass(frozen=True, slots=True)
class Gpu:
    """One CUDA device that the installed torch can use.

    Attributes:
        index: The number N in `cuda:N`.
        name: The name of the GPU in the driver.
        total_bytes: Size of the memory of the GPU.
        free_bytes: Free memory at present.
        capability: CUDA compute capability; (8, 0) is Ampere, (9, 0) Hopper. On ROCm, the first
            numbers of *architecture*.
        architecture: Name of the instruction set on ROCm, such as "gfx1100"; empty on CUDA.
    """

    index: int
    name: str
    total_bytes: int
    free_bytes: int
    capability: tuple[int, int]
    architecture: str = ""

    @property
    def device(self) -> str:
        """The name of this device for torch."""
        return "cuda" if self.index == 0 else f"cuda:{self.index}"

    @property
    def has_native_bf16(self) -> bool:
        """Whether the GPU multiplies bfloat16 natively."""
        if self.architecture:
            return _BF16_ARCHITECTURES.match(self.architecture) is not None
        return self.capability >= _BF16_CAPABILITY


@dataclass(frozen=True, slots=True)
class Machine:
    """All that a plan needs to know about a computer.

    Attributes:
        gpus: The CUDA devices that torch can use.
        mps_bytes: Memory that Metal gives to one process; None without an Apple GPU.
        mps_bf16: Whether Metal supports bfloat16 here.
        cpu_name: Name of the processor.
        cores: Physical cores that this process may use.
        cpu_flags: Instruction sets, by their names in /proc/cpuinfo.
        torch_cpu_capability: Instructions that torch's own kernels use: "AVX512", "AVX2", or
            another word of `torch.backends.cpu.get_cpu_capability`; "DEFAULT" is none.
        ram_bytes: Memory of the machine, or of the container if that is less.
        free_ram_bytes: Memory that is available; caches count as available.
        platform: Operating system and architecture.
        python: Version of Python.
        versions: Version of each distribution; None if it is not installed.
        broken: Packages that cannot be imported, with the reason; only some are tried.
        torch_build: "cpu", "cuda 12.8" or "rocm 6.4"; None without torch.
        has_nvidia_driver: Whether there is an NVIDIA driver, even if torch cannot use it.
        driver: Version of the NVIDIA driver; "" if there is none, or it is not known.
        notes: Problems that were found, in words for a user.
        cache: Folder of the Hugging Face cache.
        cache_free_bytes: Free space on the disk of the cache; None if unknown.
        measured_speeds: For each format of weights that a check measured on the CPU, the speeds of
            decoding and of prompts, relative to float32; empty without a check.
    """

    gpus: tuple[Gpu, ...] = ()
    mps_bytes: int | None = None
    mps_bf16: bool = False
    cpu_name: str = "unknown processor"
    cores: int = 1
    cpu_flags: frozenset[str] = frozenset()
    torch_cpu_capability: str = "DEFAULT"
    ram_bytes: int = 0
    free_ram_bytes: int = 0
    platform: str = ""
    python: str = ""
    versions: Mapping[str, str | None] = field(default_factory=dict)
    broken: Mapping[str, str] = field(default_factory=dict)
    torch_build: str | None = "cpu"
    has_nvidia_driver: bool = False
    driver: str = ""
    notes: tuple[str, ...] = ()
    cache: Path = Path()
    cache_free_bytes: int | None = None
    measured_speeds: Mapping[str, tuple[float, float]] = field(default_factory=dict)

    @property
    def cpu_bf16(self) -> bool:
        """Whether the processor multiplies bfloat16 natively."""
        return bool(_BF16_FLAGS & self.cpu_flags)

    @property
    def is_x86(self) -> bool:
        """Whether the processor is a 64-bit x86."""
        return self.platform.endswith((" x86_64", " AMD64"))

    def has(self, distribution: str) -> bool:
        """Whether *distribution* is installed and not known to be broken."""
        return bool(self.versions.get(distribution)) and distribution not in self.broken


def probe_machine(*, root: Path = Path("/")) -> Machine:
    """Describe this machine. This imports torch; a missing or broken torch is no error here.

    Args:
        root: Folder that contains /proc and /sys.
    """
    processor, torch = probe_processor(root=root), _TorchView.probe()
    total, free = read_memory(root)
    cache = hub_cache(os.environ)
    return replace(
        processor,
        gpus=torch.gpus,
        mps_bytes=torch.mps_bytes,
        mps_bf16=torch.mps_bf16,
        cores=count_cores(root),
        ram_bytes=total,
        free_ram_bytes=free,
        python=platform.python_version(),
        broken=torch.broken,
        torch_build=torch.build,
        has_nvidia_driver=(root / "proc/driver/nvidia/version").exists(),
        driver=read_driver(root),
        notes=torch.notes,
        cache=cache,
        cache_free_bytes=free_bytes(cache),
    )


def probe_processor(*, root: Path = Path("/")) -> Machine:
    """Describe only the processor and the packages, on which the kernels for a CPU depend.

    Imports torch, if it can be imported.

    Args:
        root: Folder that holds /proc.
    """
    name, flags = read_processor(root)
    torch_flags, capability = _probe_torch_processor()
    return Machine(
        cpu_name=name,
        cpu_flags=flags | torch_flags,
        torch_cpu_capability=capability,
        platform=f"{platform.system()} {platform.machine()}",
        versions={name: installed_version(name) for name in PACKAGES},
    )


def broken_packages() -> Mapping[str, str]:
    """Import the packages that a model needs; return the reasons of those that fail. Slow."""
    errors = {}
    for name in ("transformers", "accelerate", "bitsandbytes"):
        if installed_version(name) is None:
            continue
        try:
            import_bitsandbytes() if name == "bitsandbytes" else importlib.import_module(name)
        except Exception as error:  # a broken installation raises any class
            errors[name] = _reason(error)
    return errors


def runs_on(
    capability: tuple[int, int], architectures: list[str], *, architecture: str = ""
) -> bool:
    """Whether a torch that was built for *architectures* runs on a GPU of *capability*.

    On ROCm, the GPU's own *architecture* must be among them: torch does not check this, and the
    first kernel fails.

    Machine code such as `sm_86` runs on GPUs of its generation (8) with the same or a higher minor
    version (6). PTX such as `compute_90` runs on all newer GPUs. The source is the CUDA C++
    Programming Guide, section 3.1.
    """
    if not architectures:
        return True
    for name in architectures:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)[a-z]?", name)
        if match is None:
            # Features after a colon, as in "gfx90a:xnack-", are ignored.
            return not architecture or architecture in {a.partition(":")[0] for a in architectures}
        built = (int(match[2]), int(match[3]))
        same_generation = built[0] == capability[0]
        if built <= capability and (match[1] == "compute" or same_generation):
            return True
    return False


@dataclass(frozen=True, slots=True)
class _TorchView:
    """The GPUs that torch can use, and its build."""

    build: str | None = None
    gpus: tuple[Gpu, ...] = ()
    mps_bytes: int | None = None
    mps_bf16: bool = False
    broken: Mapping[str, str] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    @classmethod
    def probe(cls) -> _TorchView:
        try:
            with quick_imports():
                import torch
        except Exception as error:  # a broken installation raises any class
            return cls(broken={"torch": _reason(error)})
        build = "cpu"
        if torch.version.cuda:
            build = f"cuda {torch.version.cuda}"
        elif getattr(torch.version, "hip", None):
            build = f"rocm {torch.version.hip}"
        gpus, notes = _probe_gpus()
        mps_bytes, mps_bf16, problems = _probe_metal()
        return cls(build, gpus, mps_bytes, mps_bf16, {}, notes + problems)


def _probe_torch_processor() -> tuple[frozenset[str], str]:
    """Return the instruction sets that torch finds, and the capability of its kernels."""
    try:
        with quick_imports():
            import torch
    except Exception:  # a broken installation raises any class; `_TorchView` reports it
        return frozenset(), "DEFAULT"
    # torch is asked, because not all systems have /proc/cpuinfo. Its functions are private, so
    # another version may lack them.
    names = {
        "avx512_bf16": "_is_avx512_bf16_supported",
        "amx_bf16": "_is_amx_tile_supported",
    }
    flags = {flag for flag, name in names.items() if getattr(torch.cpu, name, lambda: False)()}
    return frozenset(flags), torch.backends.cpu.get_cpu_capability()


def _probe_gpus() -> tuple[tuple[Gpu, ...], tuple[str, ...]]:
    import torch

    gpus: list[Gpu] = []
    notes: list[tuple[int, str]] = []
    try:
        with warnings.catch_warnings(record=True) as caught:
            # If the driver is too old, torch warns here and then reports no GPU.
            warnings.simplefilter("always")
            count = torch.cuda.device_count() if torch.cuda.is_available() else 0
            built_for = torch.cuda.get_arch_list() if count else []
    except Exception as error:  # errors of the driver have many classes
        return (), (f"CUDA does not start: {_reason(error)}",)
    notes += [(-1, _reason(warning.message)) for warning in caught]
    # With several GPUs, only the one that is likely to be used gets a CUDA context.
    known = read_free_memory() if count > 1 else {}
    for index in sorted(range(count), key=lambda index: -_reported_bytes(index, known)):
        try:
            name = torch.cuda.get_device_name(index)
            capability = torch.cuda.get_device_capability(index)
            architecture = _rocm_architecture(index, built_for)
            if not runs_on(capability, built_for, architecture=architecture):
                built = ", ".join(built_for)
                note = f"cuda:{index} ({name}) is left out: torch is built for {built}"
                notes.append((index, note))
                continue
            free, total = _read_gpu_memory(index, known if gpus else {})
        except Exception as error:  # a GPU that is broken or in use must not hide the others
            notes.append((index, f"cuda:{index} is left out: {_reason(error)}"))
            continue
        gpus.append(Gpu(index, name, total, free, capability, architecture))
    gpus.sort(key=lambda gpu: gpu.index)
    return tuple(gpus), tuple(note for _, note in sorted(notes, key=lambda note: note[0]))


def _reported_bytes(index: int, known: Mapping[str, int]) -> int:
    """Return the free bytes of a GPU as in *known*; 0 if they are not known."""
    import torch

    if not known:
        return 0
    try:
        return known.get(f"GPU-{torch.cuda.get_device_properties(index).uuid}", 0)
    except Exception:  # a broken GPU; `_probe_gpus` reports it
        return 0


def _read_gpu_memory(index: int, known: Mapping[str, int]) -> tuple[int, int]:
    """Return the free and the total bytes of a GPU, from *known* if it is there."""
    import torch

    if free := _reported_bytes(index, known):
        return free, torch.cuda.get_device_properties(index).total_memory
    free, total = torch.cuda.mem_get_info(index)
    return int(free), int(total)


def _rocm_architecture(index: int, built_for: list[str]) -> str:
    """Return the architecture of a GPU as "gfx1100"; empty if torch is not built for ROCm."""
    import torch

    if not any(name.startswith("gfx") for name in built_for):
        return ""
    return str(torch.cuda.get_device_properties(index).gcnArchName).partition(":")[0]


def _probe_metal() -> tuple[int | None, bool, tuple[str, ...]]:
    import torch

    try:
        if not torch.backends.mps.is_available():
            return None, False, ()
        size = int(torch.mps.recommended_max_memory())
    except Exception as error:  # errors of the driver have many classes
        return None, False, (f"Metal does not start: {_reason(error)}",)
    try:
        torch.ones(1, dtype=torch.bfloat16, device="mps") * 2
    except (RuntimeError, TypeError):
        return size, False, ()
    return size, True, ()


def _reason(error: Exception | Warning | str) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
