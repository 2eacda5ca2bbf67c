"""Greedy answers of a model that is being trained, by the engine that answers users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from idefics_cli.core.types import LoadSpec, Progress, Sampling

if TYPE_CHECKING:
    from idefics_cli.models.loading.loader import Loaded
    from idefics_cli.training.examples import TrainingExample

_AT_A_TIME = 8
_SPARE_TOKENS = 16


def answer_greedily(
    loaded: Loaded, spec: LoadSpec, examples: Sequence[TrainingExample]
) -> list[str]:
    """Return the answer of *loaded* to each request of *examples*.

    Args:
        loaded: The model with its weights as they are now.
        spec: How it was loaded.
        examples: Their pictures are opened again.

    Raises:
        ImageError: If a picture can no longer be read.
        MemoryLimitError: If one request is too much for the memory.
    """
    from idefics_cli.engine.local.engine import LocalEngine
    from idefics_cli.training.steps import count_labels

    def load(spec: LoadSpec, *, report: Progress) -> Loaded:
        return loaded

    longest = max(count_labels(example) for example in examples)
    sampling = Sampling(max_new_tokens=longest + _SPARE_TOKENS)
    answers: list[str] = []
    # A new engine, because an engine keeps features and KV states, which training makes wrong.
    with LocalEngine(spec, load=load) as engine:
        for start in range(0, len(examples), _AT_A_TIME):
            prepared = [
                engine.prepare(replace(example.request, sampling=sampling))
                for example in examples[start : start + _AT_A_TIME]
            ]
            answers += [completion.text.strip() for completion in engine.complete(prepared)]
    return answers
