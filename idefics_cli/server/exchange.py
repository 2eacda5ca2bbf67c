"""Exchanges: one request and its answer, with an id, a line in the log, and numbers."""

from __future__ import annotations

import contextlib
import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from idefics_cli.core.errors import IdeficsError
from idefics_cli.core.text import abbreviated, one_line
from idefics_cli.server.errors import ApiError, api_error
from idefics_cli.server.metrics import Metrics
from idefics_cli.server.replies import to_json

_ID = re.compile(rb"[\w.-]{1,64}", re.ASCII)
_MOST_SHOWN = 60
_log = logging.getLogger(__name__)


class ClientGoneError(Exception):
    """The client has closed the connection."""


@dataclass(slots=True)
class Exchange:
    """What is known of one request and its answer.

    Attributes:
        identity: The id, which the answer tells as `x-request-id`.
        started: Time of its beginning, by `time.perf_counter`.
        asked: The method and the path of the request, without what stands behind `?`.
        endpoint: A short name of what was asked; "" if nothing is there.
        status: The status of the answer; 0 before it begins.
        model: The name of the model.
        pictures: Number of pictures.
        prompt_tokens: Number of tokens of the prompt.
        cached_tokens: How many of them were not computed again.
        new_tokens: Number of tokens of all replies.
        first_seconds: Time until the first text was there; None before.
        is_gone: Whether the client left before the end.
        unknown: Names of fields that no table knows, which have no effect.
        fault: The code of the error in the answer, and the field that is wrong.
    """

    identity: str
    asked: str = ""
    started: float = field(default_factory=time.perf_counter)
    endpoint: str = ""
    status: int = 0
    model: str = ""
    pictures: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    first_seconds: float | None = None
    is_gone: bool = False
    unknown: tuple[str, ...] = ()
    fault: str = ""

    def note_fault(self, error: ApiError) -> None:
        """Note the error that the answer tells."""
        words = [error.code or "", f"at {error.param}" if error.param else ""]
        self.fault = " ".join(word for word in words if word)

    @property
    def seconds(self) -> float:
        """Time since its beginning."""
        return time.perf_counter() - self.started

    def line(self, *, with_id: bool) -> str:
        """Return the line of the log: no prompt, no reply, no key and no address of a picture."""
        asked = self.endpoint or abbreviated(self.asked, _MOST_SHOWN)
        words = [time.strftime("%H:%M:%S"), asked, str(self.status or "-")]
        if self.fault:
            words.append(abbreviated(self.fault, _MOST_SHOWN))
        if self.model:
            words.append(abbreviated(self.model, 40))
        if self.pictures:
            words.append(f"{self.pictures} picture{'s' if self.pictures > 1 else ''}")
        if self.prompt_tokens:
            words.append(f"{self.prompt_tokens}+{self.new_tokens} tokens")
        if self.cached_tokens:
            words.append(f"({self.cached_tokens} reused)")
        if self.first_seconds is not None:
            words.append(f"first {self.first_seconds:.2f} s,")
        if self.unknown:
            words.append(f"unknown field {abbreviated(', '.join(self.unknown), _MOST_SHOWN)},")
        words.append(f"{self.seconds:.2f} s")
        if self.is_gone:
            words.append("client gone")
        return " ".join([*words, self.identity] if with_id else words)


def exchange_of(scope: Scope) -> Exchange:
    """Return the exchange that `Exchanges` has begun for a request."""
    found = scope["state"]["exchange"]
    assert isinstance(found, Exchange)
    return found


class Exchanges:
    """The outermost layer of the server: begins and ends every exchange.

    Args:
        app: Answers requests.
        metrics: Counts them.
        tell: Called with the line of each exchange.
        logs_ids: Whether the line ends with the id.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        metrics: Metrics,
        tell: Callable[[str], None],
        logs_ids: bool = True,
    ) -> None:
        self._app = app
        self._logs_ids = logs_ids
        self._metrics = metrics
        self._tell = tell

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            return
        exchange = Exchange(_identity(scope), f"{scope['method']} {scope['path']}")
        scope.setdefault("state", {})["exchange"] = exchange

        async def write(message: Message) -> None:
            if message["type"] == "http.response.start":
                exchange.status = message["status"]
                milliseconds = str(round(exchange.seconds * 1000))
                message["headers"] = [
                    *message.get("headers", []),
                    (b"x-request-id", exchange.identity.encode()),
                    (b"openai-processing-ms", milliseconds.encode()),
                ]
            await send(message)

        try:
            await self._app(scope, receive, write)
        except ClientGoneError:
            exchange.is_gone = True
        except Exception as error:
            if isinstance(error, IdeficsError):
                _log.warning("request %s failed: %s", exchange.identity, one_line(str(error)))
            else:
                _log.exception("request %s failed", exchange.identity)
            await _answer_error(api_error(error, exchange.identity), exchange, write)
        finally:
            self._end(exchange)

    def _end(self, exchange: Exchange) -> None:
        metrics = self._metrics
        # Without an endpoint, a stranger would choose how many rows the table has.
        endpoint = exchange.endpoint or "other"
        metrics.requests.labels(endpoint, str(exchange.status or 499)).inc()
        if exchange.is_gone:
            metrics.cancelled.inc()
        if exchange.prompt_tokens:
            metrics.prompt_tokens.inc(exchange.prompt_tokens)
            metrics.cached_tokens.inc(exchange.cached_tokens)
            metrics.generated_tokens.inc(exchange.new_tokens)
            metrics.request_seconds.observe(exchange.seconds)
        if exchange.first_seconds is not None:
            metrics.first_seconds.observe(exchange.first_seconds)
        self._tell(exchange.line(with_id=self._logs_ids))


async def _answer_error(error: ApiError, exchange: Exchange, send: Send) -> None:
    with contextlib.suppress(ClientGoneError, RuntimeError):
        if not exchange.status:
            exchange.note_fault(error)
            await send_json(send, error.status, error.body(), error.headers)


async def send_json(
    send: Send,
    status: int,
    value: object,
    headers: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Send a whole answer in JSON.

    Args:
        send: Sends it.
        status: Its status.
        value: Its body.
        headers: Further headers, names and values.
    """
    body = to_json(value)
    raw = [(name.lower().encode(), text.encode()) for name, text in headers.items()]
    raw += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": raw})
    await send({"type": "http.response.body", "body": body})


def _identity(scope: Scope) -> str:
    """Return the id that the client gives its request, if it is plain; else a new one."""
    for name, value in scope["headers"]:
        if name == b"x-request-id" and _ID.fullmatch(value):
            return str(value.decode())
    return f"req-{secrets.token_hex(8)}"
