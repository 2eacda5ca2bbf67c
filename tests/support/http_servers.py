"""Servers of `idefics serve` in a thread of the tests, and requests to them on loopback."""

from __future__ import annotations

import base64
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.client import HTTPConnection, HTTPResponse
from typing import Any

from openai import OpenAI

from idefics_cli.core.types import (
    Completion,
    ImageLimits,
    LoadSpec,
    Progress,
    TokenChunk,
)
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.protocol import (
    Engine,
    EngineFactory,
    Handle,
    Listener,
    Prepared,
    Urgency,
)
from idefics_cli.server.run import Lifetime, RunningServer, open_socket
from idefics_cli.server.service import ServerOptions, Service
from tests.support.fakes import FakeEngine
from tests.support.pictures import encoded, quadrants

REMOTE_LIMITS = ImageLimits(
    max_pixels=50_000_000,
    max_bytes=20_000_000,
    sources=frozenset({"data", "web"}),
    addresses="public",
    download_seconds=10,
)
DEMO_SPEC = LoadSpec(repo="demo", family="idefics2", name="demo", threads=1, limits=REMOTE_LIMITS)
FAKE_SPEC = LoadSpec(repo="fake/model", family="idefics2", name="fake", limits=REMOTE_LIMITS)
PICTURE = "data:image/png;base64," + base64.b64encode(encoded(quadrants(), "PNG")).decode()
CHAT = "/v1/chat/completions"

Reply = tuple[int, Mapping[str, str], Any]
"""The status, the headers in lower case, and the JSON or text of an answer."""


