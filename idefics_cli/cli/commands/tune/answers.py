"""Greedy answers of a model that is being trained, by the engine that answers users."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from idefics_cli.core.types import Completion, GenerationRequest, LoadSpec, Progress, Sampling

if TYPE_CHECKING:
    from idefics_cli.models.loading.loader import Loaded

_AT_A_TIME = 8


def answer_greedily(
    loaded: Loaded, spec: LoadSpec, requests: Sequence[GenerationRequest], most_tokens: int
) -> list[Completion]:
    """Return the answer of *loaded* to each of *requests*.

    Args:
        loaded: The model with its weights as they are now.
        spec: How it was loaded.
        requests: Their pictures are opened again.
        most_tokens: Largest length of an answer.

    Raises:
        ImageError: If a picture can no longer be read.
        MemoryLimitError: If one request is too much for the memory.
    """
    from idefics_cli.engine.local.engine import LocalEngine

    def load(spec: LoadSpec, *, report: Progress) -> Loaded:
        return loaded

    sampling = Sampling(max_new_tokens=most_tokens)
    answers: list[Completion] = []
    # A new engine, because an engine keeps features and KV states, which training makes wrong.
    with LocalEngine(spec, load=load) as engine:
        for start in range(0, len(requests), _AT_A_TIME):
            prepared = [
                engine.prepare(replace(request, sampling=sampling))
                for request in requests[start : start + _AT_A_TIME]
            ]
            answers += engine.complete(prepared)
    return answers
