"""Whether this computer has the devices of a plan, which may come from another one."""

from __future__ import annotations

import torch

from idefics_cli.core.errors import PlanError
from idefics_cli.core.types import LoadSpec


def check_devices(spec: LoadSpec) -> None:
    """Check that the devices of *spec* are here.

    Raises:
        PlanError: If one is missing. The libraries would blame the files of the model.
    """
    name = spec.name or spec.repo
    devices = {spec.device} if spec.device_map is None else _mapped_devices(spec)
    if missing := sorted(device for device in devices if not is_here(device)):
        raise PlanError(
            f"the plan for `{name}` names the device {', '.join(missing)}, "
            "which this computer or its torch lacks",
            hint="make a plan for this computer with `make_plan`; `idefics doctor` shows one",
        )


def _mapped_devices(spec: LoadSpec) -> set[str]:
    numbers = (key for key in spec.max_memory or {} if key.isdigit())
    return {f"cuda:{number}" for number in numbers} or {spec.device}


def is_here(device: str) -> bool:
    """Whether torch can use *device* on this computer."""
    kind, _, number = device.partition(":")
    if kind == "cuda":
        count = torch.cuda.device_count() if torch.cuda.is_available() else 0
        return count > 0 if not number else number.isdigit() and int(number) < count
    return kind == "cpu" or (kind == "mps" and torch.backends.mps.is_available())
