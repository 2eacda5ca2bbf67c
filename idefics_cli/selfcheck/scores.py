"""The logits of a prompt: they show errors that are too small to change a word."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from idefics_cli.core.types import DtypeName, LoadSpec
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.local.prompt.prefill import Prompt, prefill_pieces
from idefics_cli.engine.local.vision.encoding import PictureEncoder
from idefics_cli.engine.protocol import Prepared
from idefics_cli.models.families.kv_cache import growing_cache
from idefics_cli.models.kernels.openmp import one_thread

if TYPE_CHECKING:
    from torch import Tensor

# This many tokens at the end of the prompt run one by one, as in decode steps.
_STEPS = 3


# Allowed errors. With the built-in model on a CPU, the errors were 2e-7 in float32, 6e-4 in
# float16, 4e-3 in bfloat16, 5e-3 in 8 bits, 3e-2 in int4 and 8e-2 in nf4. More is allowed, because
# convolutions of GPUs round to 10 bits.
_BY_DTYPE: Mapping[DtypeName, float] = {"float32": 3e-3, "float16": 6e-3, "bfloat16": 2e-2}
_IN_8BIT, _IN_INT4, _IN_NF4 = 4e-2, 0.1, 0.2


def allowed_error(spec: LoadSpec) -> float:
    """Return the largest error of the logits of *spec*, relative to those of float32."""
    if spec.quantization == "none":
        return _BY_DTYPE[spec.dtype]
    if spec.quantization == "8bit":
        return _IN_8BIT
    return _IN_INT4 if spec.format_4bit == "int4" else _IN_NF4


def prompt_scores(engine: LocalEngine, prepared: Prepared) -> list[Tensor]:
    """Return the logits (V,) of the first token of the reply, by two routes, float32 on the CPU.

    The first route runs the prompt in one forward. The second runs its last tokens one by one, so
    that the kernels for few rows compute them.
    """
    import torch

    model, family = engine.loaded.model, engine.loaded.family
    with torch.inference_mode(), one_thread():
        inputs = {n: t.to(model.device) for n, t in engine.inference.encode(prepared).items()}
        # Kept features are removed, so that the vision tower runs and is checked, too.
        engine.inference.features.clear()
        features = PictureEncoder(model, family).encode(engine.find_tensors(prepared)) or {}
        placed = [[features[picture.digest] for picture in prepared.pictures]]
        tokens = inputs["input_ids"].shape[1]
        prompt = Prompt(inputs, family.place_features(model, placed), [tokens])
        return [
            _logits(engine, prompt, sizes) for sizes in ([tokens], [tokens - _STEPS, *[1] * _STEPS])
        ]


def largest_error(given: Sequence[Tensor], wanted: Sequence[Tensor]) -> float:
    """Return the largest difference, relative to the norm of *wanted*; infinite for NaN."""
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(given, wanted, strict=True)]
    return max(error if error == error else float("inf") for error in errors)


def _logits(engine: LocalEngine, prompt: Prompt, sizes: Sequence[int]) -> Tensor:
    left: Iterator[int] = iter(sizes)
    run = prefill_pieces(
        engine.loaded.model,
        engine.loaded.family,
        prompt,
        growing_cache(),
        piece_tokens=lambda: next(left),
    )
    while True:
        try:
            next(run)
        except StopIteration as end:
            logits: Tensor = end.value
            return logits[0, -1].float().cpu()
