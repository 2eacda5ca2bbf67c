"""Who may ask: names of the server, web pages, and the key."""

from __future__ import annotations

import hmac
import socket
from collections.abc import Iterator

import pytest

from idefics_cli.core.servers import is_loopback
from idefics_cli.server.guards import Access
from idefics_cli.server.run import open_socket
from idefics_cli.server.service import ServerOptions
from tests.support.fakes import EngineOf
from tests.support.http_servers import (
    CHAT,
    FAKE_SPEC,
    HttpServer,
    ManualEngine,
    chat,
    serving,
    wait_for,
)

KEY = "correct-horse-battery"
PAGE = "https://webui.example"


@pytest.fixture(scope="module")
def guarded() -> Iterator[HttpServer]:
    access = Access(KEY.encode(), frozenset({PAGE}), frozenset({"box.example"}))
    with serving(EngineOf(ManualEngine()), ServerOptions(FAKE_SPEC, access=access)) as server:
        yield server


@pytest.fixture(scope="module")
def local() -> Iterator[HttpServer]:
    with serving(EngineOf(ManualEngine()), ServerOptions(FAKE_SPEC, names=("fake",))) as server:
        yield server


def status(server: HttpServer, path: str = "/v1/models", **headers: str) -> tuple[int, str | None]:
    """Return the status and the code of the error."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    code, _, body = server.ask(path, headers=named)
    return code, body["error"]["code"] if code >= 400 else None


def test_every_path_but_one_needs_the_key(guarded: HttpServer) -> None:
    for path in ("/v1/models", "/v1/models/fake", CHAT, "/v1/completions", "/metrics", "/", "/x"):
        assert status(guarded, path) == (401, "invalid_api_key"), path
        right = guarded.ask(path, headers={"Authorization": f"Bearer {KEY}"})
        assert right[0] != 401, path
    assert guarded.ask(body=chat())[0] == 401
    reply = guarded.ask("/v1/models")
    assert reply[1]["www-authenticate"] == "Bearer"
    assert guarded.ask("/health")[0] == 200


@pytest.mark.parametrize(
    "authorization",
    [
        "",
        KEY,
        f"Basic {KEY}",
        f"Bearer {KEY}x",
        f"Bearer {KEY[:-1]}",
        f"Bearer {KEY.upper()}",
        "Bearer ",
        "Bearer",
        "Bearer \xe9",
        f"Bearer {KEY}, Bearer {KEY}",
    ],
)
def test_a_wrong_key_is_no_key(guarded: HttpServer, authorization: str) -> None:
    assert status(guarded, Authorization=authorization) == (401, "invalid_api_key")


@pytest.mark.parametrize(
    "path",
    [
        "//v1/models",
        "/health/../v1/models",
        "/health/",
        "/health/v1/models",
        "/%2e/v1/models",
        "/v1/models?/health",
        "/v1/models#/health",
        "/health%2f..%2fv1%2fmodels",
        "/HEALTH",
        "/health;/v1/models",
        "/x/health",
    ],
)
def test_no_spelling_of_a_path_passes_without_the_key(guarded: HttpServer, path: str) -> None:
    assert status(guarded, path) == (401, "invalid_api_key")


@pytest.mark.parametrize("host", ["localhost/health?", "x/health?", "localhost#/health", "a@b"])
def test_no_host_header_changes_the_path_that_is_checked(guarded: HttpServer, host: str) -> None:
    assert status(guarded, Host=host)[0] in (401, 403)
    assert status(guarded, Host="box.example") == (401, "invalid_api_key")


def test_an_absolute_address_in_the_request_line_is_not_a_path(guarded: HttpServer) -> None:
    answer = guarded.raw(
        b"GET http://x/health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )

    assert answer.startswith(b"HTTP/1.1 401 ")


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("localhost", 200),
        ("localhost:1234", 200),
        ("LOCALHOST.", 200),
        ("127.0.0.1", 200),
        ("127.5.5.5:80", 200),
        ("[::1]", 200),
        ("[::1]:8000", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("evil.example:127", 403),
        ("10.0.0.1", 403),
        ("0.0.0.0", 403),
        ("[::]", 403),
        ("[", 403),
        ("", 403),
        ("localhost/x", 403),
        ("evil.example@localhost", 403),
        ("box.example", 403),
    ],
)
def test_a_local_server_is_asked_by_a_local_name_only(
    local: HttpServer, host: str, expected: int
) -> None:
    assert local.ask("/v1/models", headers={"Host": host})[0] == expected
    if expected == 403:
        assert status(local, "/health", Host=host) == (403, "host_not_allowed")


def test_other_names_can_be_allowed(guarded: HttpServer) -> None:
    named = {"Authorization": f"Bearer {KEY}"}

    assert guarded.ask("/v1/models", headers={**named, "Host": "box.example:9"})[0] == 200
    assert guarded.ask("/v1/models", headers={**named, "Host": "other.example"})[0] == 403


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "", "http://localhost:3000", PAGE + ".evil", "*"]
)
def test_web_pages_may_not_ask(local: HttpServer, guarded: HttpServer, origin: str) -> None:
    for server in (local, guarded):
        assert status(server, "/health", Origin=origin) == (403, "origin_not_allowed")
        answer = server.ask(body=chat(), headers={"Origin": origin})
        assert answer[0] == 403
        assert "access-control-allow-origin" not in answer[1]


def test_a_page_that_is_allowed_gets_its_headers(guarded: HttpServer, local: HttpServer) -> None:
    asked, headers, _ = guarded.ask(CHAT, method="OPTIONS", headers={"Origin": PAGE})
    assert (asked, headers["access-control-allow-origin"]) == (204, PAGE)
    assert headers["vary"] == "origin"
    assert "authorization" in headers["access-control-allow-headers"]

    named = {"Authorization": f"Bearer {KEY}", "Origin": PAGE}
    found, headers, _ = guarded.ask("/v1/models", headers=named)
    assert (found, headers["access-control-allow-origin"]) == (200, PAGE)
    assert "access-control-allow-credentials" not in headers
    assert status(guarded, Origin=PAGE) == (401, "invalid_api_key")
    assert local.ask(CHAT, method="OPTIONS")[0] == 405


def test_the_key_is_in_no_line_and_no_answer(guarded: HttpServer) -> None:
    for name in ("Authorization", "X-Request-Id"):
        reply = guarded.ask("/v1/models", headers={name: f"Bearer {KEY}"})
        assert KEY not in str(reply)
    assert KEY not in "".join(guarded.lines)
    assert any("GET /v1/models 401 invalid_api_key" in line for line in guarded.lines)


@pytest.mark.parametrize("identity", ["a\tb", "x" * 65, "a b", "\x1b[31m", "é", "", "a/b"])
def test_a_request_id_of_the_client_must_be_plain(local: HttpServer, identity: str) -> None:
    head = b"GET /health HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n"
    raw = local.raw(head + b"X-Request-Id: " + identity.encode() + b"\r\n\r\n")

    assert b"x-request-id: req-" in raw or raw.startswith(b"HTTP/1.1 400 ")
    assert "\x1b" not in "".join(local.lines)
    assert all(line.isprintable() for line in local.lines)


def test_a_path_cannot_write_lines_into_the_log(local: HttpServer) -> None:
    for path in ("/v1/%0d%0a12:00:00%20forged", "/%1b%5b31m", "/%e2%80%ae", "/" + "a" * 5000):
        assert local.ask(path)[0] == 404
    wait_for(lambda: len([line for line in local.lines if " 404 " in line]) == 4)
    lines = [line for line in local.lines if " 404 " in line]
    assert all(line.isprintable() and len(line) < 200 for line in lines)


def test_keys_are_compared_in_constant_time(
    guarded: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[tuple[bytes, bytes]] = []
    usual = hmac.compare_digest

    def compare(given: bytes, key: bytes) -> bool:
        compared.append((given, key))
        return usual(given, key)

    monkeypatch.setattr(hmac, "compare_digest", compare)
    for given, expected in (("x", 401), (KEY, 200)):
        assert status(guarded, Authorization=f"Bearer {given}")[0] == expected
    assert compared == [(b"x", KEY.encode()), (KEY.encode(), KEY.encode())]


@pytest.mark.skipif(not socket.has_ipv6, reason="needs IPv6")
def test_an_address_of_ipv6_may_stand_in_brackets() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no ::1")
    with open_socket("[::1]", 0) as listener:
        assert listener.getsockname()[0] == "::1"


def test_what_names_this_machine_only() -> None:
    for host in ("localhost", "127.0.0.1", "127.9.9.9", "::1", "[::1]", "LocalHost"):
        assert is_loopback(host), host
    for host in ("0.0.0.0", "::", "192.168.1.1", "example.com", "", "localhost.example"):
        assert not is_loopback(host), host
