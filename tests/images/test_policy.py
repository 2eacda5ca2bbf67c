"""Which sources and servers the loader of images opens, when a policy limits them."""

from __future__ import annotations

import socket
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from idefics_cli.core.errors import ImageError
from idefics_cli.core.types import Attachment, ImageLimits
from idefics_cli.images.addresses import is_public
from idefics_cli.images.download import download
from idefics_cli.images.media import MediaLoader
from tests.support.auditing import LOCAL_SOURCES, opened_files
from tests.support.pictures import encoded, quadrants

PICTURE = encoded(quadrants(), "PNG")
REMOTE_ONLY = ImageLimits(sources=frozenset({"data", "web"}), addresses="public")

PUBLIC = (
    *("93.184.216.34", "8.8.8.8", "1.1.1.1", "172.15.0.1", "172.32.0.1", "100.128.0.1"),
    *("192.0.1.1", "198.20.0.1", "223.255.255.1", "2606:2800:220:1::1", "2001:4860:4860::8888"),
    *("::ffff:93.184.216.34", "64:ff9b::5db8:d822", "2002:5db8:d822::1"),
)
PRIVATE = (
    *("127.0.0.1", "127.255.255.254", "0.0.0.0", "10.1.2.3", "172.16.0.1", "172.31.255.255"),
    *("192.168.0.1", "169.254.169.254", "100.64.0.1", "192.0.0.8", "192.0.2.1", "198.18.0.1"),
    *("198.51.100.1", "203.0.113.1", "224.0.0.1", "239.255.255.255", "240.0.0.1"),
    *("255.255.255.255", "192.88.99.1", "::", "::1", "fe80::1%eth0", "fc00::1", "fd00::1"),
    *("ff02::1", "ff0e::1", "fec0::1", "2001:db8::1", "100::1", "::127.0.0.1"),
    *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::7f00:1"),
    *("2002:7f00:1::", "2002:a00:1::1", "2001:0:4136:e378:8000:63bf:80ff:fffe"),
)


@pytest.mark.parametrize("address", PUBLIC)
def test_an_address_on_the_internet_is_public(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize("address", PRIVATE)
def test_no_other_address_is_public(address: str) -> None:
    assert not is_public(address)


def test_local_sources_are_refused_unread_with_one_message_for_all() -> None:
    assert len(LOCAL_SOURCES) >= 40
    loader = MediaLoader(REMOTE_ONLY)
    messages = set()

    with opened_files() as opened:
        for source in LOCAL_SOURCES:
            for open_source in (loader.open, loader.open_media, loader.size, loader.read):
                with pytest.raises(ImageError) as caught:
                    open_source(Attachment(source))
                messages.add((str(caught.value), caught.value.kind, caught.value.hint))

    assert opened == []
    assert len(messages) == 1


def test_each_kind_of_source_can_be_refused_alone() -> None:
    data_only = MediaLoader(ImageLimits(sources=frozenset({"data"})))

    with opened_files() as opened, pytest.raises(ImageError, match="not accepted"):
        data_only.open(Attachment("http://127.0.0.1:9/a.png"))

    assert opened == []


# Servers


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append((self.client_address[0], self.headers["Host"], self.path))
        self.server.headers.append(dict(self.headers))
        if self.path in self.server.redirects:
            self.send_response(302)
            self.send_header("Location", self.server.redirects[self.path])
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(PICTURE)))
        self.end_headers()
        self.wfile.write(PICTURE)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: str = "0.0.0.0") -> None:
        super().__init__((address, 0), Handler)
        self.asked: list[tuple[str, str, str]] = []
        self.headers: list[dict[str, str]] = []
        self.redirects: dict[str, str] = {}

    def url(self, host: str, path: str = "/a.png") -> str:
        return f"http://{host}:{self.server_port}{path}"


class Resolver:
    """Gives the answers of each host in turn, and records who was looked up."""

    def __init__(self, **answers: Sequence[Sequence[str]]) -> None:
        self.answers = {name.replace("_", "."): list(found) for name, found in answers.items()}
        self.asked: list[str] = []

    def __call__(self, host: str, port: int) -> Sequence[str]:
        self.asked.append(host)
        if host not in self.answers:
            raise socket.gaierror(socket.EAI_NONAME, "no such host")
        found = self.answers[host]
        return found.pop(0) if len(found) > 1 else found[0]


def is_other_loopback(address: str) -> bool:
    """Whether *address* plays a public one: no traffic of a test leaves this machine."""
    return address in ("127.0.0.2", "127.0.0.3")


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield server
        server.shutdown()


def fetch(server: Server, url: str, resolver: Resolver, limits: ImageLimits = REMOTE_ONLY) -> bytes:
    return download(
        url,
        limits,
        is_public=is_other_loopback,
        look_up=resolver,
        ports=frozenset({server.server_port}),
    )


def refusal(server: Server, url: str, resolver: Resolver, limits: ImageLimits = REMOTE_ONLY) -> str:
    with pytest.raises(ImageError) as caught:
        fetch(server, url, resolver, limits)
    assert caught.value.kind == "fetch_failed"
    return str(caught.value)


def test_a_host_is_looked_up_once_and_named_in_the_request(server: Server) -> None:
    resolver = Resolver(pictures_example=[["127.0.0.2"], ["127.0.0.1"]])

    assert fetch(server, server.url("pictures.example"), resolver) == PICTURE

    assert resolver.asked == ["pictures.example"]
    ((_, host, _),) = server.asked
    assert host == f"pictures.example:{server.server_port}"


