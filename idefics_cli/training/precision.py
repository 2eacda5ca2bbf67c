"""Default device and dtype of training and evaluation."""

from __future__ import annotations

from dataclasses import replace

import torch

from idefics_cli.core.errors import PlanError
from idefics_cli.core.types import DtypeName, LoadSpec
from idefics_cli.hardware.machine import probe_machine
from idefics_cli.models.loading.training import float16_error


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


def training_spec(
    spec: LoadSpec, *, dtype: str = "auto", full: bool = False, dora: bool = False
) -> tuple[LoadSpec, DtypeName]:
    """Return how a model is loaded for training, and the dtype in which it computes.

    Args:
        spec: How the model would be loaded for inference.
        dtype: A dtype, or "auto": bfloat16 on a GPU that has instructions for it, else float32.
        full: Whether the weights themselves are trained. They are in float32 then.
        dora: Whether the lengths of the weights are trained.

    Raises:
        PlanError: If the model is spread over devices, or cannot be trained in these formats.
    """
    name = spec.name or spec.repo
    if spec.device_map is not None:
        raise PlanError(
            f"`{name}` does not fit one device, and training needs it on one",
            hint="`--quantization 4bit`, or a smaller model",
        )
    if spec.quantization == "8bit" or (full and spec.quantization != "none"):
        wanted = "`--quantization 4bit` or `none`" if not full else "`--quantization none`"
        raise PlanError(f"weights in {spec.quantization} cannot be trained this way", hint=wanted)
    if dora and spec.quantization != "none":
        raise PlanError(
            f"--dora needs weights that are not in {spec.quantization}",
            hint="`--quantization none`, or leave `--dora` out",
        )
    device = spec.device.partition(":")[0]
    if dtype == "float16":
        raise float16_error()
    computed: DtypeName = "float32"
    if dtype == "bfloat16" or (dtype == "auto" and device != "cpu" and is_bfloat16_native(device)):
        computed = "bfloat16"
    loaded: DtypeName = "float32" if full and computed == "bfloat16" else computed
    # On a CPU, the backward pass of SDPA is slower than that of eager attention.
    attention = "eager" if device == "cpu" else spec.attention
    return replace(spec, dtype=loaded, attention=attention), computed


def _has_mps() -> bool:
    return torch.backends.mps.is_available()
