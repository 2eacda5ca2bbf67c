"""Token counts are sums that equal what the engine counts, and each picture is opened once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import accumulate
from pathlib import Path
from threading import Event
from typing import BinaryIO, cast

import pytest
from PIL import Image

from idefics_cli.chat.attachments import PictureOpener
from idefics_cli.chat.budget import TokenBudget
from idefics_cli.chat.conversation import ChatPicture, Conversation, Reply
from idefics_cli.chat.dialogue import Chat
from idefics_cli.chat.loading import Loading, LoadPlan
from idefics_cli.chat.store.sessions import NullStore, SessionStore
from idefics_cli.core.errors import ContextError
from idefics_cli.core.types import Attachment, GenerationRequest, ImageLimits, Message, Sampling
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.protocol import Engine, Measure, Prepared
from idefics_cli.images.loader import ImageLoader
from tests.support.fakes import FAKE_DRAFT_EDGE, FakeClock, FakeEngine
from tests.support.tiny import CHATTING

EngineOf = Callable[[str], LocalEngine]


@dataclass
class Opener:
    """Opens pictures from their files and counts each."""

    opened: list[str]

    def __call__(self, attachment: Attachment, draft_edge: int) -> Image.Image:
        self.opened.append(attachment.digest)
        return ImageLoader(ImageLimits()).open(attachment, draft_edge=draft_edge)


def pictures(folder: Path, count: int, *, blue: int = 160) -> list[ChatPicture]:
    """Return pictures of many shapes, so that some are split and others are not."""
    made = []
    for number in range(count):
        path = folder / f"{number}.png"
        Image.new("RGB", (20 + 35 * number, 90 - 10 * number), (25 * number, 90, blue)).save(path)
        made.append(ChatPicture(0, path.name, Attachment(str(path), f"digest of {path.name}")))
    return made


def long_conversation(folder: Path, model: str, *, system: str | None = None) -> Conversation:
    one, two, three, four = pictures(folder, 4)
    conversation = Conversation(model, system=system)
    for text, shown, answer in (
        ("What is in [1] and [2]?", (one, two), "A red circle."),
        ("And now? Zürich, naïve, 漢字.", (), "Two cats,\none dog."),
        ("In [3]?", (three,), ""),  # stopped before its first word
        ("  Describe image [1]. ", (four,), "A blue\n\nsquare on white. "),
        ("a", (), "b"),
    ):
        conversation = conversation.asked(text, shown).replied(Reply(answer, "stop"))
    return conversation.asked("How many shapes are there in [4]?")


def engine_count(engine: Engine, request: GenerationRequest) -> int:
    """Return the tokens of *request* as the engine counts them, all pictures opened anew."""
    measure = engine.measure(engine.prepare(request))
    assert measure is not None
    return measure.prompt_tokens


class CrampedEngine:
    """A loaded model with a smaller context."""

    def __init__(self, engine: Engine, context_tokens: int) -> None:
        self.spec = engine.spec
        self.context_tokens = context_tokens
        self.prepare = engine.prepare
        self._measure = engine.measure

    def measure(self, prepared: Prepared) -> Measure:
        measure = self._measure(prepared)
        assert measure is not None
        return replace(measure, context_tokens=self.context_tokens)


@pytest.mark.parametrize("system", [None, "Be brief."])
@pytest.mark.parametrize("kind", CHATTING)
def test_the_sum_over_the_turns_is_what_the_engine_counts(
    kind: str, system: str | None, endless: EngineOf, tmp_path: Path
) -> None:
    engine = endless(kind)
    conversation = long_conversation(tmp_path, kind, system=system)
    budget = TokenBudget(engine, Opener([]))
    for shorter in (
        conversation,
        conversation.without_oldest(1),
        conversation.without_oldest(3),
        conversation.dropped(2),
        conversation.dropped(3).dropped(1),
    ):
        request = budget.request(shorter, Sampling())
        budget.prepare(request)
        expected = engine_count(engine, request)
        measure = budget.measure(request)
        assert measure is not None
        assert measure.prompt_tokens == expected
        assert budget.sum_tokens(request) == expected


@pytest.mark.parametrize("kind", CHATTING)
def test_what_must_go_is_what_trying_every_number_finds(
    kind: str, endless: EngineOf, tmp_path: Path
) -> None:
    engine = endless(kind)
    conversation = long_conversation(tmp_path, kind)
    opener = Opener([])
    budget = TokenBudget(engine, opener)
    whole = engine_count(engine, budget.request(conversation, Sampling()))

    for context_tokens in range(16, whole + 40, 13):
        narrow = TokenBudget(cast("Engine", CrampedEngine(engine, context_tokens)), opener)
        check_against_trials(narrow, conversation)


@pytest.mark.parametrize("extra", [7, -3])
def test_a_template_that_does_not_add_up_changes_nothing(extra: int, tmp_path: Path) -> None:
    class Uneven(FakeEngine):
        """Counts some tokens more, or less, wherever a question follows an answer."""

        def measure(self, prepared: Prepared) -> Measure:
            measure = super().measure(prepared)
            joints = max(0, len(prepared.request.messages) - 2) // 2
            return replace(measure, prompt_tokens=measure.prompt_tokens + extra * joints)

    conversation = long_conversation(tmp_path, "fake")
    for context_tokens in range(20, 140):
        engine = Uneven(context_tokens=context_tokens)
        check_against_trials(TokenBudget(engine, Opener([])), conversation)


def check_against_trials(budget: TokenBudget, conversation: Conversation) -> None:
    """Check what *budget* finds against the trial of every number of turns and pictures."""

    def fits(shorter: Conversation) -> bool:
        tokens = engine_count(budget.engine, budget.request(shorter, Sampling()))
        return budget.engine.context_tokens - tokens >= 16

    counts = range(1, len(conversation.turns))
    turns = next((n for n in counts if fits(conversation.without_oldest(n))), 0)
    assert budget.turns_to_forget(conversation) == turns
    numbers = [picture.number for picture in conversation.pictures]
    shorter = [*accumulate(numbers, Conversation.dropped, initial=conversation)]
    pictures = next((n for n in range(1, len(shorter)) if fits(shorter[n])), 0)
    assert budget.pictures_to_drop(conversation, numbers) == numbers[:pictures]


# A chat with a model


@dataclass
class Person:
    """Talks with a model, whose engine counts what it is asked to do."""

    chat: Chat

    def ask(self, text: str) -> str:
        self.chat.ask(text)
        return "".join(
            chunk.text for chunk in self.chat.reply(cancel=Event(), phase=lambda _: None)
        )

    def retry(self) -> str:
        self.chat.turns.session.retry()
        return "".join(
            chunk.text for chunk in self.chat.reply(cancel=Event(), phase=lambda _: None)
        )


def talk(engine: Engine, store: SessionStore | NullStore, *, is_ready: bool = True) -> Person:
    def find(name: str) -> tuple[str, LoadPlan]:
        return name, lambda warn: lambda progress: engine

    loading = Loading(*find("fake"))
    if is_ready:
        assert loading.engine is engine
    return Person(
        Chat(
            loading,
            store.create("fake"),
            store=store,
            find_model=find,
            sampling=Sampling(max_new_tokens=4),
            displays={"plain": True, "preview": False},
            pictures=PictureOpener(ImageLimits(), offline=True),
            clock=FakeClock(),
        )
    )


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The draft edge of every picture that is decoded."""
    edges: list[int] = []
    open_stream = ImageLoader.open_stream

    def counted(
        self: ImageLoader, stream: BinaryIO, source: str, *, draft_edge: int | None = None
    ) -> Image.Image:
        edges.append(draft_edge or 0)
        return open_stream(self, stream, source, draft_edge=draft_edge)

    monkeypatch.setattr(ImageLoader, "open_stream", counted)
    return edges


