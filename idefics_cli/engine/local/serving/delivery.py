"""The delivery of text and outcomes to the listeners of requests."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from idefics_cli.core.errors import MemoryLimitError
from idefics_cli.engine.local.serving.requests import OpenRequest
from idefics_cli.engine.protocol import Outcome
from idefics_cli.models.families.base import Family

_log = logging.getLogger(__name__)


class Delivery:
    """Tells listeners the text and the outcome of their requests.

    A listener that raises an error does not affect other requests.

    Args:
        family: The family of the model, which decodes ids.
    """

    def __init__(self, family: Family) -> None:
        self._family = family

    def end_all(self, requests: Sequence[OpenRequest]) -> None:
        """Tell the listeners the outcomes of *requests*, whose replies have ended."""
        for request in requests:
            request.lane.active -= 1
            self.end(request)

    def end(self, request: OpenRequest, error: Exception | None = None) -> None:
        """Tell the listener the outcome of *request*, which no longer waits or runs."""
        request.has_started = True
        request.lane.schedule.end(request, fits=not isinstance(error, MemoryLimitError))
        if error is None:
            request.reply.finish = request.reply.finish or "cancelled"
            self.tell_text(request)
        tell(request, error or request.completion(self._family))

    def tell_text(self, request: OpenRequest) -> None:
        """Give new text to the listener of *request*. If the listener fails, cancel the request."""
        try:
            request.tell_text(self._family)
        except Exception:
            _log.exception("a listener failed, so its request is cancelled")
            request.streams = False
            request.reply.finish = request.reply.finish or "cancelled"


def tell(request: OpenRequest, outcome: Outcome) -> None:
    """Give *outcome* to the listener of *request*."""
    try:
        request.listen(outcome)
    except Exception:
        _log.exception("a listener failed at the outcome of its request")
