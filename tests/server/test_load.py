"""Overload, clients that leave, and slow ones: nothing is kept for them."""

from __future__ import annotations

import asyncio
import gc
import json
import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.server.bodies import BodyLimits
from idefics_cli.server.connections import ConnectionLimits
from idefics_cli.server.run import Lifetime
from idefics_cli.server.service import ServerOptions
from tests.support.fakes import EngineOf
from tests.support.http_servers import (
    FAKE_SPEC,
    PICTURE,
    HttpServer,
    ManualEngine,
    chat,
    events,
    read,
    serving,
    wait_for,
)

HEAD = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
)


@pytest.fixture
def engine() -> ManualEngine:
    return ManualEngine(slots=2)


@pytest.fixture
def server(engine: ManualEngine) -> Iterator[HttpServer]:
    options = ServerOptions(
        FAKE_SPEC,
        names=("fake",),
        slots=2,
        queue=2,
        most_body_bytes=100_000,
        body=BodyLimits(most_bytes=90_000, seconds=0.6, least_rate=100_000),
        role_seconds=0.2,
        silence_seconds=0.2,
    )
    limits = ConnectionLimits(head_seconds=0.6, most=40)
    with serving(
        EngineOf(engine), options, Lifetime(drain_seconds=1, connections=limits)
    ) as server:
        yield server


def test_a_full_queue_refuses_before_anything_is_read(
    server: HttpServer, engine: ManualEngine
) -> None:
    waiting = [server.begin(chat("x", PICTURE)) for _ in range(4)]
    wait_for(lambda: len(engine.open) == 4)
    prepared = len(engine.prepared)

    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        started = time.monotonic()
        # Not a byte of the body is sent.
        connection.sendall(HEAD + b"Content-Length: 50000\r\nConnection: close\r\n\r\n")
        answer = b"".join(iter(lambda: connection.recv(65536), b"")).decode()

    assert time.monotonic() - started < 5
    assert answer.startswith("HTTP/1.1 503 ")
    assert '"code":"server_is_overloaded"' in answer
    retry = next(line for line in answer.lower().split("\r\n") if line.startswith("retry-after"))
    assert 1 <= int(retry.split(":")[1]) <= 60
    assert len(engine.prepared) == prepared
    assert "idefics_rejected_total" in server.ask("/metrics")[2]
    for handle in list(engine.open):
        handle.finish()
    assert [read(each.getresponse())[0] for each in waiting] == [200] * 4
    for each in waiting:
        each.close()
    server.wait_until_idle()


def test_twenty_clients_end_well_with_the_retries_of_openai(
    server: HttpServer, engine: ManualEngine
) -> None:
    is_over = threading.Event()

    def work() -> None:
        while not is_over.wait(0.005):
            for handle in list(engine.open[:2]):
                handle.say("ok")
                handle.finish()

    worker = threading.Thread(target=work)
    worker.start()
    client = server.client(max_retries=12)
    messages: Any = chat("x")["messages"]

    def ask(_: int) -> str | None:
        answer = client.chat.completions.create(
            model="fake", messages=messages, extra_headers={"Connection": "close"}
        )
        return answer.choices[0].message.content

    try:
        with ThreadPoolExecutor(20) as pool:
            assert list(pool.map(ask, range(20))) == ["ok"] * 20
    finally:
        is_over.set()
        worker.join()
    server.wait_until_idle()


def test_the_bytes_of_all_bodies_together_are_limited(server: HttpServer) -> None:
    held = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    held.sendall(HEAD + b"Content-Length: 80000\r\n\r\n" + b" " * 100)
    wait_for(lambda: server.service.admission.open_bytes == 80_000)

    status, headers, body = server.ask(body=b" " * 30_000)

    assert (status, body["error"]["code"]) == (503, "server_is_overloaded")
    assert headers["retry-after"]
    held.close()
    server.wait_until_idle()


