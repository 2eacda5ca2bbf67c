"""The scenario `serve`: both servers, asked by the same clients."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

import pytest

from idefics_cli.bench import serve
from idefics_cli.bench.cold_start.processes import python_command
from idefics_cli.bench.measure import Pace
from idefics_cli.bench.report import Report
from idefics_cli.bench.run import run
from idefics_cli.bench.serving import packages
from idefics_cli.bench.serving.clients import ask_all, over_http
from idefics_cli.bench.serving.processes import ServerCommand, open_server
from idefics_cli.cli.commands.bench import choices
from idefics_cli.core.errors import IdeficsError
from idefics_cli.core.types import LoadSpec
from idefics_cli.engine.protocol import Engine
from tests.support import commands
from tests.support.bench import QUICK, SPEC, Stand, ask
from tests.support.fakes import FakeEngine

CHATS = replace(SPEC, splitting=None)
WORDS = ("A red ", "circle.")


def chunks(*texts: str) -> bytes:
    """Return a stream like those of both servers: a role without text, and then *texts*."""
    deltas = [{"role": "assistant"}, *({"content": text} for text in texts), {}]
    events = [{"choices": [{"delta": delta, "index": 0}]} for delta in deltas]
    lines = [f"data: {json.dumps(event)}\n\n" for event in [*events, {"choices": []}]]
    return "".join([*lines, "data: [DONE]\n\n"]).encode()


class FakeServers:
    """Servers in this process that answer every request with the same bytes.

    Args:
        answers: The body of each answer, by the name of a side.
        status: The status of all answers.

    Attributes:
        asked: The name of the side and the body of every request.
        orders: What was started.
    """

    def __init__(self, answers: dict[str, bytes], status: int = 200) -> None:
        self._answers, self._status = answers, status
        self.asked: list[tuple[str, dict[str, object]]] = []
        self.orders: list[ServerCommand] = []

    @contextmanager
    def open(self, order: ServerCommand) -> Iterator[int]:
        self.orders.append(order)
        asked, name = self.asked, order.name
        body, status = self._answers[name], self._status

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                length = int(self.headers["Content-Length"])
                asked.append((name, json.loads(self.rfile.read(length))))
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: object) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
            thread = Thread(target=server.serve_forever, args=(0.02,), daemon=True)
            thread.start()
            try:
                yield server.server_address[1]
            finally:
                server.shutdown()
                thread.join()


def make_engine(spec: LoadSpec) -> Engine:
    return FakeEngine(lambda request: "".join(WORDS), spec=spec)


def measured(
    servers: FakeServers,
    spec: LoadSpec = CHATS,
    batch_sizes: tuple[int, ...] = (1,),
    rounds: int = 2,
) -> Report:
    stand, report = Stand(spec=spec, make_engine=make_engine, open_server=servers.open), Report()
    choice = replace(QUICK, pace=Pace(rounds, 1e9), batch_sizes=batch_sizes)
    run(["serve"], stand.world, choice, report)
    return report


@pytest.fixture(autouse=True)
def all_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    """FastAPI is not among the packages of the tests."""
    monkeypatch.setattr(serve, "check_packages", lambda: None)
    monkeypatch.setattr(serve, "ROUND_SECONDS", 0.0)


def test_both_servers_get_the_same_requests_in_turns_and_no_picture_twice() -> None:
    servers = FakeServers({"ours": chunks(*WORDS), "plain": chunks("".join(WORDS))})
    report = measured(servers, batch_sizes=(1, 4))
    assert not report.failures, report.failures
    assert [row.name for row in report.rows] == [
        "1 client", "1 client, first text", "4 clients", "4 clients, first text",
        "second turn, first text",
    ]  # fmt: skip
    rates, firsts = report.rows[2:4]
    assert (rates.unit, rates.more_is_better, firsts.unit) == ("answers/s", True, "s")
    assert all(len(row.ours.values) == len(row.plain.values) == 2 for row in report.rows)
    assert [row.agreement.text for row in report.rows[::2]] == [
        "9 of 9 answers equal", "20 of 20 answers equal", "3 of 3 answers equal",
    ]  # fmt: skip
    assert "the engine in this process, without a server: " in rates.notes[0]
    bodies: dict[str, list[dict[str, object]]] = {"ours": [], "plain": []}
    for name, body in servers.asked:
        bodies[name].append({**body, "model": ""})
    assert sorted(map(str, bodies["ours"])) == sorted(map(str, bodies["plain"]))
    # The warm-up with one client begins with our side, and the next round with the other one.
    assert [name for name, _ in servers.asked[:6]] == ["ours", *["plain"] * 5]
    urls = [str(body["messages"]) for body in bodies["ours"]]
    assert len(set(urls)) == len(urls) == 9 + 20 + 6
    *_, turn = (body for name, body in servers.asked if name == "ours")
    messages = turn["messages"]
    assert isinstance(messages, list)
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert [part["type"] for part in messages[0]["content"]] == ["image_url", "image_url", "text"]
    assert messages[1]["content"] == [{"type": "text", "text": "A red circle."}]
    assert (turn["stream"], turn["temperature"], turn["max_tokens"]) == (True, 0, 4)


def test_a_round_of_fast_answers_is_long_enough_to_be_timed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serve, "ROUND_SECONDS", 1e9)
    servers = FakeServers(dict.fromkeys(("ours", "plain"), chunks(*WORDS)))
    assert measured(servers, rounds=1).rows[0].agreement.text == "49 of 49 answers equal"


def test_both_servers_load_the_model_in_the_same_way() -> None:
    servers = FakeServers(dict.fromkeys(("ours", "plain"), chunks(*WORDS)))
    measured(servers, replace(CHATS, threads=3, dtype="bfloat16"))
    ours, plain = servers.orders
    assert {"serve", "--threads", "3", "bfloat16", "--offline"} <= set(ours.command)
    assert plain.command[-9:] == [
        "127.0.0.1", "--port", "{port}", "--log-level", "error", "--device", "cpu",
        "--dtype", "bfloat16",
    ]  # fmt: skip
    assert plain.environ == {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "3"}


@pytest.mark.parametrize(("dtype", "agrees"), [("float32", False), ("bfloat16", True)])
def test_other_texts_are_an_error_unless_the_dtype_rounds(dtype: str, agrees: bool) -> None:
    servers = FakeServers({"ours": chunks("A red circle."), "plain": chunks("A blue circle.")})
    report = measured(servers, replace(CHATS, dtype=dtype))  # type: ignore[arg-type]  # a dtype
    assert {row.agreement.agrees for row in report.rows} == {agrees}
    assert report.rows[0].agreement.equal == 0.0


@pytest.mark.parametrize(
    ("answer", "status", "why"),
    [
        (b'{"detail": "no"}', 422, 'a server of the benchmark answers 422: {"detail": "no"}'),
        (b'data: {"error": "broken"}\n\n', 200, "a server of the benchmark failed: broken"),
    ],
)
def test_an_error_of_a_server_is_told_and_not_measured(
    answer: bytes, status: int, why: str
) -> None:
    report = measured(FakeServers({"ours": answer, "plain": answer}, status))
    assert [(item.why, item.is_failure) for item in report.skipped] == [(why, True)]
    assert not report.rows


@pytest.mark.parametrize(
    ("spec", "why"),
    [
        (replace(CHATS, chats=False), "chat template"),
        (replace(CHATS, family="idefics"), "chat template"),
        (replace(CHATS, quantization="4bit"), "without quantization"),
        (SPEC, "no setting for splitting"),
    ],
)
def test_what_transformers_cannot_serve_is_left_out(spec: LoadSpec, why: str) -> None:
    servers = FakeServers({})
    (skipped,) = measured(servers, spec).skipped
    assert why in skipped.why
    assert not skipped.is_failure
    assert not servers.orders


# The processes

SERVER = """
import http.server, json, sys
class Handler(http.server.BaseHTTPRequestHandler):
    state = ["unloaded", "loading"]
    def do_GET(self):
        self.answer(json.dumps({"model": (self.state or ["loaded"]).pop(0)}).encode())
    def do_POST(self):
        assert not self.state, "asked before the model is loaded"
        self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(sys.argv[2].encode())
    def answer(self, body):
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def process(code: str, *arguments: str) -> ServerCommand:
    return ServerCommand("ours", python_command("-c", code, *arguments), "demo")