def test_a_resolver_that_rebinds_is_refused_at_the_next_hop(server: Server) -> None:
    server.redirects["/hop"] = "/a.png"
    resolver = Resolver(rebind_example=[["127.0.0.2"], ["127.0.0.1"]])

    assert "not a public address" in refusal(server, server.url("rebind.example", "/hop"), resolver)

    assert resolver.asked == ["rebind.example"] * 2
    assert [path for *_, path in server.asked] == ["/hop"]


@pytest.mark.parametrize("host", ["127.0.0.1", "10.0.0.1", "0x7f.1", "127.1", "2130706433", "0"])
def test_private_addresses_of_any_spelling_are_refused(server: Server, host: str) -> None:
    def look_up(name: str, port: int) -> Sequence[str]:
        found = socket.getaddrinfo(name, port, type=socket.SOCK_STREAM)
        return [str(address[0]) for *_, address in found]

    with pytest.raises(ImageError, match="not a public address"):
        download(
            server.url(host),
            REMOTE_ONLY,
            look_up=look_up,
            ports=frozenset({server.server_port}),
        )

    assert server.asked == []


def test_one_private_address_among_public_ones_is_enough(server: Server) -> None:
    resolver = Resolver(mixed_example=[["127.0.0.2", "127.0.0.1"]])

    assert "not a public address" in refusal(server, server.url("mixed.example"), resolver)
    assert server.asked == []


@pytest.mark.parametrize("host", ["127.0.0.1", "inner.example"])
def test_a_redirect_to_a_private_address_is_refused(server: Server, host: str) -> None:
    server.redirects["/hop"] = server.url(host)
    resolver = Resolver(
        a_example=[["127.0.0.2"]], inner_example=[["127.0.0.1"]], **{"127_0_0_1": [["127.0.0.1"]]}
    )

    assert "not a public address" in refusal(server, server.url("a.example", "/hop"), resolver)
    assert [path for *_, path in server.asked] == ["/hop"]


def test_the_next_address_is_tried_when_one_refuses() -> None:
    with Server("127.0.0.2") as other:
        threading.Thread(target=other.serve_forever, args=(0.01,), daemon=True).start()
        port = other.server_port
        # Nobody listens on this port of 127.0.0.3.
        found = download(
            f"http://two.example:{port}/a.png",
            REMOTE_ONLY,
            is_public=is_other_loopback,
            look_up=Resolver(two_example=[["127.0.0.3", "127.0.0.2"]]),
            ports=frozenset({port}),
        )
        other.shutdown()

    assert found == PICTURE


def test_only_web_ports_are_asked(server: Server) -> None:
    resolver = Resolver(a_example=[["127.0.0.2"]])

    with pytest.raises(ImageError, match=r"the port \d+ is not allowed"):
        download(
            server.url("a.example"), REMOTE_ONLY, is_public=is_other_loopback, look_up=resolver
        )
    assert resolver.asked == []
    assert server.asked == []


def test_user_names_in_addresses_are_refused(server: Server) -> None:
    resolver = Resolver(a_example=[["127.0.0.2"]])

    assert "user name" in refusal(server, server.url("me:secret@a.example"), resolver)
    server.redirects["/hop"] = server.url("me:secret@a.example")
    message = refusal(server, server.url("a.example", "/hop"), resolver)
    assert "user name" in message
    assert "secret" not in message


def test_listed_hosts_may_be_anywhere_and_others_are_refused(server: Server) -> None:
    named = ImageLimits(addresses=frozenset({"nas.example", f"b.example:{server.server_port}"}))
    resolver = Resolver(
        nas_example=[["127.0.0.1"]], b_example=[["127.0.0.1"]], c_example=[["127.0.0.2"]]
    )

    assert fetch(server, server.url("NAS.example"), resolver, named) == PICTURE
    assert fetch(server, server.url("b.example"), resolver, named) == PICTURE
    told = refusal(server, server.url("c.example"), resolver, named)
    assert f"the host c.example:{server.server_port} is not allowed" in told
    assert "c.example" not in resolver.asked


def test_neither_proxies_nor_netrc_of_the_user_are_used(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    netrc = tmp_path_factory.mktemp("home") / "netrc"
    netrc.write_text("machine a.example login me password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    resolver = Resolver(a_example=[["127.0.0.2"]])

    assert fetch(server, server.url("a.example"), resolver) == PICTURE

    assert not any("Authorization" in headers for headers in server.headers)


def test_the_name_of_the_host_is_in_the_tls_handshake() -> None:
    greetings: list[bytes] = []
    with socket.create_server(("127.0.0.2", 0)) as listener:

        def greet() -> None:
            connection, _ = listener.accept()
            with connection:
                greetings.append(connection.recv(4096))

        thread = threading.Thread(target=greet)
        thread.start()
        port = listener.getsockname()[1]
        with pytest.raises(ImageError):
            download(
                f"https://pictures.example:{port}/a.png",
                REMOTE_ONLY,
                is_public=is_other_loopback,
                look_up=Resolver(pictures_example=[["127.0.0.2"]]),
                ports=frozenset({port}),
            )
        thread.join(5)

    assert b"pictures.example" in greetings[0]


def test_a_whole_download_has_its_own_limit_of_time() -> None:
    with socket.create_server(("127.0.0.2", 0)) as listener:
        port = listener.getsockname()[1]
        started = time.monotonic()
        with pytest.raises(ImageError, match=r"took longer than 0\.3 seconds"):
            download(
                f"http://slow.example:{port}/a.png",
                ImageLimits(addresses="public", timeout_seconds=20, download_seconds=0.3),
                is_public=is_other_loopback,
                look_up=Resolver(slow_example=[["127.0.0.2"]]),
                ports=frozenset({port}),
            )
        assert time.monotonic() - started < 10


def test_the_audit_sees_what_is_opened() -> None:
    with opened_files() as opened:
        open(sys.executable, "rb").close()

    assert opened == [("open", sys.executable)]
