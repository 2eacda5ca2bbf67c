"""The model is loaded when it is needed, unloaded when nobody needs it, and no request is lost."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from idefics_cli.core.errors import ModelError
from idefics_cli.core.types import Progress
from idefics_cli.engine.protocol import Engine
from idefics_cli.server.run import Lifetime, RunningServer, open_socket
from idefics_cli.server.service import ServerOptions
from tests.support.fakes import FakeEngine
from tests.support.http_servers import (
    FAKE_SPEC,
    HttpServer,
    ManualEngine,
    chat,
    read,
    serving,
    wait_for,
)


class Factory:
    """Makes a new engine at each call, and can fail."""

    def __init__(self) -> None:
        self.made: list[ManualEngine] = []
        self.fails = False
        self.may_load = threading.Event()
        self.may_load.set()

    def __call__(self, *, progress: Progress | None = None) -> Engine:
        self.may_load.wait(30)
        if self.fails:
            raise ModelError("/secret/folder is broken")
        self.made.append(ManualEngine())
        return self.made[-1]


@pytest.fixture
def factory() -> Factory:
    return Factory()


@pytest.fixture
def server(factory: Factory) -> Iterator[HttpServer]:
    options = ServerOptions(FAKE_SPEC, names=("fake",), keep_alive_seconds=0.15)
    with serving(factory, options) as server:
        yield server


def state(server: HttpServer) -> object:
    _, _, answer = server.ask("/health")
    return answer.get("model")


def answered(server: HttpServer, factory: Factory) -> int:
    connection = server.begin(chat("x"))
    wait_for(lambda: bool(factory.made and factory.made[-1].open))
    factory.made[-1].open[0].finish()
    status = read(connection.getresponse())[0]
    connection.close()
    return status


def test_an_idle_model_is_unloaded_and_loaded_again(server: HttpServer, factory: Factory) -> None:
    wait_for(lambda: state(server) == "unloaded")
    assert factory.made[0].is_closed
    assert any("unloaded" in line for line in server.lines)
    # What was known of the model stays known.
    assert server.ask("/v1/models")[2]["data"][0]["max_model_len"] == 1000

    assert answered(server, factory) == 200
    assert len(factory.made) == 2
    wait_for(lambda: state(server) == "unloaded")


def test_a_model_in_use_stays_loaded(server: HttpServer, factory: Factory) -> None:
    connection = server.begin(chat("x"))
    wait_for(lambda: bool(factory.made and factory.made[-1].open))
    time.sleep(0.4)

    assert state(server) == "loaded"

    factory.made[-1].open[0].finish()
    assert read(connection.getresponse())[0] == 200
    connection.close()


def test_requests_wait_for_the_model_and_none_is_lost(server: HttpServer, factory: Factory) -> None:
    wait_for(lambda: state(server) == "unloaded")
    factory.may_load.clear()
    connections = [server.begin(chat("x")) for _ in range(5)]
    wait_for(lambda: state(server) == "loading")
    connections.pop().close()  # one leaves while the model is loaded
    factory.may_load.set()
    wait_for(lambda: len(factory.made) == 2 and len(factory.made[-1].open) == 4)
    for handle in list(factory.made[-1].open):
        handle.finish()

    assert [read(each.getresponse())[0] for each in connections] == [200] * 4
    for each in connections:
        each.close()
    server.wait_until_idle()


def test_a_failed_load_is_told_without_its_reason(server: HttpServer, factory: Factory) -> None:
    wait_for(lambda: state(server) == "unloaded")
    factory.fails = True

    with ThreadPoolExecutor(3) as pool:
        replies = list(pool.map(lambda _: server.ask(body=chat("x")), range(3)))

    for status, headers, body in replies:
        assert status == 503
        assert body["error"]["code"] == "model_not_loaded"
        assert "secret" not in body["error"]["message"]
        assert headers["retry-after"] == "10"
    assert server.ask("/health")[:3:2] == (503, {"status": "failed"})


def test_the_end_of_the_server_closes_the_engine() -> None:
    engine = FakeEngine(spec=FAKE_SPEC)

    def factory(*, progress: Progress | None = None) -> Engine:
        return engine

    with serving(factory) as server:
        pass

    assert engine.is_closed
    assert server.codes == [0]


def test_a_server_that_ends_refuses_what_waits_and_finishes_what_runs() -> None:
    engine = ManualEngine(slots=1)

    def factory(*, progress: Progress | None = None) -> Engine:
        return engine

    with serving(factory) as server:
        running, waiting = server.begin(chat("x")), server.begin(chat("y"))
        wait_for(lambda: len(engine.open) == 2)
        server.running.stop()
        status, headers, body = read(waiting.getresponse())
        assert (status, body["error"]["code"]) == (503, "shutting_down")
        assert headers["retry-after"]
        engine.open[0].say("done")
        engine.open[0].finish()
        assert read(running.getresponse())[2]["choices"][0]["message"]["content"] == "done"
        running.close()
        waiting.close()


def test_a_server_that_ends_while_it_loads_stops_the_loading() -> None:
    phases: list[str] = []
    began, is_over = threading.Event(), threading.Event()

    def factory(*, progress: Progress | None = None) -> Engine:
        assert progress is not None
        began.set()
        try:
            for number in range(3000):
                progress("loading", number / 3000)
                time.sleep(0.01)
        finally:
            phases.append("stopped")
            is_over.set()
        raise AssertionError("nobody stopped it")

    listener = open_socket("127.0.0.1", 0)
    lifetime = Lifetime(signals=())
    running = RunningServer(
        ServerOptions(FAKE_SPEC), factory, listener, tell=phases.append, lifetime=lifetime
    )
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(running.run()))
    thread.start()
    assert began.wait(10)
    running.stop()
    thread.join(10)

    assert codes == [0]
    assert is_over.wait(10)
