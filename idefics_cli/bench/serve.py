"""The scenario `serve`: our server against `transformers serve`, asked by the same clients."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field

from idefics_cli.bench.agreement import Agreement
from idefics_cli.bench.cold_start.processes import python_command
from idefics_cli.bench.measure import Series, Watch, without_collection
from idefics_cli.bench.pictures import MIXED
from idefics_cli.bench.report import ReportRow, Skipped
from idefics_cli.bench.serving.clients import (
    AskMaker,
    ClientLoad,
    TimedReply,
    ask_all,
    in_process,
    over_http,
)
from idefics_cli.bench.serving.packages import check_packages
from idefics_cli.bench.serving.processes import ServerCommand
from idefics_cli.bench.stage import QUESTION, Prompts, Stage
from idefics_cli.bench.startup import model_flags
from idefics_cli.core.types import GenerationRequest
from idefics_cli.core.units import counted
from idefics_cli.models.families.spec import find_family

_OURS, _PLAIN, _ENGINE = "ours", "plain", "engine"
_LEAST_REQUESTS, _MOST_REQUESTS = 4, 48
ROUND_SECONDS = 2.0
"""A round has as many requests as the slower server answers in this time. Four requests to the
built-in model would take 0.1 s, and their rate would be chance."""
_NEXT_QUESTION = "What else is in the images?"
_TRANSFORMERS = "from transformers.cli.transformers import main; main()"

_Asked = dict[str, AskMaker]
"""How to ask both servers, and the engine in this process, by their names above."""


@dataclass(slots=True)
class _Rounds:
    """What was measured: the warm-up first, and one entry for each round, by the name of a side."""

    watch: Watch
    loads: dict[str, list[ClientLoad]] = field(default_factory=dict)

    def series(self, side: str, value: Callable[[ClientLoad], float]) -> Series:
        """Return a value of each round without the warm-up."""
        return Series(tuple(value(load) for load in self.loads[side][1:]))


@dataclass(frozen=True, slots=True)
class LoadFigure:
    """A figure to compute from the answers of a round; see `stage.Figure`."""

    name: str
    compares: str
    unit: str
    value: Callable[[ClientLoad], float]
    more_is_better: bool = False


def serve(stage: Stage) -> Iterator[ReportRow | Skipped]:
    """Measure answers per second and the time to the first text, by the number of clients."""
    problem = _problem(stage)
    if problem is not None:
        yield Skipped("serve", "", problem)
        return
    check_packages()
    with ExitStack() as stack:
        asked: _Asked = {}
        for order in (_our_server(stage), _plain_server(stage)):
            stage.world.say(f"serve: starting the server of {order.name}")
            port = stack.enter_context(stage.world.open_server(order))
            asked[order.name] = over_http(port, order.model)
        asked[_ENGINE] = in_process(stage.engine)
        prompts = Prompts(stage.spec, lambda request: 0)
        for clients in stage.choices.batch_sizes:
            yield from _answers(stage, asked, prompts, clients)
        yield _second_turn(stage, asked, prompts)


def _problem(stage: Stage) -> str | None:
    """Return why the two servers cannot be compared with this model, or None."""
    spec = stage.spec
    if not spec.chats or find_family(spec.family).prompt != "template":
        return "`transformers serve` needs a model with a chat template"
    if spec.quantization != "none" or stage.choices.plain_quantization not in (None, "none"):
        return "the servers are compared with the same weights, without quantization"
    if spec.splitting is not None or spec.longest_edge is not None:
        return "`transformers serve` has no setting for splitting and the size of pictures"
    return None


def _our_server(stage: Stage) -> ServerCommand:
    flags = ["--port", "{port}", "--queue", str(max(64, *stage.choices.batch_sizes)), "--quiet"]
    name = "bench"
    flags += ["--served-name", name, *model_flags(stage)]
    return ServerCommand(_OURS, python_command("-m", "idefics_cli", "serve", *flags), name)


def _plain_server(stage: Stage) -> ServerCommand:
    spec, folder = stage.spec, str(stage.world.folder)
    flags = [folder, "--host", "127.0.0.1", "--port", "{port}", "--log-level", "error"]
    flags += ["--device", spec.device, "--dtype", spec.dtype]
    environ = {"HF_HUB_OFFLINE": "1"}
    if spec.threads is not None:
        environ["OMP_NUM_THREADS"] = str(spec.threads)
    command = python_command("-c", _TRANSFORMERS, "serve", *flags)
    return ServerCommand(_PLAIN, command, folder, environ)


def _answers(
    stage: Stage, asked: _Asked, prompts: Prompts, clients: int
) -> Iterator[ReportRow | Skipped]:
    def ask(number: int) -> dict[str, ClientLoad]:
        # The warm-up is one answer for each client.
        count = _count_requests(clients, warm_up) if number else clients
        requests = [
            prompts.about(
                [stage.studio.draw(MIXED[place % len(MIXED)])],
                QUESTION,
                new_tokens=stage.choices.new_tokens,
            )
            for place in range(count)
        ]
        loads = {side: _timed(asked[side], requests, clients) for side in _in_turns(asked, number)}
        warm_up.extend([] if number else loads.values())
        return loads

    warm_up: list[ClientLoad] = []
    name = counted(clients, "client")
    rounds = _measure(stage, name, ask)
    rates = LoadFigure(
        name,
        f"answers of at most {counted(stage.choices.new_tokens, 'token')} about new pictures",
        "answers/s",
        _rate,
        more_is_better=True,
    )
    yield _row(stage, rounds, rates, _overhead(rounds))
    compares = "request to first text that is not empty, median of the requests of a round"
    firsts = LoadFigure(f"{name}, first text", compares, "s", _median_first)
    yield _row(stage, rounds, firsts)


def _count_requests(clients: int, warm_up: Sequence[ClientLoad]) -> int:
    """Return the number of requests of a round; see `ROUND_SECONDS`."""
    fitting = int(ROUND_SECONDS * min(load.rate for load in warm_up))
    return max(_LEAST_REQUESTS, 2 * clients, min(fitting, _MOST_REQUESTS))


def _overhead(rounds: _Rounds) -> str:
    """Return in words what the server costs beside the engine alone."""
    server, engine = (rounds.series(side, _rate).median for side in (_OURS, _ENGINE))
    share = 1 - server / engine
    return (
        f"the engine in this process, without a server: {engine:.3g} answers/s; "
        f"the server has {abs(share):.0%} {'fewer' if share > 0 else 'more'}"
    )


def _second_turn(stage: Stage, asked: _Asked, prompts: Prompts) -> ReportRow:
    new_tokens = stage.choices.new_tokens

    def ask(number: int) -> dict[str, ClientLoad]:
        pictures = [stage.studio.draw(MIXED[place]) for place in (0, 1)]
        first = prompts.about(pictures, QUESTION, new_tokens=new_tokens)
        loads = {}
        for side in _in_turns(asked, number):
            if side != _ENGINE:
                answer = asked[side](first)().text
                second = prompts.reply(first, answer, _NEXT_QUESTION, new_tokens=new_tokens)
                loads[side] = _timed(asked[side], [second], 1)
        return loads

    rounds = _measure(stage, "second turn", ask)
    compares = "the whole conversation with two pictures is sent again, with a next question"
    return _row(stage, rounds, LoadFigure("second turn, first text", compares, "s", _median_first))


def _row(stage: Stage, rounds: _Rounds, figure: LoadFigure, *notes: str) -> ReportRow:
    return ReportRow(
        "serve",
        figure.name,
        figure.compares,
        figure.unit,
        figure.more_is_better,
        rounds.series(_OURS, figure.value),
        rounds.series(_PLAIN, figure.value),
        _compare(stage, rounds),
        rounds.watch.foreign_cores,
        rounds.watch.reference,
        notes,
    )


def _measure(stage: Stage, name: str, ask: Callable[[int], dict[str, ClientLoad]]) -> _Rounds:
    """Call *ask* with the number of each round, which is 0 for the warm-up, until time is up."""
    clock, pace = stage.world.instruments.clock, stage.choices.pace
    rounds = _Rounds(Watch(stage.world.instruments))
    with rounds.watch.watching():
        started = clock()
        for number in range(pace.rounds + 1):
            stage.world.say(f"serve: {name}, {f'round {number}' if number else 'warm-up'}")
            for side, load in ask(number).items():
                rounds.loads.setdefault(side, []).append(load)
            rounds.watch.measure_reference()
            if number and clock() - started >= pace.seconds:
                break
    return rounds


def _in_turns(asked: _Asked, number: int) -> list[str]:
    sides = list(asked)
    return sides if number % 2 == 0 else sides[::-1]


def _timed(make: AskMaker, requests: Sequence[GenerationRequest], clients: int) -> ClientLoad:
    asks = [make(request) for request in requests]
    with without_collection():
        return ask_all(asks, clients=clients)


def _rate(load: ClientLoad) -> float:
    return load.rate


def _median_first(load: ClientLoad) -> float:
    return statistics.median(reply.first_seconds for reply in load.replies)


def _compare(stage: Stage, rounds: _Rounds) -> Agreement:
    """Compare the texts of both servers; they must be equal if the dtype does not round."""
    ours, plain = (_replies(rounds.loads[side]) for side in (_OURS, _PLAIN))
    pairs = list(zip(ours, plain, strict=True))
    good = sum(one.text.strip() == other.text.strip() for one, other in pairs)
    text = f"{good} of {counted(len(pairs), 'answer')} equal"
    agrees = good == len(pairs) or stage.allowed is not None
    return Agreement(agrees, good / len(pairs), len(pairs), stage.allowed, None, text)


def _replies(loads: Sequence[ClientLoad]) -> list[TimedReply]:
    return [reply for load in loads for reply in load.replies]
