"""Checks whether a model can decode in slots, by compiled steps, and with CUDA graphs.

A plan asks before loading, to tell the user; the engine asks after loading, to choose.
"""

from __future__ import annotations

from idefics_cli.core.types import LoadSpec
from idefics_cli.hardware.machine import Machine
from idefics_cli.models.families.spec import find_family
from idefics_cli.models.kernels.table import ATTENTION_KERNELS, compiler_problem
from idefics_cli.models.planning.quantization import is_own


def slots_problem(attention: str, *, is_spread: bool) -> str | None:
    """Return why a model cannot decode in slots, whose rows have different lengths, or None.

    Args:
        attention: Name of the attention of the text model in transformers.
        is_spread: Whether the model is divided between several devices.
    """
    if attention not in ("sdpa", "eager", *ATTENTION_KERNELS):
        return f"{attention} takes no mask of its own for each row"
    return "the model is spread over several devices" if is_spread else None


def graphs_problem(device: str, *, is_8bit: bool) -> str | None:
    """Return why decode steps cannot be recorded as CUDA graphs, or None.

    Args:
        device: Device of the model, as in a `LoadSpec`.
        is_8bit: Whether bitsandbytes' LLM.int8() multiplies.
    """
    if device.partition(":")[0] != "cuda":
        return "only CUDA records kernels"
    return "8bit reads numbers back from the GPU between kernels" if is_8bit else None


def step_problem(spec: LoadSpec, machine: Machine, *, is_stored: bool) -> str | None:
    """Return why a CPU cannot run a token through the text model by a compiled step, or None.

    Args:
        spec: All choices but the kernels.
        machine: Where the model runs.
        is_stored: Whether the files of the model hold weights that bitsandbytes made.
    """
    family = find_family(spec.family)
    if family.text_path is None:
        return f"there is no compiled step for the layers of {family.title}"
    # A user who asked for another attention gets that attention for every token.
    if spec.attention != "sdpa":
        return f"there is no compiled step with the attention {spec.attention}"
    if spec.dtype == "float16":
        return "there is no compiled step in float16"
    is_plain = spec.quantization == "none"
    if is_stored or not (
        is_plain or is_own(spec.quantization, spec.device, format_4bit=spec.format_4bit)
    ):
        return "there is no compiled step for the layers of bitsandbytes"
    return compiler_problem(machine)
