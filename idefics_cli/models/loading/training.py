"""Loading of a model for training: the layers of transformers, without kernels for inference."""

from __future__ import annotations

from dataclasses import replace

from idefics_cli.core.errors import PlanError
from idefics_cli.core.types import KernelChoice, LoadSpec, Progress
from idefics_cli.models.loading.loader import Loaded, load

FLOAT16_REASON = "training in float16 ends in NaN: its gradients leave the range of the format"


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
        raise PlanError(FLOAT16_REASON, hint="`--dtype bfloat16` or `--dtype float32`")
    plain = replace(
        spec,
        kernels=KernelChoice(),
        format_4bit="nf4",
        quantized_folder=None,
        float32_modules=(),
        uses_graphs=False,
    )
    return load(plain, report=report)
