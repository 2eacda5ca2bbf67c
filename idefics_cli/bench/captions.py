"""The scenario `caption`: our captioning run against a plain loop at its best batch size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from idefics_cli.bench.agreement import Agreement, compare_pairs
from idefics_cli.bench.measure import Measurement, Series, Tokens, Watch, without_collection
from idefics_cli.bench.report import ReportRow, Skipped
from idefics_cli.bench.stage import CaptionTask, PlainContender, Prompts, Stage
from idefics_cli.core.types import Completion, GenerationRequest
from idefics_cli.core.units import counted
from idefics_cli.engine.protocol import Engine, Prepared, Session
from idefics_cli.engine.protocol import Outcome as Answered

# Batch sizes are tried from the largest to the smallest. The search ends at a size that takes more
# than this many times as long as the best one.
_TOO_SLOW = 1.25


class Recorder:
    """An engine that records the tokens of every answer about a picture.

    Args:
        engine: The engine that answers.

    Attributes:
        tokens: The tokens of the last answer about each picture, by the file of the picture.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self.tokens: dict[Path, Tokens] = {}

    def serve(self, *, slots: int, **options: object) -> Session:
        """Open a session that records its answers; see `Engine.serve`."""
        session = self._engine.serve(slots=slots, **options)  # type: ignore[arg-type]  # passed on
        return cast("Session", _Recording(session, self.tokens))

    def __getattr__(self, name: str) -> object:
        return getattr(self._engine, name)

    def __enter__(self) -> Recorder:
        return self

    def __exit__(self, *details: Any) -> None:
        self._engine.__exit__(*details)


class _Recording:
    """A session that records the tokens of its answers."""

    def __init__(self, session: Session, tokens: dict[Path, Tokens]) -> None:
        self._session = session
        self._tokens = tokens
        self._requests: list[GenerationRequest] = []

    def put_requests(self, requests: Sequence[Prepared]) -> None:
        self._requests += (prepared.request for prepared in requests)
        self._session.put_requests(requests)

    def get_outcome(self, timeout_seconds: float | None = None) -> tuple[int, Answered] | None:
        found = self._session.get_outcome(timeout_seconds)
        if found is not None and isinstance(completion := found[1], Completion):
            for attachment in self._requests[found[0]].attachments:
                self._tokens[Path(attachment.source)] = completion.token_ids
        return found

    def __getattr__(self, name: str) -> object:
        return getattr(self._session, name)

    def __enter__(self) -> _Recording:
        return self

    def __exit__(self, *_: object) -> None:
        self._session.close()