@dataclass
class HttpServer:
    """A server that runs.

    Attributes:
        running: The server.
        port: Its port on 127.0.0.1.
        lines: What it told: a line for each request.
        codes: Its exit code, once it has ended.
        clients: The clients that were made for it, which are closed at its end.
    """

    running: RunningServer
    port: int
    lines: list[str] = field(default_factory=list)
    codes: list[int] = field(default_factory=list)
    clients: list[OpenAI] = field(default_factory=list)

    @property
    def service(self) -> Service:
        assert self.running.service is not None
        return self.running.service

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def client(self, **options: Any) -> OpenAI:
        """Return the client of OpenAI, which checks every answer strictly."""
        usual: dict[str, Any] = {"api_key": "none", "max_retries": 0, "timeout": 60}
        client = OpenAI(
            base_url=f"{self.url}/v1", _strict_response_validation=True, **(usual | options)
        )
        self.clients.append(client)
        return client

    def ask(
        self,
        path: str = CHAT,
        body: object = None,
        *,
        method: str | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Reply:
        """Send one request; *body* is JSON, or bytes."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            data = body if isinstance(body, bytes | None) else json.dumps(body).encode()
            usual = {} if data is None else {"Content-Type": "application/json"}
            verb = method or ("GET" if data is None else "POST")
            connection.request(verb, path, data, usual | dict(headers or {}))
            return read(connection.getresponse())
        finally:
            connection.close()

    def begin(self, body: object, path: str = CHAT) -> HTTPConnection:
        """Send a request, and return its connection without waiting for the answer."""
        connection = HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Content-Type": "application/json"}
        connection.request("POST", path, json.dumps(body).encode(), headers)
        return connection

    def raw(self, data: bytes, *, timeout: float = 30) -> bytes:
        """Send *data*, and return everything until the server closes the connection."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=timeout) as connection:
            connection.sendall(data)
            received = b""
            while piece := connection.recv(65536):
                received += piece
            return received

    def wait_until_idle(self, seconds: float = 10) -> None:
        """Wait until no request is open, and nothing is kept for one."""
        service = self.service
        wait_for(
            lambda: (
                not service.calls
                and not service.admission.open_count
                and not service.admission.open_bytes
            ),
            seconds,
        )


def read(response: HTTPResponse) -> Reply:
    """Read an answer to its end."""
    text = response.read()
    headers = {name.lower(): value for name, value in response.getheaders()}
    is_json = headers.get("content-type") == "application/json"
    return response.status, headers, json.loads(text) if is_json else text.decode()


def chat(text: str = "Hi", *pictures: str, **fields: Any) -> dict[str, object]:
    """Return the body of a question about *pictures*."""
    parts: list[object] = [{"type": "image_url", "image_url": {"url": p}} for p in pictures]
    content: object = [*parts, {"type": "text", "text": text}] if pictures else text
    return {"messages": [{"role": "user", "content": content}], **fields}


def events(text: str) -> list[Any]:
    """Return the events of a stream, whose last one must be `[DONE]`."""
    lines = text.split("\n\n")
    assert lines[-1] == ""
    assert lines[-2] == "data: [DONE]"
    assert all(line.startswith("data: {") for line in lines[:-2]), lines
    return [json.loads(line.removeprefix("data: ")) for line in lines[:-2]]


def wait_for(is_true: Callable[[], bool], seconds: float = 10) -> None:
    """Wait until *is_true*."""
    end = time.monotonic() + seconds
    while not is_true():
        assert time.monotonic() < end, "it took too long"
        time.sleep(0.005)


@contextmanager
def serving(
    factory: EngineFactory,
    options: ServerOptions | None = None,
    lifetime: Lifetime | None = None,
    *,
    port: int = 0,
) -> Iterator[HttpServer]:
    """Run a server in a thread, and end it as SIGTERM does."""
    options = options or ServerOptions(FAKE_SPEC, names=("fake", "fake/model"))
    ready = threading.Event()
    lifetime = replace(lifetime or Lifetime(drain_seconds=3), ready=ready.set, signals=())
    with open_socket("127.0.0.1", port) as listener:
        lines: list[str] = []
        running = RunningServer(options, factory, listener, tell=lines.append, lifetime=lifetime)
        server = HttpServer(running, listener.getsockname()[1], lines)
        thread = threading.Thread(target=lambda: server.codes.append(running.run()), daemon=True)
        thread.start()
        try:
            assert ready.wait(60), "the server did not start"
            yield server
        finally:
            for client in server.clients:
                client.close()
            running.stop()
            thread.join(60)
            assert not thread.is_alive(), "the server did not end"


class StillOpen:
    """An engine that stays open when the server closes it, because other tests use it."""

    def __init__(self, engine: LocalEngine) -> None:
        self._engine = engine

    def __getattr__(self, name: str) -> object:
        return (lambda: None) if name == "close" else getattr(self._engine, name)

    def __call__(self, *, progress: Progress | None = None) -> Engine:
        """Return itself, as a factory does."""
        engine: Any = self
        return engine  # type: ignore[no-any-return]  # it has all that the real engine has


class ManualEngine(FakeEngine):
    """An engine whose replies go on when the test says so; each has a place of its own.

    Args:
        slots: Number of requests that start; the others wait.
    """

    def __init__(self, *, slots: int = 2, context_tokens: int = 1000) -> None:
        super().__init__(spec=FAKE_SPEC, context_tokens=context_tokens)
        self._slots = slots
        self.open: list[ManualHandle] = []
        self.cancelled = 0

    def submit(
        self,
        prepared: Prepared,
        listen: Listener,
        *,
        urgency: Urgency = "interactive",
        streams: bool = False,
    ) -> Handle:
        handle = ManualHandle(self, prepared, listen, streams=streams)
        self.open.append(handle)
        return handle

    def place_of(self, handle: ManualHandle) -> int | None:
        at = self.open.index(handle) if handle in self.open else 0
        return None if at < self._slots else at - self._slots


class ManualHandle:
    """A request of a `ManualEngine`."""

    def __init__(
        self, engine: ManualEngine, prepared: Prepared, listen: Listener, *, streams: bool
    ) -> None:
        self.prepared = prepared
        self._engine = engine
        self._listen = listen
        self._streams = streams
        self._text = ""
        self._count = 0
        self.is_ended = False

    @property
    def place(self) -> int | None:
        return self._engine.place_of(self)

    def say(self, text: str) -> None:
        """Go on with *text*, a token."""
        self._text += text
        self._count += 1
        if self._streams:
            self._listen(TokenChunk(text, self._count, prompt_tokens=3))

    def finish(self, reason: Any = "stop") -> None:
        """End the reply."""
        if not self.is_ended:
            self.is_ended = True
            self._engine.open.remove(self)
            self._listen(Completion(self._text, 3, 0, self._count + 1, reason))

    def fail(self, error: Exception) -> None:
        """End the reply with *error*."""
        self.is_ended = True
        self._engine.open.remove(self)
        self._listen(error)

    def cancel(self) -> None:
        """End the reply, as the real engine does."""
        if not self.is_ended:
            self._engine.cancelled += 1
            self.finish("cancelled")
