"""The scenarios with both models in this process: vision, prefill, decode and chat."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from idefics_cli.bench.measure import Measurement
from idefics_cli.bench.pictures import MIXED, Size
from idefics_cli.bench.report import ReportRow, Skipped
from idefics_cli.bench.stage import QUESTION, Figure, Prompts, Stage
from idefics_cli.core.types import GenerationRequest

Result = ReportRow | Skipped
_WARM_UP_TOKENS = 100
_NEXT_QUESTION = "What are the colors in the second picture?"


def vision(stage: Stage) -> Iterator[Result]:
    """Measure the time from a picture to the first token, by shape, with and without splitting."""
    given = stage.spec
    yield from _vision(stage, tail=_tiles(given.splitting))
    # If the user did not choose a splitting, the opposite one is measured too. `splitting` is None
    # if the family cannot split pictures.
    if stage.choices.both_splittings and given.splitting is not None:
        stage.use(replace(given, splitting=not given.splitting))
        yield from _vision(stage, tail=_tiles(stage.spec.splitting), only_one=True)
        stage.use(given)


def prefill(stage: Stage) -> Iterator[Result]:
    """Measure the time from a text to the first token, by the length of the prompt."""
    compares = "text of one request to its first token"
    for context in stage.choices.contexts:
        name = f"context {context}"
        if skipped := _too_long(stage, "prefill", name, context + 1):
            yield skipped
            continue
        stage.world.say(f"prefill: {name}")
        paired = stage.measure_in_turns(_Texts(stage.prompts(), context, new_tokens=1))
        figure = Figure(name, compares, "tokens/s", _prefill_rate, more_is_better=True)
        yield from stage.rows("prefill", paired, [figure])


def decode(stage: Stage) -> Iterator[Result]:
    """Measure the tokens per second after the first, by batch size and length of the prompt."""
    for context in stage.choices.contexts:
        for batch in stage.choices.batch_sizes:
            yield from _decode(stage, context, batch)


def chat(stage: Stage) -> Iterator[Result]:
    """Measure the time to the first token and to the whole answer, in a second turn of a chat."""
    if not stage.spec.chats:
        yield Skipped("chat", "", "a base model does not chat")
        return
    stage.world.say("chat: second turn with two pictures")
    prompts = stage.prompts()

    def second_turn(number: int) -> list[GenerationRequest]:
        pictures = [stage.studio.draw((640, 480)) for _ in range(2)]
        first = prompts.about(pictures, QUESTION, new_tokens=stage.choices.new_tokens)
        (done,) = stage.engine.complete([stage.engine.prepare(first)])
        answer = done.text or "."
        return [prompts.reply(first, answer, _NEXT_QUESTION, new_tokens=stage.choices.new_tokens)]

    paired = stage.measure_in_turns(second_turn)
    compares = "second turn about two 640x480 pictures, the first turn done and not timed"
    yield from stage.rows(
        "chat",
        paired,
        [
            Figure("second turn, first token", compares, "s", _first_seconds),
            Figure("second turn, whole answer", compares, "s", _seconds),
        ],
    )


class _Texts:
    """Makes the requests of a round, which are texts of the same length.

    Args:
        prompts: Makes one request.
        tokens: Number of prompt tokens of each request.
        new_tokens: Length of an answer.
        batch: Number of requests.
        warm_up_tokens: Number of prompt tokens in the warm-up round; None means *tokens*.
    """

    def __init__(
        self,
        prompts: Prompts,
        tokens: int,
        *,
        new_tokens: int,
        batch: int = 1,
        warm_up_tokens: int | None = None,
    ) -> None:
        self._prompts, self._tokens, self._new_tokens = prompts, tokens, new_tokens
        self._batch = batch
        self._warm_up_tokens = tokens if warm_up_tokens is None else warm_up_tokens

    def __call__(self, number: int) -> list[GenerationRequest]:
        tokens = self._tokens if number else self._warm_up_tokens
        return [self._prompts.text(tokens, new_tokens=self._new_tokens) for _ in range(self._batch)]


def _vision(stage: Stage, *, tail: str, only_one: bool = False) -> Iterator[Result]:
    choices = stage.choices
    sizes = choices.sizes[1:2] or choices.sizes if choices.quick or only_one else choices.sizes
    compares = "picture file to first token: open, preprocess, encode, prefill"
    for size in sizes:
        figure = Figure(f"{size[0]}x{size[1]}{tail}", compares, "s", _seconds)
        yield from _pictures(stage, [size], figure)
    if not only_one:
        shapes = MIXED[:4] if choices.quick else MIXED
        name = f"{len(shapes)} of mixed shapes{tail}"
        figure = Figure(name, f"{compares}; per picture", "s", _seconds_per_answer)
        yield from _pictures(stage, shapes, figure)


def _pictures(stage: Stage, sizes: Sequence[Size], figure: Figure) -> Iterator[Result]:
    """Measure one batch of requests. Each is about one picture, which has one of the *sizes*."""
    stage.world.say(f"vision: {figure.name}")
    prompts = stage.prompts()

    def make(number: int) -> list[GenerationRequest]:
        return [prompts.about([stage.studio.draw(s)], QUESTION, new_tokens=1) for s in sizes]

    yield from stage.rows("vision", stage.measure_in_turns(make), [figure])


def _decode(stage: Stage, context: int, batch: int) -> Iterator[Result]:
    name = f"batch {batch}, context {context}"
    new_tokens = stage.choices.new_tokens
    if skipped := _too_long(stage, "decode", name, context + new_tokens):
        yield skipped
        return
    stage.world.say(f"decode: {name}")
    # Only the decode steps are measured. On a CPU, a short prompt is enough to warm them up. On a
    # GPU the warm-up has the full length, because memory and CUDA graphs depend on it.
    warm_up = min(context, _WARM_UP_TOKENS) if stage.spec.device == "cpu" else context
    texts = _Texts(
        stage.prompts(), context, new_tokens=new_tokens, batch=batch, warm_up_tokens=warm_up
    )
    paired = stage.measure_in_turns(texts)
    if any(not answered.steps for r in paired.rounds for answered in (r.ours, r.plain)):
        yield Skipped("decode", name, "the model ended its answer at once")
        return
    compares = f"tokens after the first of {new_tokens}, all rows of the batch together"
    figure = Figure(name, compares, "tokens/s", _decode_rate, more_is_better=True)
    yield from stage.rows("decode", paired, [figure])


def _too_long(stage: Stage, scenario: str, name: str, tokens: int) -> Skipped | None:
    limit = stage.context_tokens
    if tokens <= limit:
        return None
    return Skipped(scenario, name, f"the model takes {limit:,} tokens")


def _tiles(splitting: bool | None) -> str:
    return {None: "", True: ", split", False: ", whole"}[splitting]


def _prefill_rate(answered: Measurement) -> float:
    return answered.prompt_tokens / answered.seconds


def _decode_rate(answered: Measurement) -> float:
    return answered.steps / answered.decode_seconds


def _seconds(answered: Measurement) -> float:
    return answered.seconds


def _seconds_per_answer(answered: Measurement) -> float:
    return answered.seconds / len(answered.tokens)


def _first_seconds(answered: Measurement) -> float:
    return answered.first_seconds
