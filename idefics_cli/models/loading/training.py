"""Loading of a model for training: the layers of transformers, without kernels for inference."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from torch import nn

from idefics_cli.core.errors import PlanError
from idefics_cli.core.malloc import keep_freed_memory
from idefics_cli.core.types import KernelChoice, LoadSpec, Progress
from idefics_cli.models.loading.loader import Loaded, load


def load_for_training(spec: LoadSpec, *, report: Progress | None = None) -> Loaded:
    """Load the model of *spec* with layers that have gradients, in eval mode.

    Weights of 4 bit are nf4, whatever the spec says: int4 has no gradients.

    Args:
        spec: The model; its kernels are left out.
        report: Called with the phase of loading.

    Raises:
        PlanError: If the dtype is float16.
        ModelError: See `loader.load`.
        MemoryLimitError: If the model does not fit.
    """
    if spec.dtype == "float16":
        raise float16_error()
    plain = replace(
        spec,
        kernels=KernelChoice(),
        format_4bit="nf4",
        quantized_folder=None,
        float32_modules=(),
        uses_graphs=False,
    )
    keep_freed_memory()
    loaded = load(plain, report=report)
    keep_unpacked(cast("nn.Module", loaded.model))
    return loaded


def float16_error() -> PlanError:
    """Return the error for training in float16."""
    return PlanError(
        "training in float16 ends in NaN: its gradients leave the range of the format",
        hint="`--dtype bfloat16` or `--dtype float32`",
    )


def keep_unpacked(model: nn.Module) -> None:
    """Keep the layers of *model* in nf4 in the layout that has gradients.

    In eval mode, bitsandbytes 0.50 repacks a layer on a CPU with AVX512-BF16 at its first forward
    without gradients. The flag changes nothing else in these layers, and must be set again after
    `eval()`.
    """
    for module in model.modules():
        if type(module).__name__ == "Linear4bit":
            module.training = True
