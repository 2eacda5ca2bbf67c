"""The prefix cache changes how fast a reply comes, and never the reply."""

from __future__ import annotations

import gc
import json
import random
import shutil
import weakref
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import takewhile
from pathlib import Path
from typing import cast

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from idefics_cli.core.types import Completion, GenerationRequest, Message, Sampling
from idefics_cli.engine.local.decode.batch_row import BatchRow
from idefics_cli.engine.local.decode.sampling import Scores
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.local.inference import Inference
from idefics_cli.engine.local.tuning import Tuning
from idefics_cli.engine.protocol import Prepared
from idefics_cli.models.families.base import PrefixKey
from idefics_cli.models.families.protocols import Model
from idefics_cli.models.kernels.text_step.step import TextStep
from tests.support import tiny
from tests.support.prompts import (
    AfterForwards,
    as_attachment,
    open_engine,
    prepared_pictures,
    reopen,
    shown,
)

SLIDING = "idefics2 with a window of 24 tokens"
GREEDY = Sampling(max_new_tokens=6)
# A turn of the user: the numbers of its pictures, and its text.
Turn = tuple[tuple[int, ...], str]
EngineOf = Callable[[str], LocalEngine]


@pytest.fixture(scope="module")
def engine_of(
    checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[EngineOf]:
    made: dict[str, LocalEngine] = {}

    def get(kind: str) -> LocalEngine:
        if kind not in made:
            folder = checkpoint(kind.partition(" ")[0])
            if SLIDING in kind:
                folder = with_window(folder, tmp_path_factory.mktemp("sliding") / "it")
            made[kind] = open_engine(folder, kind.partition(" ")[0])
        return made[kind]

    yield get
    for engine in made.values():
        engine.close()


def with_window(folder: Path, copy: Path) -> Path:
    shutil.copytree(folder, copy)
    config = json.loads((copy / "config.json").read_text())
    config["text_config"]["sliding_window"] = 24
    config["text_config"].pop("layer_types", None)
    (copy / "config.json").write_text(json.dumps(config))
    return copy


def conversation(
    engine: LocalEngine, turns: Sequence[Turn], replies: Sequence[str], sampling: Sampling = GREEDY
) -> Prepared:
    messages = []
    for index, (images, text) in enumerate(turns):
        attachments = [shown(i) for i in images]
        messages.append(Message("user", (*attachments, text)))
        if index < len(replies):
            messages.append(Message("assistant", (replies[index],)))
    request = GenerationRequest(tuple(messages), sampling)
    return Prepared(request, prepared_pictures(engine, [i for images, _ in turns for i in images]))


def reply(engine: LocalEngine, prepared: Prepared) -> Completion:
    return engine.complete([prepared])[0]


def prefix_keys(engine: LocalEngine, prepared: Prepared) -> list[PrefixKey]:
    family = engine.loaded.family
    ids = family.encode([prepared.request], [prepared.pictures])["input_ids"][0].tolist()
    return family.prefix_keys(ids, prepared.pictures)


def shared(one: list[PrefixKey], other: list[PrefixKey]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


class Walk:
    """A conversation in which turns are added, undone, asked again and edited at random."""

    TEXTS = ("What is it?", "And this?", "How large is the circle?", "Hello.", "Why?")

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.turns: list[Turn] = [self._turn()]
        self.replies: list[str] = []

    def step(self, answer: str) -> None:
        """Add *answer* as the reply to the last turn, and change the conversation at random."""
        self.replies.append(answer)
        way = self._random.choice(["ask", "ask", "ask", "undo", "retry", "edit"])
        if way == "ask" and len(self.turns) < 5:
            self.turns.append(self._turn())
            return
        last = self._random.randrange(len(self.turns)) if way != "retry" else len(self.turns) - 1
        again = self.turns[last] if way == "retry" else self._turn()
        self.turns[last:] = [again]
        self.replies[last:] = []

    def _turn(self) -> Turn:
        count = self._random.choice([0, 1, 1, 2])
        images = tuple(self._random.randrange(5) for _ in range(count))
        return images, self._random.choice(self.TEXTS)


@pytest.mark.parametrize(
    ("kind", "seed"),
    [*((kind, 1) for kind in (*tiny.CHATTING, SLIDING)), ("idefics", 2), ("idefics2", 2)],
)
def test_any_walk_of_turns_gives_the_replies_of_a_fresh_engine(
    kind: str, seed: int, engine_of: EngineOf
) -> None:
    engine, fresh = engine_of(kind), engine_of(f"{kind} fresh")
    engine.inference.drop_caches()
    walk = Walk(seed)
    before: list[list[PrefixKey]] = []
    reused = []
    for _ in range(10):
        prepared = conversation(engine, walk.turns, walk.replies)
        answer = reply(engine, prepared)
        here = prefix_keys(engine, prepared)
        # The last token of a reply is never run, and the last of a prompt is always run.
        most = max((shared(kept, here[:-1]) for kept in before), default=0)
        assert answer.reused_tokens == most
        before.append([*here, *answer.token_ids[:-1]])
        reused.append(answer.reused_tokens)
        fresh.inference.drop_caches()
        expected = reply(fresh, conversation(fresh, walk.turns, walk.replies))
        assert answer.token_ids == expected.token_ids
        assert expected.reused_tokens == 0
        walk.step(answer.text)
    assert max(reused) > 20


@pytest.mark.parametrize("kind", tiny.CHATTING)
def test_another_picture_of_the_same_shape_is_not_taken_for_the_one_before(
    kind: str, engine_of: EngineOf
) -> None:
    engine = engine_of(kind)
    attachments = [as_attachment(Image.new("RGB", (90, 60), color)) for color in ("red", "blue")]
    prompts = [
        engine.prepare(GenerationRequest((Message("user", (each, "What is it?")),), GREEDY))
        for each in attachments
    ]
    family = engine.loaded.family
    ids = [family.encode([p.request], [p.pictures])["input_ids"].tolist() for p in prompts]
    assert ids[0] == ids[1]
    expected = []
    for prepared in prompts:
        engine.inference.drop_caches()
        expected.append(reply(engine, prepared).token_ids)
    assert expected[0] != expected[1]

    engine.inference.drop_caches()
    reply(engine, prompts[0])
    answer = reply(engine, prompts[1])
    assert answer.token_ids == expected[1]
    assert answer.reused_tokens == ids[0][0].index(family.image_id)


@pytest.mark.parametrize("kind", tiny.CHATTING)
def test_the_same_request_again_computes_one_token_of_the_prompt(
    kind: str, engine_of: EngineOf
) -> None:
    engine = engine_of(kind)
    prepared = conversation(engine, [((0, 1), "What is it?")], [])
    first, again = reply(engine, prepared), reply(engine, prepared)
    assert again.token_ids == first.token_ids
    assert again.reused_tokens == again.prompt_tokens - 1


@pytest.mark.parametrize("kind", tiny.CHATTING)
def test_a_stream_reuses_and_reports_as_a_whole_answer_does(kind: str, engine_of: EngineOf) -> None:
    engine = engine_of(kind)
    prepared = conversation(engine, [((0, 1), "What is it?")], [])
    whole = reply(engine, prepared)
    *_, last = engine.stream(prepared)
    assert last.prompt_tokens == whole.prompt_tokens
    assert last.reused_tokens == whole.prompt_tokens - 1


def test_a_batch_neither_uses_nor_disturbs_the_prefix(engine_of: EngineOf) -> None:
    engine = engine_of("idefics2")
    prepared = conversation(engine, [((0,), "What is it?")], [])
    first = reply(engine, prepared)
    others = [conversation(engine, [((i,), "What is it?")], []) for i in (1, 2)]
    batch = engine.complete([*others, prepared])
    assert [answer.reused_tokens for answer in batch] == [0, 0, 0]
    assert batch[2].token_ids == first.token_ids
    again = reply(engine, prepared)
    assert again.reused_tokens == first.prompt_tokens - 1
    assert again.token_ids == first.token_ids


def test_an_error_leaves_no_states_to_reuse(
    engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Compiled steps do not call the layers.
    monkeypatch.setattr(TextStep, "MOST_ROWS", 0)
    engine = engine_of("idefics2")
    engine.inference.drop_caches()
    failing = conversation(engine, [((0,), "What is this?")], [])
    expected = reply(engine, failing)
    engine.inference.drop_caches()
    prepared = conversation(engine, [((0,), "What is it?")], [])
    first = reply(engine, prepared)
    common = shared(prefix_keys(engine, prepared), prefix_keys(engine, failing))
    # The states of layer 0 are in the cache already when layer 1 fails.
    layer = cast("nn.Module", engine.loaded.model).get_submodule("model.text_model.layers.1")

    def fail(module: nn.Module, arguments: tuple[object, ...]) -> None:
        raise ZeroDivisionError

    hook = layer.register_forward_pre_hook(fail)
    try:
        with pytest.raises(ZeroDivisionError):
            reply(engine, failing)
    finally:
        hook.remove()
    # The states of the conversation before are as they were, and the failed prompt has left none.
    again = reply(engine, failing)
    assert (again.reused_tokens, again.token_ids) == (common, expected.token_ids)
    again = reply(engine, prepared)
    assert (again.reused_tokens, again.token_ids) == (first.prompt_tokens - 1, first.token_ids)


def test_the_caches_are_dropped_first_when_the_memory_runs_out(
    engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of("idefics2")
    inference = engine.inference
    turns: list[Turn] = [((0,), "What is it?")]
    first = reply(engine, conversation(engine, turns, []))
    prepared = [conversation(engine, [((i,), "And this?")], []) for i in (1, 2)]
    expected = engine.complete(prepared)
    kept = []
    place_features = engine.loaded.family.place_features

    def check_memory(model: Model, features: Sequence[Sequence[Tensor]]) -> Tensor | None:
        kept.append(len(inference.prefix) > 0)
        if len(inference.prefix) > 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return place_features(model, features)

    monkeypatch.setattr(engine.loaded.family, "place_features", check_memory)
    answers = engine.complete(prepared)
    assert kept == [True, False]
    monkeypatch.undo()
    assert [a.token_ids for a in answers] == [a.token_ids for a in expected]
    assert reply(engine, conversation(engine, turns, [])).token_ids == first.token_ids


def test_a_reply_that_has_started_goes_on_when_the_memory_runs_out(
    engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of("idefics2")
    prepared = conversation(engine, [((0,), "What is it?")], [])
    whole = reply(engine, prepared)
    calls = 0
    choose_tokens = Scores.choose_tokens

    def run_out_of_memory(scores: Scores, rows: Sequence[BatchRow]) -> None:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        choose_tokens(scores, rows)

    monkeypatch.setattr(Scores, "choose_tokens", run_out_of_memory)
    chunks = list(engine.stream(prepared))
    assert "".join(chunk.text for chunk in chunks) == whole.text
    assert (chunks[-1].finish, chunks[-1].new_tokens) == (whole.finish, whole.new_tokens)
    # One call failed, and each of the others gave a token.
    assert calls == whole.new_tokens + 1


def test_closing_frees_the_prefix(checkpoint: Callable[[str], Path]) -> None:
    engine = open_engine(checkpoint("idefics2"), "idefics2")
    reply(engine, conversation(engine, [((0,), "What is it?")], []))
    keys = prefix_keys(engine, conversation(engine, [((0,), "What is it?")], []))
    kept, count = engine.inference.prefix.take_prefix([*keys, *keys])
    assert count > 0
    cache = weakref.ref(kept)
    engine.inference.prefix.keep_prefix(keys, kept)
    del kept
    engine.close()
    gc.collect()
    assert cache() is None


def with_chunks(engine: LocalEngine, chunk_tokens: int) -> LocalEngine:
    """Return an engine on the model of *engine* with prefill chunks of this size."""
    return reopen(engine, partial(Inference, tuning=Tuning(chunk_tokens=chunk_tokens)))


@pytest.mark.parametrize("kind", [*tiny.CHATTING, SLIDING])
def test_a_prompt_in_chunks_gives_the_reply_of_a_prompt_at_once(
    kind: str, engine_of: EngineOf
) -> None:
    engine = engine_of(kind)
    batch = [
        conversation(engine, [((0,), "What is it?"), ((1,), "And this?")], ["A circle."]),
        conversation(engine, [((), "Hello.")], []),
    ]
    together = [a.token_ids for a in engine.complete(batch)]
    for chunk_tokens in (1, 7, 64) if kind in ("idefics", "idefics2") else (5, 64):
        with with_chunks(engine, chunk_tokens) as chunked:
            assert [a.token_ids for a in chunked.complete(batch)] == together
            chunked.inference.drop_caches()
            assert [reply(chunked, prepared).token_ids for prepared in batch] == together


@pytest.mark.parametrize("kind", tiny.CHATTING)
def test_a_prompt_can_be_interrupted_between_chunks_which_are_kept(
    kind: str, engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(kind)
    prepared = conversation(engine, [((0, 1), "What is it?")], [])
    engine.inference.drop_caches()
    whole = reply(engine, prepared)
    with with_chunks(engine, 5) as chunked:
        # The pictures are known already, so that only the chunks of the prompt check the flag.
        reply(chunked, conversation(chunked, [((0, 1), "Hello")], []))
        chunked.inference.prefix.drop()
        (cut,) = chunked.complete([prepared], cancel=AfterForwards(monkeypatch, chunked, 3))
        assert (cut.finish, cut.token_ids) == ("cancelled", ())
        answer = reply(chunked, prepared)
    assert answer.reused_tokens == 15
    assert answer.token_ids == whole.token_ids
