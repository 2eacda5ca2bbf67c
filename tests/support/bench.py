"""Fakes for both sides of a benchmark, and for the machine."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from idefics_cli.bench.agreement import Agreement
from idefics_cli.bench.cold_start.processes import LoadOrder, LoadReport, Processes, Side
from idefics_cli.bench.measure import Instruments, Measurement, Pace, Series
from idefics_cli.bench.report import ReportRow
from idefics_cli.bench.serving.processes import OpenServer, ServerCommand
from idefics_cli.bench.stage import CaptionTask, Choices, Prompts, World
from idefics_cli.bench.stand_ins import WorkerFigures
from idefics_cli.bench.tuning.order import StepReport, TuneOrder
from idefics_cli.bench.tuning.process import Trainer
from idefics_cli.core.errors import IdeficsError
from idefics_cli.core.types import Completion, GenerationRequest, LoadSpec, Message
from idefics_cli.engine.protocol import Engine, Prepared
from tests.support.fakes import FakeClock, FakeEngine

SPEC = LoadSpec(repo="fake/model", family="idefics2", name="fake", splitting=False)
SAME = Agreement(True, 1.0, 2, None, None, "all tokens equal in 2 answers")
QUICK = Choices(batch_sizes=(1, 4), contexts=(100, 2000), pace=Pace(2, 1e9), count=5, new_tokens=4)


def ask(text: str) -> GenerationRequest:
    return GenerationRequest((Message("user", (text,)),))


def a_row(
    *,
    ours: Sequence[float] = (1.0, 2.0, 3.0),
    plain: Sequence[float] = (4.0, 4.0, 6.0),
    unit: str = "s",
    more_is_better: bool = False,
    agreement: Agreement = SAME,
    foreign: float | None = 0.0,
    reference: Sequence[float] = (10.0, 11.0),
) -> ReportRow:
    return ReportRow(
        "chat",
        "second turn",
        "a turn",
        unit,
        more_is_better,
        Series(tuple(ours)),
        Series(tuple(plain)),
        agreement,
        foreign,
        Series(tuple(reference)),
        ("12 prompt tokens", "something to know"),
    )


def words(request: GenerationRequest) -> int:
    """Count the words of a request."""
    return sum(len(message.text.split()) for message in request.messages)


class FakeLoad:
    """A machine whose other programs use *foreign* CPU seconds between two measurements.

    Args:
        foreign: CPU seconds of other programs; this program uses 1 second.
    """

    def __init__(self, foreign: float = 0.0) -> None:
        self.foreign = foreign
        self.measurements = 0

    def busy_seconds(self) -> float | None:
        self.measurements += 1
        return (1.0 + self.foreign) * self.measurements

    def own_seconds(self) -> float:
        return 1.0 * self.measurements


class FakeContender:
    """Answers every request with the same tokens, and takes its seconds from a list.

    Args:
        name: Its name in *log*.
        log: Names and texts of all answered requests, in order; shared by the contenders.
        seconds: Seconds of the answers in order; the last value repeats.
        tokens: Tokens of each answer.
        gap: Gap of every answer of the other side.
        clock: Clock that advances by the seconds of each answer.

    Attributes:
        collected_garbage: For each answer, whether Python's garbage collector was on.
    """

    def __init__(
        self,
        name: str,
        log: list[tuple[str, str]],
        *,
        seconds: Sequence[float] = (1.0,),
        tokens: tuple[int, ...] = (1, 2, 3),
        gap: float = 9.0,
        clock: FakeClock | None = None,
    ) -> None:
        self.clock = clock or FakeClock()
        self.name, self.log, self.tokens = name, log, tokens
        self.seconds = list(seconds)
        self.distance = gap
        self.collected_garbage: list[bool] = []

    def answer(self, requests: Sequence[GenerationRequest]) -> Measurement:
        self.log.append((self.name, requests[0].messages[0].text))
        self.collected_garbage.append(gc.isenabled())
        taken = self.seconds.pop(0) if len(self.seconds) > 1 else self.seconds[0]
        self.clock.now += taken
        texts = tuple("x" for _ in requests)
        return Measurement(tuple(self.tokens for _ in requests), texts, taken, taken / 2, 7)

    def gap(self, request: GenerationRequest, tokens: tuple[int, ...]) -> float:
        return self.distance


class TimedEngine(FakeEngine):
    """An engine that reports fixed seconds."""

    def complete(self, batch: Sequence[Prepared], *, cancel: object = None) -> list[Completion]:
        return [
            Completion("a b", 5, 0, 2, "stop", prefill_seconds=0.2, decode_seconds=0.3 + index / 10,
                       token_ids=(1, 2))
            for index, _ in enumerate(batch)
        ]  # fmt: skip


class FakeProcesses:
    """Starts no process.

    Args:
        plain_text: First output of plain transformers; ours is "A".
        start_error: Message of every process that is timed, which then fails.

    Attributes:
        started: Which commands were timed, in order.
        commands: The last command of each name.
        orders: Every order to load.
    """

    def __init__(self, *, plain_text: str = "A", start_error: str | None = None) -> None:
        self._outputs = {"ours": (4.0, "A"), "plain": (8.0, plain_text), "imports": (2.0, "0")}
        self._start_error = start_error
        self.started: list[str] = []
        self.commands: dict[str, list[str]] = {}
        self.orders: list[LoadOrder] = []

    def time_first_output(self, name: str, command: Sequence[str]) -> tuple[float, str]:
        if self._start_error is not None:
            raise IdeficsError(self._start_error)
        self.started.append(name)
        self.commands[name] = list(command)
        return self._outputs[name]

    def load(self, order: LoadOrder) -> LoadReport:
        self.orders.append(order)
        return LoadReport(0.5, 10**9, (1, 2))


class FakeTrainer:
    """Reports its steps from a list; the last one repeats."""

    def __init__(
        self, name: str, log: list[tuple[str, int]], reports: Sequence[StepReport]
    ) -> None:
        self._name, self._log, self._reports = name, log, list(reports)

    def step(self, number: int) -> StepReport:
        self._log.append((self._name, number))
        return self._reports.pop(0) if len(self._reports) > 1 else self._reports[0]


def open_nothing(order: ServerCommand) -> AbstractContextManager[int]:
    """Start no server."""
    raise IdeficsError(f"no server of {order.name}")


class Stand:
    """A world with fakes on both sides.

    Attributes:
        log: Names and texts of all answered requests.
        trained: Names of the sides that trained, and the numbers of their steps.
        tune_orders: What the sides were told to train.
        said: Messages about the measurements.
        engines: Every engine of our side.
        specs: Choices of these engines.
        plain_specs: Choices of the side of plain transformers.
        plain_sides: Every contender of that side.
    """

    def __init__(
        self,
        *,
        spec: LoadSpec = SPEC,
        tokens: tuple[int, ...] = (1, 2),
        make_engine: Callable[[LoadSpec], Engine] | None = None,
        texts: str = "x",
        processes: Processes | None = None,
        trainers: Mapping[Side, Sequence[StepReport]] | None = None,
        open_server: OpenServer | None = None,
    ) -> None:
        self.log: list[tuple[str, str]] = []
        self.trained: list[tuple[str, int]] = []
        self.tune_orders: list[TuneOrder] = []
        self._trainers = trainers or {}
        self.said: list[str] = []
        self.engines: list[FakeEngine] = []
        self.specs: list[LoadSpec] = []
        self.plain_specs: list[LoadSpec] = []
        self.plain_sides: list[FakeContender] = []
        clock = FakeClock(2.0)
        self.world = World(
            spec=spec,
            folder=Path("model"),
            name="fake",
            make_engine=make_engine or self._engine,
            make_plain=lambda wanted: self._plain(wanted, tokens, clock),
            caption=lambda engine, task: self._caption(engine, task, texts),
            draw_scenes=self._draw,
            processes=processes or FakeProcesses(),
            open_trainer=self._open_trainer,
            open_server=open_server or open_nothing,
            run_workers=lambda count, pictures, seconds, folder: WorkerFigures(49.0 * count, 8e-5),
            measure_bytes=lambda count, folder: 590.0,
            instruments=Instruments(clock, FakeLoad()),
            say=self.said.append,
        )

    def _plain(self, spec: LoadSpec, tokens: tuple[int, ...], clock: FakeClock) -> FakeContender:
        self.plain_specs.append(spec)
        side = FakeContender("plain", self.log, seconds=(8.0,), tokens=tokens, clock=clock)
        self.plain_sides.append(side)
        return side

    @contextmanager
    def _open_trainer(self, order: TuneOrder) -> Iterator[Trainer]:
        self.tune_orders.append(order)
        yield FakeTrainer(order.side, self.trained, self._trainers[order.side])

    def _engine(self, spec: LoadSpec) -> Engine:
        self.engines.append(TimedEngine(context_tokens=1000))
        self.specs.append(spec)
        return self.engines[-1]

    def _caption(self, engine: Engine, task: CaptionTask, text: str) -> dict[Path, str]:
        with engine.serve(slots=2) as session:
            for path in task.pictures:
                request = Prompts(SPEC, words).about([path], task.prompt, new_tokens=4)
                session.put_requests([engine.prepare(request)])
                session.get_outcome()
        engine.close()
        return dict.fromkeys(task.pictures, text)

    def _draw(self, folder: Path, count: int) -> list[Path]:
        return [folder / f"{number}.png" for number in range(count)]
