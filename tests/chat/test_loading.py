"""A chat while its model loads, and when another model takes its place."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest

from idefics_cli.core.errors import ImageError, MemoryLimitError
from idefics_cli.core.types import GenerationRequest, Progress
from idefics_cli.engine.protocol import Engine, OpenImage, Prepared
from idefics_cli.ui.chat.repl import Repl
from idefics_cli.ui.terminal.console import Console
from tests.support.chat import AwaitedLoading, ChatWorld, Gate, Lines, world
from tests.support.commands import Stream
from tests.support.fakes import FAKE_SPEC, FakeEngine


def loading(folder: Path, gate: Gate, *, interrupts: bool = False) -> ChatWorld:
    """Return a chat whose model loads behind *gate*, until a question waits for it."""
    here = world(folder)
    here.chat.model.loading = AwaitedLoading(gate, interrupts=interrupts)
    here.chat.model.loading.start()
    return here


class Opener(Lines):
    """A person who waits for the model before the line *number*."""

    def __init__(self, here: ChatWorld, gate: Gate, number: int, *lines: str) -> None:
        super().__init__(*lines)
        self._here, self._gate, self._number = here, gate, number

    def read(self, prompt: str, *, text: str = "", recall: str = "") -> str:
        if len(self.seen) == self._number:
            self._gate.opened.set()
            assert self._here.chat.model.engine
        return super().read(prompt, text=text)


def test_another_model_goes_on_with_the_conversation(tmp_path: Path) -> None:
    here = world(tmp_path, "One.")
    other = here.models["other"] = FakeEngine("Two.", spec=replace(FAKE_SPEC, name="other"))
    here.talk("a", "/model other", "b")
    assert [m.text for m in other.requests[0].messages] == ["a", "One.", "b"]
    assert here.engine.is_closed
    assert here.chat.conversation.model == "other"


def test_when_another_model_cannot_be_loaded_the_former_answers_again(tmp_path: Path) -> None:
    here = world(tmp_path)

    def fail(progress: Progress) -> Engine:
        # The model must fail only after a question waits for it.
        while here.chat.conversation.pending is None:
            time.sleep(0.01)
        raise MemoryLimitError("out of memory")

    here.loads |= {"other": fail, "fake": lambda progress: FakeEngine("One.")}
    out, err, person = here.talk("/model other", "a", "a")
    assert "error: out of memory\nnote: fake answers again\nnote: Up brings" in err
    assert person.recalls == ["", "", "a", ""]
    assert here.engine.is_closed  # two models at a time may be more than the memory holds
    assert out == "One.\n"


def test_while_the_model_loads_everything_but_an_answer_works(
    tmp_path: Path, pictures: Path
) -> None:
    gate = Gate(FakeEngine("Red."))
    here = loading(tmp_path, gate)
    lines = ("/image a.png", "/images", "/stats", "/set top_k=2", "/images", "What?")
    out, err = here.talk_as(Opener(here, gate, 4, *lines))
    shown = err.splitlines()
    listed = "[1] a.png, 8x6 landscape, goes with your next message"
    assert shown[:3] == [listed, listed, "model: slow, loading 40%"]
    assert "[1] a.png, 8x6 landscape, 10 tokens, goes with your next message" in shown
    assert out == "Red.\n"


def test_no_line_about_tokens_stands_between_an_answer_and_the_next_question(
    tmp_path: Path, pictures: Path
) -> None:
    here = loading(tmp_path, Gate(FakeEngine("Red.", "Yes.")))
    _, err, _ = here.talk("@a.png What?", "Sure?")
    assert err == "[1] a.png, 8x6 landscape\n\n\n"
    _, err, _ = here.talk("/images")
    assert err == "[1] a.png, 8x6 landscape, turn 1, 10 tokens\n"


def test_the_first_question_waits_for_the_model_and_ctrl_c_ends_the_wait(tmp_path: Path) -> None:
    here = loading(tmp_path, Gate(FakeEngine("Red.")), interrupts=True)
    _, err, person = here.talk("What?")
    assert "the question is taken back" in err
    assert (person.drafts, person.recalls) == (["", ""], ["", "What?"])
    assert here.talk("What?")[0] == "Red.\n"


def test_when_no_model_can_be_loaded_the_chat_ends_and_the_text_is_shown(tmp_path: Path) -> None:
    here = loading(tmp_path, Gate(MemoryLimitError("out of memory")))
    err = Stream(terminal=True)
    with pytest.raises(MemoryLimitError):
        Repl(here.dispatcher, Console(Stream(terminal=True), err), Lines("What?", "And?")).run()
    assert err.text() == "not asked: What?\n"
    assert here.questions == []


class _TakesNone(FakeEngine):
    """A model that takes no picture of the chat, as one for pictures takes no video."""

    def prepare(
        self, request: GenerationRequest, *, open_image: OpenImage | None = None
    ) -> Prepared:
        if request.attachments:
            raise ImageError("cannot read `picture`: it is a video", kind="unsupported", hint="…")
        return super().prepare(request, open_image=open_image)


def test_what_the_new_model_cannot_take_is_listed_and_can_be_dropped(
    tmp_path: Path, pictures: Path
) -> None:
    here = world(tmp_path, "Red.")
    here.models["other"] = _TakesNone("Yes.")
    out, err, _ = here.talk("@a.png What?", "/model other", "Sure?", "/images", "/drop 1", "Sure?")
    assert (
        "error: cannot read `picture`: it is a video\n"
        "hint: `/images` lists the pictures, `/drop N` takes one out\n"
    ) in err
    assert "[1] a.png, 8x6 landscape, turn 1\n" in err
    assert out == "Red.\nYes.\n"
