"""What is measured with both models loaded: vision, prefill, decode and a chat's second turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from idefics_cli.bench.measure import Measurement
from idefics_cli.bench.pictures import MIXED
from idefics_cli.bench.report import ReportRow, Skipped
from idefics_cli.bench.stage import QUESTION, Figure, Stage
from idefics_cli.core.types import GenerationRequest

Result = ReportRow | Skipped
_WARM_UP_TOKENS = 100
_NEXT_QUESTION = "What are the colors in the second picture?"


def vision(stage: Stage) -> Iterator[Result]:
    """Time from one picture to the first token, by its shape and with or without tiles."""
    given = stage.spec
    yield from _vision(stage, tail=_tiles(given.splitting))
    # None: the family has no choice. With `--splitting` or without, the user has made it.
    if stage.choices.both_splittings and given.splitting is not None:
        stage.use(replace(given, splitting=not given.splitting))
        yield from _vision(stage, tail=_tiles(stage.spec.splitting), only_one=True)
        stage.use(given)


def prefill(stage: Stage) -> Iterator[Result]:
    """Time from a text to the first token, by the length of the prompt."""
    for context in stage.choices.contexts:
        name = f"context {context}"
        if skipped := _too_long(stage, "prefill", name, context + 1):
            yield skipped
            continue
        stage.world.say(f"prefill: {name}")
        prompts = stage.prompts()
        compares = "text of one request to its first token"
        figure = Figure(
            name, compares, "tokens/s", lambda o: o.prompt_tokens / o.seconds, more_is_better=True
        )
        fought = stage.duel(lambda _, c=context, p=prompts: [p.text(c, new_tokens=1)])  # type: ignore[misc]
        yield from stage.rows("prefill", fought, [figure])


def decode(stage: Stage) -> Iterator[Result]:
    """Tokens per second after the first, by batch size and length of the prompt."""
    for context in stage.choices.contexts:
        for batch in stage.choices.batch_sizes:
            yield from _decode(stage, context, batch)


def chat(stage: Stage) -> Iterator[Result]:
    """The second turn of a chat with two pictures: first token, and whole answer."""
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

    fought = stage.duel(second_turn)
    compares = "second turn about two 640x480 pictures, the first turn done and not timed"
    yield from stage.rows(
        "chat",
        fought,
        [
            Figure("second turn, first token", compares, "s", _first_seconds),
            Figure("second turn, whole answer", compares, "s", _seconds),
        ],
    )


def _vision(stage: Stage, *, tail: str, only_one: bool = False) -> Iterator[Result]:
    choices, prompts = stage.choices, stage.prompts()
    sizes = choices.sizes[1:2] or choices.sizes if choices.quick or only_one else choices.sizes
    compares = "picture file to first token: open, preprocess, encode, prefill"
    for size in sizes:
        name = f"{size[0]}x{size[1]}{tail}"
        stage.world.say(f"vision: {name}")
        fought = stage.duel(
            lambda _, size=size: [  # type: ignore[misc]
                prompts.about([stage.studio.draw(size)], QUESTION, new_tokens=1)
            ]
        )
        yield from stage.rows("vision", fought, [Figure(name, compares, "s", _seconds)])
    if only_one:
        return
    shapes = MIXED[:4] if choices.quick else MIXED
    name = f"{len(shapes)} of mixed shapes{tail}"
    stage.world.say(f"vision: {name}")
    fought = stage.duel(
        lambda _: [
            prompts.about([stage.studio.draw(size)], QUESTION, new_tokens=1) for size in shapes
        ]
    )
    each = Figure(name, f"{compares}; per picture", "s", lambda o: o.seconds / len(shapes))
    yield from stage.rows("vision", fought, [each])


def _decode(stage: Stage, context: int, batch: int) -> Iterator[Result]:
    name = f"batch {batch}, context {context}"
    new_tokens = stage.choices.new_tokens
    if skipped := _too_long(stage, "decode", name, context + new_tokens):
        yield skipped
        return
    stage.world.say(f"decode: {name}")
    prompts = stage.prompts()
    # Steps after the first are measured. On a CPU these are as warm after a short prompt; a GPU
    # gets its memory, and makes its graphs, by length.
    warm_up = min(context, _WARM_UP_TOKENS) if stage.spec.device == "cpu" else context
    fought = stage.duel(
        lambda number: [
            prompts.text(context if number else warm_up, new_tokens=new_tokens)
            for _ in range(batch)
        ]
    )
    if any(not outcome.steps for r in fought.rounds for outcome in (r.ours, r.plain)):
        yield Skipped("decode", name, "the model ended its answer at once")
        return
    compares = f"tokens after the first of {new_tokens}, all rows of the batch together"
    figure = Figure(name, compares, "tokens/s", _decode_rate, more_is_better=True)
    yield from stage.rows("decode", fought, [figure])


def _too_long(stage: Stage, scenario: str, name: str, tokens: int) -> Skipped | None:
    limit = stage.context_tokens
    if tokens <= limit:
        return None
    return Skipped(scenario, name, f"the model takes {limit:,} tokens")


def _tiles(splitting: bool | None) -> str:
    return {None: "", True: ", split", False: ", whole"}[splitting]


def _decode_rate(outcome: Measurement) -> float:
    return outcome.steps / outcome.decode_seconds


def _seconds(outcome: Measurement) -> float:
    return outcome.seconds


def _first_seconds(outcome: Measurement) -> float:
    return outcome.first_seconds