class _Run:
    """The seconds of each round, and the last answers, of our engine or of one batch size."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.tokens: dict[Path, Tokens] = {}
        self.texts: dict[Path, str] = {}


def caption(stage: Stage) -> Iterator[ReportRow | Skipped]:
    """Measure captioning of a whole folder, from files to captions, in pictures per second."""
    choices, world = stage.choices, stage.world
    pictures = choices.pictures or tuple(
        world.draw_scenes(stage.studio.folder / "scenes", choices.count)
    )
    task = CaptionTask(pictures, choices.caption_prompt, choices.new_tokens, choices.caption_batch)
    requests = _requests(stage, task)
    # `_ours` makes a new engine for every round, because an engine caches image features. Plain
    # transformers caches no features, so all rounds use one model.
    plain = stage.plain
    ours, loops = _Run(), {size: _Run() for size in _sizes(stage, len(pictures))}
    watch = Watch(world.instruments)
    with watch.watching():
        began = world.instruments.clock()
        for number in range(choices.pace.rounds):
            world.say(f"caption: {counted(len(pictures), 'picture')}, round {number + 1}")
            _round(number, stage, task, ours, loops, plain, requests)
            watch.measure_reference()
            if world.instruments.clock() - began >= choices.pace.seconds:
                break
    best = min(
        (run for run in loops.values() if run.seconds),
        key=lambda run: Series(tuple(run.seconds)).median,
    )
    yield ReportRow(
        "caption",
        counted(len(pictures), "picture"),
        f"files to captions, models loaded; plain transformers in a loop {_chosen(loops)}",
        "pictures/s",
        True,
        _rates(ours, len(pictures)),
        _rates(best, len(pictures)),
        _agreement(stage, requests, ours, best),
        watch.foreign_cores,
        watch.reference,
        (_note(loops, len(pictures)),),
    )


def _sizes(stage: Stage, count: int) -> list[int]:
    """Return the batch sizes to try, the largest first."""
    return sorted({min(size, count) for size in stage.choices.batch_sizes}, reverse=True)


def _requests(stage: Stage, task: CaptionTask) -> dict[Path, GenerationRequest]:
    prompts = Prompts(stage.spec, lambda request: 0)
    return {
        path: prompts.about([path], task.prompt, new_tokens=task.max_new_tokens)
        for path in task.pictures
    }


def _round(
    number: int,
    stage: Stage,
    task: CaptionTask,
    ours: _Run,
    loops: Mapping[int, _Run],
    plain: PlainContender,
    requests: Mapping[Path, GenerationRequest],
) -> None:
    def run_ours() -> None:
        _ours(stage, task, ours)

    def run_plain() -> None:
        for size, run in loops.items():
            if number and not run.seconds:
                break
            _plain(plain, stage, requests, size, run)
            if number == 0 and _is_too_slow(run, loops.values()):
                break

    for run in (run_ours, run_plain) if number % 2 == 0 else (run_plain, run_ours):
        run()


def _is_too_slow(run: _Run, others: Iterable[_Run]) -> bool:
    """Return whether *run* is so slow that the smaller batches after it cannot be the best."""
    best = min(Series(tuple(other.seconds)).median for other in others if other.seconds)
    return Series(tuple(run.seconds)).median > _TOO_SLOW * best


def _ours(stage: Stage, task: CaptionTask, run: _Run) -> None:
    clock = stage.world.instruments.clock
    stage.release()
    recorder = Recorder(stage.world.make_engine(stage.spec))
    engine = cast("Engine", recorder)
    _warm_up(stage, engine)
    with without_collection():
        started = clock()
        texts = stage.world.caption(engine, task)
        run.seconds.append(clock() - started)
    run.tokens, run.texts = dict(recorder.tokens), dict(texts)


def _warm_up(stage: Stage, engine: Engine) -> None:
    prompts = Prompts(stage.spec, lambda request: 0)
    request = prompts.about([stage.studio.draw((320, 240))], "Warm up.", new_tokens=2)
    engine.complete([engine.prepare(request)])


def _plain(
    plain: PlainContender,
    stage: Stage,
    requests: Mapping[Path, GenerationRequest],
    size: int,
    run: _Run,
) -> None:
    paths = list(requests)
    clock = stage.world.instruments.clock
    outcomes: list[Measurement] = []
    with without_collection():
        if not run.seconds:
            plain.answer([requests[paths[0]]])
        started = clock()
        for begin in range(0, len(paths), size):
            outcomes.append(plain.answer([requests[p] for p in paths[begin : begin + size]]))
        run.seconds.append(clock() - started)
    run.tokens = dict(zip(paths, (t for o in outcomes for t in o.tokens), strict=True))
    run.texts = dict(zip(paths, (t for o in outcomes for t in o.texts), strict=True))


def _agreement(
    stage: Stage, requests: Mapping[Path, GenerationRequest], ours: _Run, plain: _Run
) -> Agreement:
    pairs = [
        (request, ours.tokens.get(path, ()), plain.tokens[path])
        for path, request in requests.items()
    ]
    found = compare_pairs(pairs, allowed=stage.allowed, gap=stage.plain.gap)
    # If both sides generated the same tokens, our run must have written the same text.
    wrong = [
        path
        for path in requests
        if path not in ours.texts
        or (ours.tokens.get(path) == plain.tokens[path] and ours.texts[path] != plain.texts[path])
    ]
    if not wrong:
        return found
    text = f"{len(wrong)} captions missing or not what was generated, as of {wrong[0].name}"
    return replace(found, agrees=False, text=text)


def _rates(run: _Run, count: int) -> Series:
    return Series(tuple(count / seconds for seconds in run.seconds))


def _chosen(loops: Mapping[int, _Run]) -> str:
    if len(loops) > 1:
        return "at its best batch size"
    return f"at batch size {next(iter(loops))}, the only one tried"


def _note(loops: Mapping[int, _Run], count: int) -> str:
    if len(loops) == 1:
        size = next(iter(loops))
        return f"plain transformers tried batch size {size} only, which may not be its best"
    parts = [
        f"{_rates(run, count).median:.3g} with {size}" if run.seconds else f"{size} not tried"
        for size, run in sorted(loops.items())
    ]
    return f"plain transformers, pictures/s by batch size: {', '.join(parts)}"
