"""Every error has OpenAI's shape, its status, and no detail of the machine."""

from __future__ import annotations

import base64
import logging
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import openai
import pytest
from openai.types.shared import ErrorObject

from idefics_cli.core.errors import (
    ContextError,
    DeadEndError,
    IdeficsError,
    ImageError,
    MemoryLimitError,
    ModelError,
)
from idefics_cli.server.bodies import BodyLimits
from idefics_cli.server.errors import TYPES
from idefics_cli.server.service import ServerOptions
from tests.support.auditing import LOCAL_SOURCES, opened_files
from tests.support.fakes import EngineOf
from tests.support.http_servers import (
    CHAT,
    FAKE_SPEC,
    PICTURE,
    HttpServer,
    ManualEngine,
    ManualHandle,
    Reply,
    chat,
    events,
    read,
    serving,
    wait_for,
)
from tests.support.pictures import encoded, quadrants


@pytest.fixture(scope="module")
def engine() -> ManualEngine:
    return ManualEngine()


@pytest.fixture(scope="module")
def server(engine: ManualEngine) -> Iterator[HttpServer]:
    limits = replace(FAKE_SPEC.limits, max_bytes=100_000, max_pixels=10_000)
    options = ServerOptions(
        replace(FAKE_SPEC, limits=limits),
        names=("fake", "fake/model"),
        body=BodyLimits(most_bytes=300_000),
    )
    with serving(EngineOf(engine), options) as server:
        yield server


def error_of(reply: Reply) -> dict[str, Any]:
    """Return the error of an answer, after its shape is checked."""
    status, headers, body = reply
    assert headers["content-type"] == "application/json"
    assert headers["x-request-id"]
    assert body.keys() == {"error"}
    error: dict[str, Any] = body["error"]
    assert error.keys() == {"message", "type", "param", "code"}
    ErrorObject.model_validate(error, strict=True)
    assert error["type"] == TYPES.get(status, "invalid_request_error")
    for leak in ("0x", "Traceback", "/home", "/tmp", "--", "site-packages"):
        assert leak not in error["message"]
    return error


def data(content: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(content).decode()


def test_addresses_and_methods_that_are_not_there(server: HttpServer) -> None:
    for path in ("/", "/v1", "/v1/responses", "/api/chat", "/v1/models/", "/docs", "/openapi.json"):
        reply = server.ask(path)
        assert reply[0] == 404, path
        error_of(reply)
    assert error_of(server.ask("/v1/responses"))["code"] == "unknown_url"
    assert "/v1/chat/completions" in error_of(server.ask("/v1/responses"))["message"]

    reply = server.ask(CHAT)
    assert (reply[0], reply[1]["allow"]) == (405, "POST")
    assert error_of(reply)["message"] == "this address takes POST, not GET"
    assert error_of(reply)["code"] == "method_not_allowed"
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert server.ask(CHAT, method=method)[0] == 405


def test_other_models_are_not_found(server: HttpServer) -> None:
    reply = server.ask(body=chat(model="gpt\x1b[31m"))

    assert reply[0] == 404
    error = error_of(reply)
    assert (error["code"], error["param"]) == ("model_not_found", "model")
    assert "`fake`" in error["message"]
    assert error["message"].isprintable()
    assert error_of(server.ask("/v1/models/gpt"))["code"] == "model_not_found"


@pytest.mark.parametrize(
    ("body", "headers"),
    [
        (b"{}", {"Content-Type": "text/plain"}),
        (b"{}", {"Content-Type": ""}),
        (b"{}", {"Content-Type": "application/x-www-form-urlencoded"}),
        (b"{}", {"Content-Type": "multipart/form-data; boundary=x"}),
        (b"{}", {"Content-Type": "application/json", "Content-Encoding": "gzip"}),
    ],
)
def test_bodies_of_other_types_are_refused(
    server: HttpServer, body: bytes, headers: dict[str, str]
) -> None:
    reply = server.ask(body=body, headers=headers)

    assert reply[0] == 415
    assert error_of(reply)["code"] == "unsupported_media_type"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"x"',
        b'{"a": 1, "a": 2}',
        b'{"a": NaN}',
        b'{"a": 1e999}',
        b'{"a": "\xff"}',
        b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}",
        b'{"a": ' + b"9" * 5000 + b"}",
    ],
)
def test_bodies_that_are_no_json_objects_are_refused(server: HttpServer, body: bytes) -> None:
    reply = server.ask(body=body)

    assert reply[0] == 400
    assert error_of(reply)["code"] == "invalid_json"


