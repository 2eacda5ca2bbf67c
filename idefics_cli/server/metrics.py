"""The numbers of `/metrics`, in the format of Prometheus. No label holds text of a user."""

from __future__ import annotations

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

CONTENT_TYPE = CONTENT_TYPE_LATEST

_SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """Counts requests and tokens in a registry of its own."""

    def __init__(self) -> None:
        registry = CollectorRegistry()
        self._registry = registry
        self.requests = Counter(
            "idefics_requests", "Answered requests.", ("endpoint", "status"), registry=registry
        )
        self.rejected = Counter(
            "idefics_rejected", "Requests refused for overload.", ("reason",), registry=registry
        )
        self.cancelled = Counter(
            "idefics_cancelled", "Requests whose client left.", registry=registry
        )
        self.prompt_tokens = Counter(
            "idefics_prompt_tokens", "Tokens of prompts.", registry=registry
        )
        self.cached_tokens = Counter(
            "idefics_cached_prompt_tokens", "Tokens of prompts that were reused.", registry=registry
        )
        self.generated_tokens = Counter(
            "idefics_generated_tokens", "Tokens of replies.", registry=registry
        )
        self.queue_seconds = self._histogram("queue", "Time before a request started.")
        self.first_seconds = self._histogram("time_to_first_token", "Time before the first text.")
        self.between_seconds = self._histogram("inter_token", "Mean time of a decode step.")
        self.request_seconds = self._histogram("request", "Time of whole answers.")

    def observe(self, name: str, text: str, read: Callable[[], float]) -> None:
        """Add a number that *read* returns when it is asked for."""
        Gauge(f"idefics_{name}", text, registry=self._registry).set_function(read)

    def text(self) -> bytes:
        """Return all numbers in the format of Prometheus."""
        return generate_latest(self._registry)

    def _histogram(self, name: str, text: str) -> Histogram:
        return Histogram(f"idefics_{name}_seconds", text, buckets=_SECONDS, registry=self._registry)
