"""Requests that an engine serves in slots, and the outcomes by their numbers."""

from __future__ import annotations

import threading
from collections.abc import Generator, Iterable, Sequence
from itertools import islice

from idefics_cli.core.types import Completion
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.protocol import Prepared

LIMITS = (17, 3, 9, 1, 12, 5, 2, 14, 6, 4, 8)
"""The most tokens of each reply: more replies than slots, of many lengths."""

Outcomes = dict[int, Completion | Exception]


def serve(
    engine: LocalEngine,
    requests: Iterable[Prepared],
    *,
    slots: int,
    cancel: threading.Event | None = None,
) -> Generator[tuple[int, Completion | Exception], None, None]:
    """Keep the slots filled, and yield each outcome with the number of its request."""
    more = iter(requests)
    with engine.serve(slots=slots, cancel=cancel) as session:
        while True:
            session.put_requests(list(islice(more, session.room)))
            if (outcome := session.get_outcome()) is None:
                return
            yield outcome


def serve_all(engine: LocalEngine, requests: Sequence[Prepared], slots: int = 3) -> Outcomes:
    """Serve *requests* and return their outcomes."""
    outcomes: Outcomes = {}
    for index, outcome in serve(engine, iter(requests), slots=slots):
        assert index not in outcomes
        outcomes[index] = outcome
    return outcomes


def tokens_of(outcomes: Outcomes) -> list[tuple[int, ...]]:
    """Return the tokens of each reply in order; fail if one is an error."""
    assert sorted(outcomes) == list(range(len(outcomes)))
    found = []
    for _, outcome in sorted(outcomes.items()):
        assert isinstance(outcome, Completion), outcome
        found.append(outcome.token_ids)
    return found
