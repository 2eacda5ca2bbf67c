"""What a plan says about float32 and bfloat16 on devices that emulate bfloat16."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from idefics_cli.hardware.machine import Machine
from idefics_cli.models.hub.facts import ModelFacts
from idefics_cli.models.planning.kernels import packs_weights
from idefics_cli.models.planning.placement import Placement
from idefics_cli.models.planning.speeds import describe_bfloat16, is_slow_in_bfloat16
from idefics_cli.models.planning.verdicts import Fault


def explain_float32(
    option: Placement, facts: ModelFacts, machine: Machine, *, left_out: Sequence[Fault]
) -> str:
    """Return why *option*, on a CPU, is in float32; *left_out* is what computes wrongly there."""
    wrong = [fault.kernel for fault in left_out if fault.kernel is not None]
    if packs_weights(option, facts, machine, left_out=wrong):
        return "the most exact, and as fast as bfloat16: most weights take 12 bits"
    return f"the most exact; in bfloat16, {describe_bfloat16(machine)}"


def find_emulation(option: Placement, facts: ModelFacts, machine: Machine) -> str | None:
    """Return a warning if *option* is slow because its device emulates bfloat16, or None."""
    if option.dtype != "bfloat16":
        return None
    if option.device == "cpu" and not machine.cpu_bf16 and is_slow_in_bfloat16(machine):
        if packs_weights(replace(option, dtype="float32"), facts, machine):
            return "this processor lacks bfloat16: float32 is more exact, and as fast"
        return f"this processor lacks bfloat16: {describe_bfloat16(machine)}"
    if not all(gpu.has_native_bf16 for gpu in option.gpus):
        return (
            "this GPU emulates bfloat16, which is slow and keeps all attention scores in memory; "
            "`--dtype float16` is fast on it"
        )
    return None
