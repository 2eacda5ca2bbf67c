"""Clients that ask a server over HTTP, or an engine in this process, in the same way."""

from __future__ import annotations

import base64
import http.client
import json
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

from idefics_cli.core.errors import IdeficsError
from idefics_cli.core.types import Attachment, Completion, GenerationRequest, Part, TokenChunk
from idefics_cli.engine.protocol import Engine, Outcome

_SECONDS = 600.0
_DATA = b"data:"


@dataclass(frozen=True, slots=True)
class TimedReply:
    """The answer to one request.

    Attributes:
        text: Its text.
        first_seconds: Time from the request to the first text that is not empty.
        seconds: Time from the request to the end.
    """

    text: str
    first_seconds: float
    seconds: float


Ask = Callable[[], TimedReply]
"""Sends a request that is ready to be sent, and returns the answer."""
AskMaker = Callable[[GenerationRequest], Ask]
"""Makes a request ready, which takes no time of the server, and returns how to send it."""


@dataclass(frozen=True, slots=True)
class ClientLoad:
    """The answers to several requests, in order, and the time for all of them."""

    replies: tuple[TimedReply, ...]
    seconds: float

    @property
    def rate(self) -> float:
        """Answers per second."""
        return len(self.replies) / self.seconds


def ask_all(asks: Sequence[Ask], *, clients: int) -> ClientLoad:
    """Let *clients* clients send *asks*; each sends its next one when it has an answer."""
    with ThreadPoolExecutor(clients) as pool:
        started = time.perf_counter()
        replies = tuple(pool.map(lambda ask: ask(), asks))
        return ClientLoad(replies, time.perf_counter() - started)


def over_http(port: int, model: str) -> AskMaker:
    """Return what asks the server at *port* of this machine for *model*, with a stream."""

    def make(request: GenerationRequest) -> Ask:
        body = chat_body(request, model)
        return lambda: _ask_server(port, body)

    return make


def in_process(engine: Engine) -> AskMaker:
    """Return what asks *engine* without a server."""
    return lambda request: lambda: _ask_engine(engine, request)


def chat_body(request: GenerationRequest, model: str) -> bytes:
    """Return *request* as the body of `/v1/chat/completions`, with its pictures inside."""
    body = {
        "model": model,
        "messages": [
            {"role": message.role, "content": [_part(part) for part in message.parts]}
            for message in request.messages
        ],
        "max_tokens": request.sampling.max_new_tokens,
        "temperature": 0,
        "stream": True,
    }
    return json.dumps(body).encode()


def _part(part: Part) -> dict[str, object]:
    if not isinstance(part, Attachment):
        return {"type": "text", "text": part}
    data = base64.b64encode(Path(part.source).read_bytes()).decode()
    return {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{data}"}}


def _ask_server(port: int, body: bytes) -> TimedReply:
    started = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_SECONDS)
    texts: list[str] = []
    first = None
    try:
        head = {"Content-Type": "application/json"}
        connection.request("POST", "/v1/chat/completions", body, head)
        answer = connection.getresponse()
        if answer.status != 200:
            told = answer.read(500).decode("utf-8", "replace")
            raise IdeficsError(f"a server of the benchmark answers {answer.status}: {told}")
        for line in answer:
            text = _text_of(line)
            if text and first is None:
                first = time.perf_counter() - started
            texts.append(text)
    except (OSError, http.client.HTTPException) as error:
        raise IdeficsError(f"a server of the benchmark does not answer: {error!r}") from error
    finally:
        connection.close()
    seconds = time.perf_counter() - started
    return TimedReply("".join(texts), seconds if first is None else first, seconds)


def _text_of(line: bytes) -> str:
    """Return the text of a line of a stream; "" if it has none.

    Raises:
        IdeficsError: If the line is an error.
    """
    data = line.removeprefix(_DATA).strip()
    if not line.startswith(_DATA) or data == b"[DONE]":
        return ""
    event = json.loads(data)
    if "error" in event:
        raise IdeficsError(f"a server of the benchmark failed: {event['error']}")
    return "".join(choice["delta"].get("content") or "" for choice in event["choices"])


def _ask_engine(engine: Engine, request: GenerationRequest) -> TimedReply:
    started = time.perf_counter()
    events: SimpleQueue[TokenChunk | Outcome] = SimpleQueue()
    first = None
    engine.submit(engine.prepare(request), events.put, streams=True)
    while True:
        event = events.get()
        now = time.perf_counter() - started
        if isinstance(event, Exception):
            raise event
        if first is None and event.text:
            first = now
        if isinstance(event, Completion):
            return TimedReply(event.text, now if first is None else first, now)
