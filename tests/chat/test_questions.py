"""Questions at the keyboard, with a fake model: answers, errors and Ctrl-C."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from idefics_cli.core.errors import MemoryLimitError
from idefics_cli.core.types import TokenChunk
from idefics_cli.engine.protocol import Prepared
from tests.support.chat import ChatWorld, Interrupted, world
from tests.support.fakes import FakeEngine


def test_a_question_is_answered_and_the_next_one_knows_it(tmp_path: Path) -> None:
    here = world(tmp_path, "A red one.", "Still red.")
    out, _, _ = here.talk("What is it?", "And now?")
    assert out == "A red one.\nStill red.\n"
    assert [m.text for m in here.engine.requests[1].messages] == [
        "What is it?", "A red one.", "And now?",
    ]  # fmt: skip


def test_ctrl_c_at_an_empty_prompt_only_hints(tmp_path: Path) -> None:
    _, err, _ = world(tmp_path).talk(KeyboardInterrupt, KeyboardInterrupt)
    assert err == "note: Ctrl-D or /exit leaves\n" * 2


def test_an_empty_line_does_nothing(tmp_path: Path) -> None:
    here = world(tmp_path)
    assert here.talk("", "  ")[:2] == ("", "")
    assert here.engine.requests == []


def test_an_error_takes_the_turn_back_and_up_brings_the_text_again(
    tmp_path: Path, pictures: Path
) -> None:
    errors: list[Exception | None] = [MemoryLimitError("out of memory", hint="fewer"), None]
    here = world(tmp_path, "Red.", completion_error=lambda requests: errors.pop(0))
    out, err, person = here.talk("/image a.png", "What?", "What?")
    assert (out, errors) == ("Red.\n", [])
    assert "error: out of memory\n" in err
    assert "note: Up brings the question back\n" in err
    assert (person.drafts[2], person.recalls[2]) == ("", "What?")
    assert [prompt for prompt, _ in person.seen][2:] == ["1 picture > ", "> "]
    assert here.questions == ["What?"]


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(tmp_path: Path) -> None:
    here = ChatWorld(tmp_path, Interrupted(3))
    out, err, _ = here.talk("Count")
    (turn,) = here.chat.conversation.turns
    assert out == "0 1 2 \n"
    assert err == "note: interrupted; the answer so far is kept\n"
    assert turn.reply is not None
    assert (turn.reply.text, turn.reply.is_interrupted) == ("0 1 2 ", True)


def test_ctrl_c_before_the_first_word_takes_the_question_back(tmp_path: Path) -> None:
    here = ChatWorld(tmp_path, Interrupted(0))
    out, err, person = here.talk("Count")
    assert (out, here.questions) == ("", [])
    assert "taken back" in err
    assert (person.drafts, person.recalls) == (["", ""], ["", "Count"])


def test_a_second_ctrl_c_does_not_wait_for_the_engine(tmp_path: Path) -> None:
    class Deaf(FakeEngine):
        def stream(
            self, prepared: Prepared, *, cancel: Event | None = None
        ) -> Iterator[TokenChunk]:
            yield TokenChunk("So ", 1)
            while True:
                os.kill(os.getpid(), signal.SIGINT)

    here = ChatWorld(tmp_path, Deaf())
    assert here.talk("Hi", "/exit")[0] == "So \n"
    assert here.chat.conversation.turns[0].reply is not None


def test_marks_in_a_text_are_the_places_of_its_pictures(tmp_path: Path, pictures: Path) -> None:
    here = world(tmp_path, "One.", "Two.", "Three.")
    _, err, _ = here.talk(
        "/image a.png b.png", "Is <image> as <image>?", "And <image>?", "So?", "Hm?"
    )
    first, second, third = (request.messages for request in here.engine.requests)
    assert [isinstance(part, str) for part in first[0].parts] == [True, False, True, False, True]
    assert first[0].parts[::2] == ("Is ", " as ", "?")
    assert third[0] == second[0] == first[0]
    assert err.count("error: the prompt has 1 `<image>`, and 0 pictures are given") == 1


@pytest.mark.parametrize("answer", ["", " \n "])
def test_an_empty_answer_is_told(answer: str, tmp_path: Path) -> None:
    _, err, _ = world(tmp_path, answer, "Red.").talk("What?", "And?")
    told = "note: the answer is empty: the model ended it before the first word"
    assert err.count(told) == 1


def test_an_answer_that_is_cut_before_a_word_was_not_ended_by_the_model(tmp_path: Path) -> None:
    _, err, _ = world(tmp_path, "\n word", "Red.").talk("/set max_new_tokens=1", "What?", "And?")
    told = "the answer was cut after 1 token, before its first word; `/set max_new_tokens=N`"
    assert " ".join(err.split()).count(told) == 1
    assert "the model ended it" not in err


@pytest.mark.parametrize("word", ["exit", "quit", "Quit ", "bye", ":q"])
def test_a_word_that_leaves_other_tools_leaves_this_one(tmp_path: Path, word: str) -> None:
    here = world(tmp_path)
    out, err, person = here.talk(word, "never read")
    assert (out, err, len(person.drafts)) == ("", "", 1)
    assert here.engine.requests == []
