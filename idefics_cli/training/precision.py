"""Default device and dtype of training and evaluation."""

from __future__ import annotations

import torch

from idefics_cli.core.errors import PlanError
from idefics_cli.hardware.machine import probe_machine


def pick_device(name: str) -> str:
    """Return the device *name*; for "auto", the fastest device of this machine.

    Raises:
        PlanError: If torch cannot use the device.
    """
    usable = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": _has_mps()}
    if name == "auto":
        return next(device for device in ("cuda", "mps", "cpu") if usable[device])
    if not usable[name]:
        raise PlanError(f"torch cannot use `{name}` here", hint="use `--device cpu`")
    return name


def is_bfloat16_native(device: str) -> bool:
    """Whether *device* has instructions for bfloat16; without them, float32 is faster."""
    machine = probe_machine()
    if device == "cuda":
        return bool(machine.gpus) and machine.gpus[0].has_native_bf16
    return machine.mps_bf16 if device == "mps" else machine.cpu_bf16


def _has_mps() -> bool:
    return torch.backends.mps.is_available()