@pytest.mark.parametrize("streams", [False, True])
@pytest.mark.parametrize("moment", ["waiting", "running", "speaking"])
def test_a_client_that_leaves_frees_its_place(
    server: HttpServer, engine: ManualEngine, *, streams: bool, moment: str
) -> None:
    others = [server.begin(chat("x")) for _ in range(2 if moment == "waiting" else 0)]
    wait_for(lambda: len(engine.open) == len(others))
    connection = server.begin(chat("x", stream=streams))
    wait_for(lambda: len(engine.open) == len(others) + 1)
    if moment == "speaking":
        engine.open[-1].say("Hello")
    connection.close()

    wait_for(lambda: engine.cancelled == 1, 1)
    wait_for(lambda: len(server.service.calls) == len(others), 1)
    wait_for(lambda: any("client gone" in line for line in server.lines))
    for handle in list(engine.open):
        handle.finish()
    for other in others:
        assert read(other.getresponse())[0] == 200
        other.close()
    server.wait_until_idle()
    assert "idefics_cancelled_total 1.0" in server.ask("/metrics")[2]


def test_a_client_that_leaves_in_the_middle_of_its_body_is_forgotten(server: HttpServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(HEAD + b"Content-Length: 500\r\n\r\n" + b" " * 100)
        wait_for(lambda: server.service.admission.open_bytes == 500)

    server.wait_until_idle()


@pytest.mark.parametrize("body", [b"", b'{"messages": [{"role": "user", "content": "x"}]}'])
def test_a_client_that_ends_its_sending_side_counts_as_gone(
    server: HttpServer, engine: ManualEngine, body: bytes
) -> None:
    # Nobody can tell such a client from one that has left, before something is sent to it.
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % (len(body) or 500) + body)
        if body:
            wait_for(lambda: len(engine.open) == 1)
        else:
            wait_for(lambda: server.service.admission.open_bytes == 500)
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(100) == b""

    wait_for(lambda: any("client gone" in line for line in server.lines))
    assert engine.cancelled == (1 if body else 0)
    server.wait_until_idle()


def test_two_hundred_abandoned_requests_leave_nothing(
    demo: HttpServer, demo_engine: LocalEngine, scenes: list[str]
) -> None:
    generator = random.Random(5)
    with ThreadPoolExecutor(12) as pool:  # starts all threads of the server
        list(pool.map(lambda scene: demo.ask(body=chat("Describe it.", scene)), scenes))
    demo.wait_until_idle()
    threads = threading.active_count()

    def abandon(number: int) -> None:
        scene = scenes[number % len(scenes)]
        body = chat("Describe this image.", scene, stream=number % 2 == 0, n=1 + number % 3)
        connection = demo.begin(body)
        time.sleep(generator.random() * 0.05)
        connection.close()

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(abandon, range(200)))

    demo.wait_until_idle()
    wait_for(lambda: threading.active_count() <= threads)
    answers = [demo.ask(body=chat("Describe this image.", scenes[1])) for _ in range(2)]
    assert [status for status, *_ in answers] == [200, 200]
    assert not [line for line in demo.lines if " 500 " in line]
    kept = demo_engine.held_kv_bytes
    demo.ask(body=chat("Describe this image.", scenes[1]))
    wait_for(lambda: demo_engine.held_kv_bytes <= kept)


def test_silence_is_filled_with_events_that_every_client_reads(
    server: HttpServer, engine: ManualEngine
) -> None:
    connection = server.begin(chat("x", stream=True))
    wait_for(lambda: len(engine.open) == 1)
    response = connection.getresponse()  # the role comes before the first text
    lines = [response.readline() for _ in range(4)]
    engine.open[0].say("Hello")
    engine.open[0].finish()
    found = events((b"".join(lines) + response.read()).decode())
    connection.close()

    deltas = [one["choices"][0]["delta"] for one in found]
    assert deltas[0] == {"role": "assistant", "content": ""}
    assert deltas[1] == {}
    assert [delta for delta in deltas[1:] if delta] == [{"content": "Hello"}]