def test_a_body_over_the_limit_is_refused_and_says_the_limit(server: HttpServer) -> None:
    reply = server.ask(body=b"x" * 300_001)

    assert reply[0] == 413
    error = error_of(reply)
    assert error["code"] == "request_too_large"
    assert error["message"] == "the body is larger than 293 KiB"
    assert reply[1]["connection"] == "close"

    pieces = b"".join(b"8000\r\n" + b"x" * 0x8000 + b"\r\n" for _ in range(12)) + b"0\r\n\r\n"
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    kind = b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
    assert server.raw(head + kind + pieces).startswith(b"HTTP/1.1 413 ")
    server.wait_until_idle()


def test_a_body_at_the_limit_is_read(server: HttpServer) -> None:
    assert server.ask(body=b" " * 300_000)[0] == 400


@pytest.mark.parametrize(
    ("picture", "code"),
    [
        ("data:image/png;base64,!!!", "invalid_image_format"),
        ("data:image/png", "invalid_image_format"),
        (data(b"GIF89a"), None),
        (data(b"hello"), "invalid_image_format"),
        (data(b""), "invalid_image_format"),
        (data(b"<svg xmlns='http://www.w3.org/2000/svg'></svg>"), "invalid_image_format"),
        (data(b"%PDF-1.4 x"), "invalid_image_format"),
        (data(encoded(quadrants(), "PNG")[:100]), "image_parse_error"),
        (data(encoded(quadrants(200, 100), "PNG")), "image_too_large"),
        (data(b"\0" * 150_000), "image_too_large"),
        ("http://127.0.0.1:9/a.png", "failed_to_download_image"),
        ("http://localhost/a.png", "failed_to_download_image"),
        ("https://[::1]/a.png", "failed_to_download_image"),
        ("http://169.254.169.254/latest/meta-data", "failed_to_download_image"),
        ("http://no-such-host.invalid/", "failed_to_download_image"),
        ("http://[broken/", "failed_to_download_image"),
        ("/etc/hostname", "invalid_image_url"),
        ("file:///etc/hostname", "invalid_image_url"),
    ],
)
def test_pictures_that_cannot_be_used_have_codes_of_openai(
    server: HttpServer, picture: str, code: str | None
) -> None:
    reply = server.ask(body=chat("x", PICTURE, picture))

    assert reply[0] == 400
    error = error_of(reply)
    assert error["param"] == "messages[0].content[1].image_url.url"
    assert code is None or error["code"] == code
    # The request holds these bytes, so the reason is not its address.
    assert picture[:5] != "data:" or "must be a data: URI" not in error["message"]
    assert "127.0.0.1" not in error["message"]
    assert "/etc" not in error["message"]


def test_no_spelling_of_a_local_source_opens_anything(server: HttpServer) -> None:
    bodies, replies = [chat("x", source) for source in LOCAL_SOURCES], []
    server.ask("/health")

    with opened_files() as opened:
        replies = [server.ask(body=body) for body in bodies]

    own = ("127.0.0.1", server.port)
    assert [one for one in opened if one[0] not in ("socket.getaddrinfo", "socket.connect")] == []
    assert len([one for one in opened if one[0] == "socket.connect"]) == len(bodies), own
    answers = {(reply[0], str(reply[2])) for reply in replies if reply[0] == 400}
    texts = {(r[2]["error"]["message"], r[2]["error"]["code"]) for r in replies}
    assert len(answers) == len(texts) + 1 or len(texts) <= 2
    assert {code for _, code in texts} <= {"invalid_image_url", "invalid_value"}


def test_private_servers_and_missing_ones_are_told_alike(server: HttpServer) -> None:
    urls = ("http://127.0.0.1:9/", "http://10.1.2.3/", "http://[fe80::1]/", "http://0x7f.1/x")
    bodies = [server.ask(body=chat("x", url))[2] for url in (*urls, "http://nobody.invalid/")]

    assert all(body == bodies[0] for body in bodies)


# What the engine says


