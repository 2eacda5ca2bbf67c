"""Pictures from the web: they come from allowed hosts, once, and no reason is told."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from idefics_cli.core.types import Attachment, GenerationRequest, ImageLimits, Message
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.server.service import ServerOptions
from tests.support.http_servers import DEMO_SPEC, PICTURE, HttpServer, StillOpen, chat, serving
from tests.support.pictures import encoded, quadrants

FILE = encoded(quadrants(), "PNG")


class Handler(BaseHTTPRequestHandler):
    asked: list[str]

    def do_GET(self) -> None:
        self.asked.append(self.path)
        self.send_response(302 if self.path == "/hop" else 200)
        if self.path == "/hop":
            self.send_header("Location", "http://localhost:1/secret.png")
        self.end_headers()
        self.wfile.write(b"a secret page" if self.path == "/page" else FILE)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


@pytest.fixture
def web() -> Iterator[ThreadingHTTPServer]:
    Handler.asked = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        threading.Thread(target=web.serve_forever, args=(0.01,), daemon=True).start()
        yield web
        web.shutdown()


@pytest.fixture
def server(demo_engine: LocalEngine, web: ThreadingHTTPServer) -> Iterator[HttpServer]:
    limits: ImageLimits = replace(
        DEMO_SPEC.limits, addresses=frozenset({f"127.0.0.1:{web.server_port}"}), max_redirects=1
    )
    options = ServerOptions(replace(DEMO_SPEC, limits=limits), names=("demo",))
    with serving(StillOpen(demo_engine), options) as server:
        yield server


def test_a_picture_of_an_allowed_host_is_seen(
    server: HttpServer, web: ThreadingHTTPServer, demo_engine: LocalEngine
) -> None:
    request = GenerationRequest((Message("user", (Attachment(PICTURE), "Describe this image.")),))
    (expected,) = demo_engine.complete([demo_engine.prepare(request)])
    url = f"http://127.0.0.1:{web.server_port}/a.png"

    status, _, answer = server.ask(body=chat("Describe this image.", url))

    assert (status, answer["choices"][0]["message"]["content"]) == (200, expected.text)
    assert Handler.asked == ["/a.png"]


def test_refused_and_failed_downloads_are_told_alike(
    server: HttpServer, web: ThreadingHTTPServer
) -> None:
    host = f"http://127.0.0.1:{web.server_port}"
    told = [
        server.ask(body=chat("x", url))[2]["error"]
        for url in (f"{host}/hop", "http://localhost:1/a.png", "http://8.8.8.8/a.png")
    ]

    assert told == [told[0]] * 3
    assert told[0]["code"] == "failed_to_download_image"
    assert Handler.asked == ["/hop"]
    page = server.ask(body=chat("x", f"{host}/page"))[2]["error"]
    assert (page["code"], "secret" in page["message"]) == ("invalid_image_format", False)