def test_texts_that_came_together_are_one_event(server: HttpServer, engine: ManualEngine) -> None:
    connection = server.begin(chat("x", stream=True))
    wait_for(lambda: len(engine.open) == 1)

    async def say() -> None:
        for word in ("a", "b", "c"):
            engine.open[0].say(word)
        engine.open[0].finish()

    assert server.running.loop is not None
    asyncio.run_coroutine_threadsafe(say(), server.running.loop).result(10)
    found = events(read(connection.getresponse())[2])
    connection.close()

    contents = [one["choices"][0]["delta"].get("content") for one in found]
    assert contents == ["", "abc", None]


def test_a_client_that_never_reads_is_given_up(server: HttpServer, engine: ManualEngine) -> None:
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    body = json.dumps(chat("x", stream=True)).encode()
    connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
    wait_for(lambda: len(engine.open) == 1)
    handle = engine.open[0]
    for _ in range(8):  # more than the buffers of the system hold
        handle.say("x" * 1_000_000)
        time.sleep(0.02)
    for _ in range(1100):
        handle.say("x")

    wait_for(lambda: handle.is_ended)
    assert engine.cancelled == 1
    connection.close()
    server.wait_until_idle()


def bytes_until_reset(connection: socket.socket) -> int:
    """Return how many bytes come before the connection is reset; fail if it only ends."""
    received = 0
    try:
        while data := connection.recv(1 << 16):
            received += len(data)
    except ConnectionResetError:
        return received
    pytest.fail("the connection ended without a reset")


