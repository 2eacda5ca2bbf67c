"""What is kept between requests changes how fast a reply comes, and never which."""

from __future__ import annotations

import gc
import json
import random
import shutil
import weakref
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path

import pytest
import torch
from PIL import Image

from idefics_cli.core.errors import MemoryLimitError
from idefics_cli.core.types import Attachment, Completion, GenerationRequest, Message, Sampling
from idefics_cli.engine.local.decode.sampling import Scores
from idefics_cli.engine.local.decode.token_loop import generate
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.protocol import Prepared
from idefics_cli.models.families.base import PrefixKey
from idefics_cli.models.families.picture import PreparedPicture
from tests.support import tiny
from tests.support.prompts import open_engine, picture

SLIDING = "idefics2 with a window of 24 tokens"
GREEDY = Sampling(max_new_tokens=6)
# A turn of the user, and the reply once there is one.
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
        attachments = [Attachment(str(i)) for i in images]
        messages.append(Message("user", (*attachments, text)))
        if index < len(replies):
            messages.append(Message("assistant", (replies[index],)))
    request = GenerationRequest(tuple(messages), sampling)
    shown = [engine.preprocess(picture(int(a.source))) for a in request.attachments]
    return Prepared(request, tuple(shown))


def forget(engine: LocalEngine) -> None:
    inference = engine.inference
    inference._prefix.drop()
    inference._features.clear()


def reply(engine: LocalEngine, prepared: Prepared) -> Completion:
    return engine.complete([prepared])[0]


def prefix_keys(engine: LocalEngine, prepared: Prepared) -> list[PrefixKey]:
    family = engine.loaded.family
    ids = family.encode([prepared.request], [prepared.pictures])["input_ids"][0].tolist()
    return family.prefix_keys(ids, prepared.pictures)


def shared(one: list[PrefixKey], other: list[PrefixKey]) -> int:
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(one, other, strict=False)))


class Walk:
    """A conversation in which turns are added, taken back, asked again and edited at random."""

    TEXTS = ("What is it?", "And this?", "How large is the circle?", "Hello.", "Why?")

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self.turns: list[Turn] = [self._turn()]
        self.replies: list[str] = []

    def step(self, answer: str) -> None:
        """Take the answer to the last turn, and go on somehow."""
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


@pytest.mark.parametrize("seed", [1, 2])
@pytest.mark.parametrize("kind", [*tiny.CHATTING, SLIDING])
def test_any_walk_of_turns_gives_the_replies_of_a_fresh_engine(
    kind: str, seed: int, engine_of: EngineOf
) -> None:
    engine, fresh = engine_of(kind), engine_of(f"{kind} fresh")
    forget(engine)
    walk, before = Walk(seed), []
    reused = []
    for _ in range(10):
        prepared = conversation(engine, walk.turns, walk.replies)
        answer = reply(engine, prepared)
        here = prefix_keys(engine, prepared)
        # The last token of a reply is never run, nor may the last of a prompt be left out.
        assert answer.reused_tokens == shared(before, here[:-1])
        before = [*here, *answer.token_ids[:-1]]
        reused.append(answer.reused_tokens)
        forget(fresh)
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
    one, other = (
        preprocess(engine, Image.new("RGB", (90, 60), color)) for color in ("red", "blue")
    )
    request = conversation(engine, [((0,), "What is it?")], []).request
    prompts = [Prepared(request, (shown,)) for shown in (one, other)]
    family = engine.loaded.family
    ids = [family.encode([p.request], [p.pictures])["input_ids"].tolist() for p in prompts]
    assert ids[0] == ids[1]
    expected = []
    for prepared in prompts:
        forget(engine)
        expected.append(reply(engine, prepared).token_ids)
    assert expected[0] != expected[1]

    forget(engine)
    reply(engine, prompts[0])
    answer = reply(engine, prompts[1])
    assert answer.token_ids == expected[1]
    assert answer.reused_tokens == ids[0][0].index(family.image_id)


def preprocess(engine: LocalEngine, image: Image.Image) -> PreparedPicture:
    shown = engine.preprocess(image)
    # Features that are remembered stay, whatever the test forgets: pixels are needed again.
    return shown if shown.tiles else engine.loaded.family.preprocess(image)


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
def test_a_stream_reuses_and_tells_as_a_whole_answer_does(kind: str, engine_of: EngineOf) -> None:
    engine = engine_of(kind)
    prepared = conversation(engine, [((0, 1), "What is it?")], [])
    whole = reply(engine, prepared)
    *_, last = engine.stream(prepared)
    assert last.prompt_tokens == whole.prompt_tokens
    assert last.reused_tokens == whole.prompt_tokens - 1


def test_a_batch_neither_uses_nor_disturbs_what_is_kept(engine_of: EngineOf) -> None:
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