@pytest.mark.parametrize("is_saved", [True, False])
@pytest.mark.parametrize("kind", CHATTING)
def test_a_picture_is_decoded_once_however_often_it_is_asked_about(
    kind: str, is_saved: bool, endless: EngineOf, tmp_path: Path, decoded: list[int]
) -> None:
    engine = endless(kind)
    store = SessionStore(tmp_path / "data") if is_saved else NullStore()
    person = talk(engine, store)
    # The engine is that of other tests, and must not know the pictures.
    first, second, third = pictures(tmp_path, 3, blue=30 if is_saved else 60)
    (staged,) = person.chat.attach([first.attachment.source])
    person.ask("What is it?")
    person.ask("And now?")
    person.chat.attach([second.attachment.source])
    person.ask("Which of [1] and [2]?")
    person.chat.attach([third.attachment.source])
    person.retry()  # its answer does not use the third picture
    person.ask("And [3]?")
    counts = [person.chat.picture_tokens(p.attachment) for p in person.chat.conversation.pictures]
    assert len(decoded) == 3
    assert counts[0] == staged.tokens
    assert (staged.width, staged.height) == (20, 90)


def test_while_the_model_loads_the_thumbnail_is_decoded_small_and_the_model_decodes_once(
    tmp_path: Path, decoded: list[int]
) -> None:
    engine = FakeEngine("One.", "Two.")
    person = talk(engine, SessionStore(tmp_path / "data"), is_ready=False)
    (picture,) = pictures(tmp_path, 1)
    (staged,) = person.chat.attach([picture.attachment.source])
    assert (staged.tokens, decoded) == (None, [512])
    assert person.chat.model.engine is engine
    ((number, counted),) = person.chat.count_staged()
    assert (number, counted.tokens) == (1, 10)
    person.ask("What?")
    person.ask("And?")
    assert decoded == [512, FAKE_DRAFT_EDGE]