def test_a_client_that_stops_reading_is_given_up_after_a_while(engine: ManualEngine) -> None:
    options = ServerOptions(FAKE_SPEC, names=("fake",), silence_seconds=0.1)
    lifetime = Lifetime(drain_seconds=1, connections=ConnectionLimits(write_seconds=0.2))
    body = json.dumps(chat("x", stream=True)).encode()
    with (
        serving(EngineOf(engine), options, lifetime) as server,
        socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection,
    ):
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.sendall(HEAD + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        wait_for(lambda: len(engine.open) == 1)
        handle = engine.open[0]
        handle.say("x" * 8_000_000)  # more than the buffers of the system hold

        wait_for(lambda: handle.is_ended)
        assert engine.cancelled == 1
        server.wait_until_idle()
        # Neither the server nor the system keeps the rest for a reader who begins again.
        assert bytes_until_reset(connection) < 100_000


# Slow heads and bodies


def test_a_slow_head_is_cut_at_its_deadline(server: HttpServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        started, answer = time.monotonic(), b""
        connection.settimeout(0.1)
        connection.sendall(b"GET /health HTTP/1.1\r\n")
        while time.monotonic() - started < 8:
            try:
                piece = connection.recv(65536)
                if not piece:
                    break
                answer += piece
            except TimeoutError:
                connection.sendall(b"X: y\r\n")
            except ConnectionError:
                break

    assert 0.3 < time.monotonic() - started < 5
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in answer


def test_a_silent_connection_is_closed(server: HttpServer) -> None:
    started = time.monotonic()

    assert server.raw(b"", timeout=8) == b""

    assert time.monotonic() - started < 5


def test_the_next_head_of_a_connection_has_a_deadline_too(server: HttpServer) -> None:
    whole = b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n"

    answer = server.raw(whole + b"GET /hea", timeout=8)

    assert answer.startswith(b"HTTP/1.1 200 ")


def test_a_slow_body_is_cut_and_told(server: HttpServer) -> None:
    started = time.monotonic()

    answer = server.raw(HEAD + b"Content-Length: 5000\r\n\r\n" + b" " * 10, timeout=8)

    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"code":"request_timeout"' in answer
    assert time.monotonic() - started < 5
    server.wait_until_idle()


def test_a_slow_answer_is_not_cut(server: HttpServer, engine: ManualEngine) -> None:
    connection = server.begin(chat("x"))
    wait_for(lambda: len(engine.open) == 1)
    time.sleep(1.0)  # longer than the deadlines of heads and bodies
    engine.open[0].say("late")
    engine.open[0].finish()

    assert read(connection.getresponse())[2]["choices"][0]["message"]["content"] == "late"
    connection.close()


def test_one_connection_too_many_is_refused(server: HttpServer) -> None:
    held = [socket.create_connection(("127.0.0.1", server.port), timeout=10) for _ in range(40)]
    answer = b""
    with socket.create_connection(("127.0.0.1", server.port), timeout=10) as connection:
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    for one in held:
        one.close()

    assert answer.startswith(b"HTTP/1.1 503 ")
    assert b'"code":"server_is_overloaded"' in answer
    wait_for(lambda: server.raw(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")[9:12] == b"200")


def test_too_long_heads_are_refused(server: HttpServer) -> None:
    answer = server.raw(b"GET /health HTTP/1.1\r\nX: " + b"x" * 100_000)

    assert answer.startswith(b"HTTP/1.1 400 ")


@pytest.mark.parametrize(
    "data",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        b"GET /health HTTP/1.1\r\n\r\n",
        b"GET /\xff HTTP/1.1\r\nHost: localhost\r\n\r\n",
        HEAD + b"Content-Length: -1\r\n\r\n",
        HEAD + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n",
    ],
)
def test_bytes_that_are_no_http_get_an_error_in_json(server: HttpServer, data: bytes) -> None:
    answer = server.raw(data, timeout=8)

    assert answer.startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 408 ")) or not answer
    if answer:
        assert b'{"error":{"message":' in answer
    assert server.ask("/health")[0] == 200


@pytest.mark.parametrize("pieces", [b"zz\r\n", b"2\r\n{}\r\n" + b"2\r\n{}zz"])
def test_a_bad_chunk_gets_an_answer(server: HttpServer, pieces: bytes) -> None:
    answer = server.raw(HEAD + b"Transfer-Encoding: chunked\r\n\r\n" + pieces, timeout=8)

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert answer.count(b"HTTP/1.1") == 1
    assert b"this is not a valid HTTP request" in answer
    server.wait_until_idle()


def test_who_waits_to_send_a_body_that_is_too_large_is_refused_at_once(server: HttpServer) -> None:
    length = server.service.options.body.most_bytes + 1
    head = HEAD + b"Content-Length: %d\r\nExpect: 100-continue\r\n\r\n" % length
    started = time.perf_counter()
    answer = server.raw(head, timeout=8)

    assert answer.startswith(b"HTTP/1.1 413 ")  # and no "100 Continue" before it
    assert time.perf_counter() - started < 1.5
    server.wait_until_idle()


def test_no_failed_request_waits_for_the_garbage_collector(
    server: HttpServer, engine: ManualEngine
) -> None:
    # Its body would stay in memory until then, and many of them would fill it.
    gc.collect()
    gc.disable()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        for body in (b"{", chat("x", "/etc/passwd"), chat("x", n=99), chat("x", model="other")):
            assert server.ask(body=body)[0] in (400, 404)
        for streams in (False, True):
            connection = server.begin(chat("x", PICTURE, stream=streams))
            wait_for(lambda: len(engine.open) == 1)
            connection.close()
            wait_for(lambda: not engine.open)
        with socket.create_connection(("127.0.0.1", server.port), timeout=10) as gone:
            gone.sendall(HEAD + b"Content-Length: 500\r\n\r\n" + b" " * 100)
            wait_for(lambda: server.service.admission.open_bytes == 500)
        server.wait_until_idle()
        gc.collect()
        kept = {type(one).__name__ for one in gc.garbage}
    finally:
        gc.set_debug(0)
        gc.garbage.clear()
        gc.enable()

    assert not kept & {"Call", "Generation", "ApiRequest", "ApiError", "bytearray", "Attachment"}