def test_an_error_leaves_nothing_that_could_be_reused(
    engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of("idefics2")
    prepared = conversation(engine, [((0,), "What is it?")], [])
    first = reply(engine, prepared)
    broken = engine.loaded.model.model.text_model.layers[1]  # type: ignore[attr-defined]

    def fail(*args: object, **more: object) -> object:
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(broken, "forward", fail)
        with pytest.raises(ZeroDivisionError):
            reply(engine, conversation(engine, [((0,), "What is this?")], []))
    again = reply(engine, prepared)
    assert (again.reused_tokens, again.token_ids) == (0, first.token_ids)


def test_what_is_kept_goes_first_when_the_memory_runs_out(
    engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of("idefics2")
    inference = engine.inference
    turns: list[Turn] = [((0,), "What is it?")]
    first = reply(engine, conversation(engine, turns, []))
    prepared = [conversation(engine, [((i,), "And this?")], []) for i in (1, 2)]
    expected = engine.complete(prepared)
    asked = []

    def full(*args: object, **more: object) -> None:
        asked.append((bool(inference._prefix), len(inference._features) > 0))
        if inference._prefix:
            raise torch.OutOfMemoryError("CUDA out of memory")
        generate(*args, **more)  # type: ignore[arg-type]

    monkeypatch.setattr("idefics_cli.engine.local.inference.generate", full)
    reply(engine, conversation(engine, turns, []))
    asked.clear()
    answers = engine.complete(prepared)
    assert asked == [(True, True), (False, False)]
    assert [a.token_ids for a in answers] == [a.token_ids for a in expected]
    assert reply(engine, conversation(engine, turns, [])).token_ids == first.token_ids


def test_a_reply_that_was_begun_is_not_said_twice_when_the_memory_runs_out(
    engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of("idefics2")
    prepared = conversation(engine, [((0,), "What is it?")], [])
    reply(engine, prepared)
    chosen = 0

    def full(*args: object) -> None:
        nonlocal chosen
        chosen += 1
        if chosen == 3:
            raise torch.OutOfMemoryError("CUDA out of memory")
        choose(*args)  # type: ignore[arg-type]

    choose = Scores.choose
    monkeypatch.setattr(Scores, "choose", full)
    with pytest.raises(MemoryLimitError):
        list(engine.stream(prepared))
    assert chosen == 3


def test_closing_frees_what_was_kept(checkpoint: Callable[[str], Path]) -> None:
    engine = open_engine(checkpoint("idefics2"), "idefics2")
    reply(engine, conversation(engine, [((0,), "What is it?")], []))
    cache = weakref.ref(engine.inference._prefix._cache)
    assert cache() is not None
    engine.close()
    gc.collect()
    assert cache() is None


class After:
    """Is set when it was looked at so many times."""

    def __init__(self, looks: int) -> None:
        self.looks = looks

    def is_set(self) -> bool:
        self.looks -= 1
        return self.looks < 0


@pytest.mark.parametrize("kind", [*tiny.CHATTING, SLIDING])
def test_a_prompt_in_pieces_gives_the_reply_of_a_prompt_at_once(
    kind: str, engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(kind)
    batch = [
        conversation(engine, [((0,), "What is it?"), ((1,), "And this?")], ["A circle."]),
        conversation(engine, [((), "Hello.")], []),
    ]
    together = [a.token_ids for a in engine.complete(batch)]
    monkeypatch.setattr("idefics_cli.engine.local.prompt.prefill._CPU_OPERATIONS", 1)
    for piece in (1, 7, 64):
        monkeypatch.setattr("idefics_cli.engine.local.prompt.prefill._FEWEST", piece)
        forget(engine)
        assert [a.token_ids for a in engine.complete(batch)] == together
        forget(engine)
        assert [reply(engine, prepared).token_ids for prepared in batch] == together


@pytest.mark.parametrize("kind", tiny.CHATTING)
def test_a_prompt_can_be_interrupted_between_pieces_which_are_kept(
    kind: str, engine_of: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = engine_of(kind)
    prepared = conversation(engine, [((0, 1), "What is it?")], [])
    forget(engine)
    whole = reply(engine, prepared)
    monkeypatch.setattr("idefics_cli.engine.local.prompt.prefill._CPU_OPERATIONS", 1)
    monkeypatch.setattr("idefics_cli.engine.local.prompt.prefill._FEWEST", 5)
    forget(engine)
    # The pictures are known, so that only pieces of the prompt look at the flag.
    reply(engine, conversation(engine, [((0, 1), "Hello")], []))
    engine.inference._prefix.drop()
    cut = engine.inference.answer([prepared], After(3))
    assert (cut.rows[0].finish, cut.rows[0].tokens) == ("cancelled", [])
    answer = reply(engine, prepared)
    assert answer.reused_tokens == 15
    assert answer.token_ids == whole.token_ids
