"""Checks whether a model can decode in slots and with CUDA graphs.

A plan asks before loading, to tell the user; the engine asks after loading, to choose.
"""

from __future__ import annotations

from idefics_cli.models.kernels.table import ATTENTION_KERNELS


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