def failing(server: HttpServer, engine: ManualEngine, error: Exception, **fields: object) -> Reply:
    connection = server.begin(chat("x", **fields))
    wait_for(lambda: len(engine.open) == 1)
    engine.open[0].fail(error)
    reply = read(connection.getresponse())
    connection.close()
    server.wait_until_idle()
    return reply


def test_errors_of_the_engine_have_their_status(
    server: HttpServer, engine: ManualEngine, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    identities: list[str] = []
    long = failing(server, engine, ContextError("x", prompt_tokens=99, context_tokens=9))
    assert long[0] == 400
    assert error_of(long)["code"] == "context_length_exceeded"
    assert "maximum context length is 9 tokens" in error_of(long)["message"]

    large = failing(server, engine, MemoryLimitError("secret", hint="--batch-size"))
    assert large[0] == 500
    assert error_of(large)["code"] == "out_of_memory"
    assert large[1]["x-should-retry"] == "false"

    for error in (
        ModelError("/secret/path"),
        IdeficsError("s"),
        RuntimeError("0xdeadbeef /secret"),
    ):
        reply = failing(server, engine, error)
        assert reply[0] == 500
        told = error_of(reply)
        assert told["code"] == "internal_error"
        assert told["message"] == f"internal error, request {reply[1]['x-request-id']}"
        identities.append(reply[1]["x-request-id"])
    wait_for(lambda: all(identity in caplog.text for identity in identities))
    # What the program raises itself needs no traceback.
    assert caplog.text.count("Traceback") == caplog.text.count("0xdeadbeef") == 1
    dead = failing(server, engine, DeadEndError("the schema leaves no token"))
    assert (dead[0], error_of(dead)["message"]) == (400, "the schema leaves no token")
    picture = failing(server, engine, ImageError("/x", kind="truncated"))
    assert error_of(picture)["code"] == "image_parse_error"


def test_an_error_in_a_stream_is_its_last_event(
    server: HttpServer, engine: ManualEngine, caplog: pytest.LogCaptureFixture
) -> None:
    connection = server.begin(chat("x", stream=True))
    wait_for(lambda: len(engine.open) == 1)
    engine.open[0].say("Hello")
    response = connection.getresponse()
    first = response.readline()
    engine.open[0].fail(RuntimeError("0xdeadbeef"))
    found = events((first + response.read()).decode())
    connection.close()

    assert response.status == 200
    assert found[-2]["choices"][0]["delta"] == {"content": "Hello"}
    assert found[-1]["error"]["code"] == "internal_error"
    assert "0x" not in found[-1]["error"]["message"]


def test_a_stream_that_fails_has_all_that_came_before_the_error(
    server: HttpServer, engine: ManualEngine
) -> None:
    """The last text waits some milliseconds for more text, and an error may come meanwhile."""

    def fail(handle: ManualHandle) -> None:
        handle.fail(RuntimeError("x"))

    for end, code in (
        (fail, "internal_error"),
        (lambda handle: handle.finish("cancelled"), "shutting_down"),
    ):
        connection = server.begin(chat("x", stream=True, n=2))
        wait_for(lambda: len(engine.open) == 2)
        one, other = engine.open
        one.say("Hel")
        response = connection.getresponse()
        first = response.readline()
        one.say("lo")
        other.say("Bye")
        other.finish()
        one.say("!")
        end(one)
        found = events((first + response.read()).decode())
        connection.close()

        assert found[-1]["error"]["code"] == code
        choices = [choice for each in found[:-1] for choice in each["choices"]]
        texts = [
            "".join(c["delta"].get("content", "") for c in choices if c["index"] == i)
            for i in (0, 1)
        ]
        assert texts == ["Hello!", "Bye"]
        ends = [(c["index"], c["finish_reason"]) for c in choices if c["finish_reason"]]
        assert ends == [(1, "stop")]


def test_the_client_of_openai_raises_the_right_errors(
    server: HttpServer, engine: ManualEngine
) -> None:
    client = server.client()
    messages: Any = chat("x")["messages"]
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt", messages=messages)
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(model="fake", messages=messages, logit_bias={"5": 1})
    assert (wrong.value.code, wrong.value.param) == ("unsupported_parameter", "logit_bias")
    assert wrong.value.request_id