def test_a_server_is_asked_when_its_model_is_loaded() -> None:
    stream = chunks(*WORDS).decode()
    with open_server(process(SERVER, "{port}", stream)) as port:
        load = ask_all([over_http(port, "demo")(ask("Hi"))], clients=1)
    (reply,) = load.replies
    assert reply.text == "A red circle."
    assert 0 < reply.first_seconds <= reply.seconds <= load.seconds
    with pytest.raises(IdeficsError, match=r"^a server of the benchmark does not answer"):
        over_http(port, "demo")(ask("Hi"))()


def test_a_server_that_does_not_start_gives_its_last_line() -> None:
    message = r"^a process of the benchmark failed \(the server of ours\): ValueError: no model$"
    code = "raise ValueError('no model')"
    with pytest.raises(IdeficsError, match=message), open_server(process(code)):
        pass


def test_a_missing_package_is_named_and_a_run_without_names_leaves_serve_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def names(missing: Sequence[str]) -> tuple[str, ...]:
        for module in (choices, packages):
            monkeypatch.setattr(module, "find_spec", lambda name: name not in missing or None)
        return choices.parse(
            [], weights=None, batch_sizes=None, contexts=None, new_tokens=None, rounds=None,
            seconds=None, plain_quantization=None, quick=False,
        ).names  # fmt: skip

    assert "serve" in names([])
    packages.check_packages()
    assert "serve" not in names(["fastapi"])
    with pytest.raises(IdeficsError, match=r"`transformers serve`, .* needs fastapi$") as told:
        packages.check_packages()
    assert told.value.hint == "pip install 'transformers[serving]'"
    assert "serve" not in names(["starlette", "uvicorn"])
    with pytest.raises(IdeficsError, match=r"`idefics serve`, .* starlette, uvicorn$") as told:
        packages.check_packages()
    assert told.value.hint == "pip install 'idefics-cli[serve]'"


@pytest.mark.slow
def test_the_built_in_model_is_served_by_both_with_the_same_texts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    pytest.importorskip("fastapi")
    monkeypatch.undo()
    ran = commands.run(
        "bench", "serve", "-m", "demo", "--rounds", "1", "--batch-sizes", "1,4", "--threads", "1",
        "--json",
    )  # fmt: skip
    assert ran.code == 0, ran.err
    rows = json.loads(ran.out)["rows"]
    assert [row["agreement"]["equal"] for row in rows] == [1.0] * 5
