"""Engines that ask a server on loopback."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Lock, Thread
from typing import Any

from idefics_cli.core.servers import ServerSpec
from idefics_cli.core.types import GenerationRequest, LoadSpec
from idefics_cli.engine.remote.engine import RemoteEngine
from idefics_cli.engine.remote.patience import Patience

QUICK = Patience(first_wait_seconds=0.01, gone_seconds=0.3, silence_seconds=0.3)
"""Waits that are short enough for tests."""


def digest_answer(request: GenerationRequest) -> str:
    """Answer with a digest of each picture, whose source is its bytes as a `data:` URI."""
    sources = (each.source.encode() for each in request.attachments)
    return " ".join(hashlib.sha256(source).hexdigest()[:8] for source in sources)


def remote_spec(
    url: str, *, owner: str = "idefics", key: str = "", model: str = "fake"
) -> LoadSpec:
    """Return the spec of a model at *url*, without `/v1`."""
    return LoadSpec(
        repo=model, family="", name=model, server=ServerSpec(f"{url}/v1", key, owner, 1000)
    )


def remote_engine(url: str, patience: Patience = QUICK, **given: str) -> RemoteEngine:
    """Return an engine that asks the server at *url*; see `remote_spec`."""
    return RemoteEngine(remote_spec(url, **given), patience=patience)


Script = Sequence["Scripted"]


@dataclass(frozen=True)
class Scripted:
    """One answer of a server that follows a script.

    Attributes:
        body: What it sends.
        status: The status; 0 closes the connection without an answer.
        headers: Further headers.
        hangs: Whether it then sends nothing, and keeps the connection open.
        stops: Whether nothing listens any more after this answer.
    """

    body: bytes = b""
    status: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    hangs: bool = False
    stops: bool = False


@dataclass
class ScriptedServer:
    """A server that follows a script.

    Attributes:
        url: Its address.
        requests: Path, headers in lower case, and body of each request.
    """

    url: str
    requests: list[tuple[str, dict[str, str], bytes]]


@contextmanager
def scripted_server(*script: Scripted) -> Iterator[ScriptedServer]:
    """Run a server that gives the answers of *script* in turn, and the last one for ever."""
    seen: list[tuple[str, dict[str, str], bytes]] = []
    lock, left = Lock(), list(script)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
            with lock:
                headers = {name.lower(): value for name, value in self.headers.items()}
                seen.append((self.path, headers, body))
                answer = left.pop(0) if len(left) > 1 else left[0]
            self.close_connection = True
            if not answer.status:
                return
            self.send_response(answer.status)
            usual = {"Content-Type": "text/event-stream"} | dict(answer.headers)
            for name, value in usual.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(answer.body)
            self.wfile.flush()
            if answer.stops:
                stop()
            if answer.hangs:
                # The client closes the connection, which ends this read.
                self.rfile.read(1)

        do_GET = do_POST

    def stop() -> None:
        server.shutdown()
        server.server_close()

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield ScriptedServer(f"http://127.0.0.1:{server.server_port}", seen)
    finally:
        stop()
        thread.join(10)