def test_a_prompt_is_tokenized_once_for_each_reply(tmp_path: Path) -> None:
    engine = FakeEngine("One.", "Two.", "Three.")
    person = talk(engine, NullStore())
    (picture,) = pictures(tmp_path, 1)
    person.chat.attach([picture.attachment.source])
    before = len(engine.measured)
    for text in ("What?", "And?", "Sure?"):
        person.ask(text)
        person.chat.used()
    assert engine.measured[before:] == engine.requests


def test_a_full_context_is_measured_by_its_turns_and_prepares_nothing_again(
    tmp_path: Path,
) -> None:
    engine = FakeEngine(*["a"] * 30, context_tokens=200)
    person = talk(engine, SessionStore(tmp_path / "data"))
    for number, picture in enumerate(pictures(tmp_path, 8)):
        person.chat.attach([picture.attachment.source])
        person.ask(f"question {number}")
    prepared, measured, opened = len(engine.prepared), len(engine.measured), len(engine.opened)
    text = "c " * 120
    person.chat.ask(text)
    with pytest.raises(ContextError):
        list(person.chat.reply(cancel=Event(), phase=lambda _: None))
    assert len(engine.prepared) == prepared + 1
    assert person.chat.turns_to_forget(text) == 4
    assert person.chat.pictures_to_drop(text) == [1, 2, 3, 4]
    assert len(engine.prepared) == prepared + 1
    # There are a few measurements for each turn, and not one of the whole conversation for each
    # number of turns.
    assert len(engine.measured) - measured < 3 * 8 + 8
    assert len(engine.opened) == opened == 8


def test_a_staged_picture_is_opened_once_for_its_tokens_and_its_question(
    endless: EngineOf, tmp_path: Path
) -> None:
    engine = endless(CHATTING[0])
    opener = Opener([])
    budget = TokenBudget(engine, opener)
    (one,) = pictures(tmp_path, 1)
    attachment = replace(one.attachment, digest="of no other test")
    tokens = budget.stage(attachment, opener)
    budget.prepare(GenerationRequest((Message("user", (attachment, "What is it?")),)))
    assert budget.picture_tokens(attachment) == tokens
    assert opener.opened == [attachment.digest]
