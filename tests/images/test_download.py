"""Download of pictures, from a server on this machine."""

from __future__ import annotations

import gzip
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import requests
from PIL import Image

from idefics_cli.core.errors import ImageError
from idefics_cli.core.types import Attachment, ImageLimits
from idefics_cli.images.addresses import is_public
from idefics_cli.images.download import download
from idefics_cli.images.loader import ImageLoader
from tests.support.pictures import QUADRANTS, corners, encoded, quadrants

PICTURE = encoded(quadrants(), "PNG")


class Handler(BaseHTTPRequestHandler):
    """Answers a path by `ROUTES`."""

    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.path, dict(self.headers)))
        try:
            ROUTES[self.path.partition("?")[0]](self)
        except OSError:
            self.close_connection = True  # the client closed the connection

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""

    def answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in {"Content_Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)


class Server(ThreadingHTTPServer):
    """A server that records its requests, and has an event to stop slow replies."""

    daemon_threads = True

    def __init__(self, host: str = "127.0.0.1") -> None:
        super().__init__((host, 0), Handler)
        self.asked: list[tuple[str, dict[str, str]]] = []
        self.over = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        """Log nothing about clients that close the connection."""


def drip_body(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while not handler.server.over.wait(0.05):
        handler.wfile.write(b"x")
        handler.wfile.flush()


def pour(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while not handler.server.over.wait(0.05):
        handler.wfile.write(bytes(20_000))


def drip_headers(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    while not handler.server.over.wait(0.05):
        handler.wfile.write(b"x")
        handler.wfile.flush()


def always_continue(handler: Handler) -> None:
    while not handler.server.over.wait(0.01):
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        handler.wfile.flush()


def endless(handler: Handler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while not handler.server.over.is_set():
        handler.wfile.write(bytes(10_000))


def half(handler: Handler) -> None:
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(PICTURE)))
    handler.end_headers()
    handler.wfile.write(PICTURE[: len(PICTURE) // 2])
    handler.close_connection = True


def stay_silent(handler: Handler) -> None:
    handler.server.over.wait(20)


def answer_with_escape(handler: Handler) -> None:
    handler.wfile.write(b"HTTP/1.1 404 \x1b[31mred\r\n\r\n")


def redirect(location: str, status: int = 302) -> Callable[[Handler], None]:
    return lambda handler: handler.answer(status, Location=location)


def reply(body: bytes, status: int = 200, **headers: str) -> Callable[[Handler], None]:
    return lambda handler: handler.answer(status, body, **headers)


ROUTES: dict[str, Callable[[Handler], None]] = {
    "/a.png": reply(PICTURE),
    "/mislabelled": reply(PICTURE, Content_Type="text/html"),
    "/gzip": reply(gzip.compress(PICTURE), Content_Encoding="gzip"),
    "/gzip-broken": reply(b"no gzip", Content_Encoding="gzip"),
    "/to-a": redirect("/a.png"),
    "/to-to-a": redirect("to-a", 301),
    "/308": redirect("/a.png", 308),
    "/loop": redirect("/loop"),
    "/to-file": redirect("file:///etc/passwd"),
    "/to-ftp": redirect("ftp://127.0.0.1/a.png"),
    "/to-odd": redirect("http://[broken/"),
    "/404": reply(b"<html>gone</html>", 404),
    "/403": reply(b"", 403),
    "/429": reply(b"", 429),
    "/500": reply(b"", 500),
    "/204": reply(b"", 204),
    "/page": reply(b"<!doctype html><html></html>"),
    "/json": reply(b'{"error": 1}'),
    "/empty": reply(b""),
    "/announced": reply(b"x", Content_Length="9999999"),
    "/endless": endless,
    "/half": half,
    "/silent": stay_silent,
    "/drip": drip_body,
    "/continue": always_continue,
    "/pour": pour,
    "/drip-headers": drip_headers,
    "/odd-reason": answer_with_escape,
}


@dataclass
class Web:
    """A server and a loader for it."""

    server: Server
    limits: ImageLimits = field(default_factory=lambda: ImageLimits(timeout_seconds=5))

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.server.server_port}{path}"

    def load(self, path: str, *, offline: bool = False) -> Image.Image:
        loader = ImageLoader(self.limits, offline=offline)
        return loader.open(Attachment(self.url(path)))

    def refusal(self, path: str, *, offline: bool = False) -> ImageError:
        with pytest.raises(ImageError) as caught:
            self.load(path, offline=offline)
        error = caught.value
        assert "127.0.0.1" in str(error)
        assert str(error).isprintable()
        assert error.hint
        return error


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield Web(server)
        finally:
            server.over.set()
            server.shutdown()
            thread.join()
            downloads = [t for t in threading.enumerate() if t.name == "image-download"]
            for download in downloads:
                download.join(5)
            assert not any(download.is_alive() for download in downloads)


@pytest.mark.parametrize(
    "path", ["/a.png", "/a.png?size=1#top", "/mislabelled", "/gzip", "/to-a", "/to-to-a", "/308"]
)
def test_an_address_is_a_picture(web: Web, path: str) -> None:
    image = web.load(path)

    assert corners(image) == list(QUADRANTS)
    assert image.info == {"original_size": (64, 48)}


def test_the_scheme_may_be_in_capitals(web: Web) -> None:
    loader = ImageLoader(web.limits)

    assert loader.open(Attachment(web.url("/a.png").replace("http", "HTTP"))).size == (64, 48)


def test_a_server_is_told_who_asks(web: Web) -> None:
    web.load("/a.png")

    ((_, headers),) = web.server.asked
    assert headers["User-Agent"].startswith("idefics-cli/")


@pytest.mark.parametrize(
    ("path", "kind", "message", "hint"),
    [
        ("/404", "fetch_failed", "404 Not Found", "check the address"),
        ("/403", "fetch_failed", "403 Forbidden", "give the file"),
        ("/429", "fetch_failed", "429 Too Many", "wait"),
        ("/500", "fetch_failed", "500 Internal", "later"),
        ("/204", "fetch_failed", "204 No Content", "address"),
        ("/odd-reason", "fetch_failed", r"404 \x1b[31mred", "address"),
        ("/page", "not_an_image", "a web page", "open it in a browser"),
        ("/json", "not_an_image", "text", "supported"),
        ("/empty", "not_an_image", "an empty file", "download"),
        ("/half", "fetch_failed", "broke off", "try again"),
        ("/gzip-broken", "fetch_failed", "broke off", "try again"),
        ("/to-file", "fetch_failed", "redirects to `file:///etc/passwd`", "http(s)"),
        ("/to-ftp", "fetch_failed", "redirects to `ftp://127.0.0.1/a.png`", "http(s)"),
        ("/to-odd", "fetch_failed", "not a valid address", "address"),
    ],
)
def test_a_bad_answer_is_told_what_is_wrong(
    web: Web, path: str, kind: str, message: str, hint: str
) -> None:
    error = web.refusal(path)

    assert error.kind == kind
    assert message in str(error)
    assert hint in (error.hint or "")


def test_a_redirect_loop_ends(web: Web) -> None:
    error = web.refusal("/loop")

    assert (error.kind, "more than 5 redirects" in str(error)) == ("fetch_failed", True)
    assert len(web.server.asked) == 6


def test_as_many_redirects_as_allowed_are_followed(web: Web) -> None:
    web.limits = ImageLimits(max_redirects=2)
    assert web.load("/to-to-a").size == (64, 48)

    web.limits = ImageLimits(max_redirects=1)
    assert "more than 1 redirect" in str(web.refusal("/to-to-a"))


@pytest.mark.parametrize("path", ["/announced", "/endless", "/gzip"])
def test_a_body_over_the_limit_is_not_read_to_its_end(web: Web, path: str) -> None:
    web.limits = ImageLimits(max_bytes=len(PICTURE) - 1)

    assert web.refusal(path).kind == "too_large"


def test_a_body_at_the_limit_is_read(web: Web) -> None:
    web.limits = ImageLimits(max_bytes=len(PICTURE))

    assert web.load("/a.png").size == (64, 48)


def test_a_silent_server_is_given_up(web: Web) -> None:
    web.limits = ImageLimits(timeout_seconds=0.2)

    error = web.refusal("/silent")

    assert (error.kind, "no answer within 0.2 seconds" in str(error)) == ("fetch_failed", True)


@pytest.mark.parametrize("path", ["/drip", "/drip-headers", "/continue"])
def test_a_server_that_drips_is_given_up(web: Web, path: str) -> None:
    web.limits = ImageLimits(timeout_seconds=0.1)
    started = time.monotonic()

    error = web.refusal(path)

    assert (error.kind, "took longer than 1 second" in str(error)) == ("fetch_failed", True)
    assert time.monotonic() - started < 5


@pytest.mark.parametrize("path", ["/pour", "/drip", "/drip-headers", "/continue"])
def test_a_download_that_nobody_waits_for_ends_though_the_server_goes_on(
    web: Web, path: str
) -> None:
    web.limits = ImageLimits(timeout_seconds=0.1)
    web.refusal(path)

    for thread in threading.enumerate():
        if thread.name == "image-download":
            thread.join(5)
            assert not thread.is_alive()


# Redirects into the own network


def on_other_address(web: Web, path: str) -> str:
    """Return the address of *path* on 127.0.0.2, another address of the same server."""
    return web.url(path).replace("127.0.0.1", "127.0.0.2")


@pytest.fixture
def everywhere(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("NO_PROXY", "*")
    server = Server("0.0.0.0")
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield Web(server)
    server.shutdown()
    server.server_close()


def test_a_public_server_cannot_redirect_into_the_own_network(everywhere: Web) -> None:
    def is_public(address: str) -> bool:
        return address == "127.0.0.2"

    private, public = everywhere.url("/a.png"), on_other_address(everywhere, "/a.png")
    for start, end, is_followed in (
        (public, public, True),
        (private, public, True),
        (private, private, True),
        (public, private, False),
    ):
        ROUTES["/hop"] = redirect(end)
        everywhere.server.asked.clear()
        url = start.replace("/a.png", "/hop")
        if is_followed:
            assert download(url, ImageLimits(), is_public=is_public) == PICTURE
            continue
        with pytest.raises(ImageError, match=r"private network, to 127\.0\.0\.1") as caught:
            download(url, ImageLimits(), is_public=is_public)
        assert caught.value.kind == "fetch_failed"
        assert [path for path, _ in everywhere.server.asked] == ["/hop"]


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("93.184.216.34", True),
        ("2606:2800:220:1::1", True),
        ("127.0.0.1", False),
        ("10.1.2.3", False),
        ("192.168.0.1", False),
        ("169.254.169.254", False),
        ("100.64.0.1", False),
        ("0.0.0.0", False),
        ("::1", False),
        ("fe80::1%eth0", False),
        ("fd00::1", False),
        ("::ffff:127.0.0.1", False),
        ("::ffff:93.184.216.34", True),
    ],
)
def test_what_only_the_own_network_reaches_is_private(address: str, expected: bool) -> None:
    assert is_public(address) == expected


def test_offline_asks_nobody(web: Web) -> None:
    error = web.refusal("/a.png", offline=True)

    assert (error.kind, "--offline" in str(error)) == ("fetch_failed", True)
    assert not web.server.asked


def test_offline_keeps_files(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURE)
    loader = ImageLoader(ImageLimits(), offline=True)

    assert loader.open(Attachment(str(tmp_path / "a.png"))).size == (64, 48)


def test_a_port_where_nobody_listens_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound but not listening, so it refuses connections
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/a.png"

        with pytest.raises(ImageError, match=r"cannot connect to `127\.0\.0\.1:\d+`") as caught:
            ImageLoader(ImageLimits()).open(Attachment(url))

    assert caught.value.kind == "fetch_failed"


def test_a_plain_server_has_no_secure_connection(web: Web) -> None:
    url = web.url("/a.png").replace("http:", "https:")

    with pytest.raises(ImageError, match="there is no secure connection to it") as caught:
        ImageLoader(web.limits).open(Attachment(url))

    assert caught.value.kind == "fetch_failed"
    assert caught.value.hint == "check whether the address begins with `http://`"


def test_a_certificate_that_nobody_signed_cannot_be_trusted(
    web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise requests.exceptions.SSLError(
            "HTTPSConnectionPool(host='a', port=443): Max retries exceeded with url: / (Caused by "
            "SSLError(SSLCertVerificationError(1, '[SSL: CERTIFICATE_VERIFY_FAILED] certificate "
            "verify failed: self-signed certificate (_ssl.c:1006)')))"
        )

    monkeypatch.setattr(requests.Session, "get", refuse)
    with pytest.raises(ImageError, match="its certificate cannot be trusted"):
        ImageLoader(web.limits).open(Attachment(web.url("/a.png").replace("http:", "https:")))


@pytest.mark.parametrize(
    "url",
    [
        "http://",
        "http:///a.png",
        "https://[::1/a.png",
        "http://a b/",
        "http://host:x/",
        "http://.../",
    ],
)
def test_what_is_no_address_says_so(url: str) -> None:
    with pytest.raises(ImageError, match="not a valid address") as caught:
        ImageLoader(ImageLimits(timeout_seconds=1)).open(Attachment(url))

    assert caught.value.kind == "fetch_failed"


def test_a_password_in_an_address_is_used_and_never_shown(web: Web) -> None:
    url = web.url("/404").replace("//", "//me:secret@")

    with pytest.raises(ImageError) as caught:
        ImageLoader(web.limits).open(Attachment(url))

    ((_, headers),) = web.server.asked
    assert headers["Authorization"].startswith("Basic ")
    assert "secret" not in str(caught.value)
    assert "secret" not in (caught.value.hint or "")
