"""What is kept between requests changes how fast a reply comes, and never which."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path

import pytest

from idefics_cli.core.types import Attachment, Completion, GenerationRequest, Message, Sampling
from idefics_cli.engine import Prepared
from idefics_cli.engine.local import LocalEngine
from idefics_cli.models.families.base import Mark
from tests import tiny
from tests.test_parity import open_engine, picture

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
    shown = [engine.look(picture(int(a.source))) for a in request.attachments]
    return Prepared(request, tuple(shown))


def forget(engine: LocalEngine) -> None:
    inference = engine._require_inference()
    inference._prefix.drop()
    inference._features.clear()


def reply(engine: LocalEngine, prepared: Prepared) -> Completion:
    return engine.complete([prepared])[0]


def marks(engine: LocalEngine, prepared: Prepared) -> list[Mark]:
    family = engine._require().family
    ids = family.encode([prepared.request], [prepared.pictures])["input_ids"][0].tolist()
    return family.marks(ids, prepared.pictures)


def shared(one: list[Mark], other: list[Mark]) -> int:
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
        here = marks(engine, prepared)
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
