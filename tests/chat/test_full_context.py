"""What a chat offers when the context or the memory is full."""

from __future__ import annotations

from pathlib import Path

import pytest

from idefics_cli.core.errors import MemoryLimitError
from tests.support.chat import ChatWorld, world


def test_a_nearly_full_context_is_announced_once(tmp_path: Path) -> None:
    here = world(tmp_path, "a " * 17 + "a", "b", context_tokens=20)
    _, err, _ = here.talk("x")
    assert "warning: 20 of 20 tokens of the context are used" in err


LONG = "c " * 59 + "c"


def crowded(tmp_path: Path) -> ChatWorld:
    """Return a chat of 53 tokens, 30 of them for pictures, in a context of 100 tokens."""
    here = world(tmp_path, "One.", "Two.", "Three.", context_tokens=100)
    here.talk("/image *.png", "a " * 19 + "a", "b")
    return here


def test_a_full_context_offers_what_would_help_and_changes_nothing_by_itself(
    tmp_path: Path, pictures: Path
) -> None:
    here = crowded(tmp_path)
    before = here.chat.conversation
    out, err, person = here.talk(LONG, "")
    assert "error: the conversation has 113 tokens, and the model takes 100" in err
    assert (
        "1: leave out the oldest question\n2: leave out [1], [2], [3]\n3: start a new conversation"
        in err
    )
    assert (out, here.chat.conversation) == ("", before)
    assert person.seen[-1] == ("> ", LONG)


def test_the_ways_out_are_numbered_without_gaps(tmp_path: Path) -> None:
    here = world(tmp_path, "One.", "Two.", context_tokens=80)
    out, err, _ = here.talk("a " * 19 + "a", LONG, "2")
    assert (
        "1: leave out the oldest question\n2: start a new conversation with this question\n"
        "Enter: change the question\n"
    ) in err
    assert out == "One.\nTwo.\n"
    assert [m.text for m in here.engine.requests[-1].messages] == [LONG]
    assert "`/drop N`" not in err


def test_out_of_memory_without_pictures_names_none(tmp_path: Path) -> None:
    here = world(tmp_path, completion_error=lambda _: MemoryLimitError("out of memory"))
    _, err, _ = here.talk("What?")
    assert "picture" not in err
    assert "/forget N" in err


@pytest.mark.parametrize(("choice", "messages", "images"), [("1", 3, 0), ("2", 5, 0), ("3", 1, 0)])
def test_after_the_choice_the_question_is_answered(
    choice: str, messages: int, images: int, tmp_path: Path, pictures: Path
) -> None:
    here = crowded(tmp_path)
    out, _, _ = here.talk(LONG, choice)
    request = here.engine.requests[-1]
    assert out == "Three.\n"
    assert (len(request.messages), len(request.attachments)) == (messages, images)
    assert request.messages[-1].text == LONG


def test_out_of_memory_says_what_would_help(tmp_path: Path, pictures: Path) -> None:
    here = world(tmp_path, completion_error=lambda _: MemoryLimitError("out of memory"))
    _, err, person = here.talk("@a.png What?")
    told = " ".join(err.split())
    for help_ in ("/drop N", "fewer or smaller pictures", "--quantization 4bit"):
        assert help_ in told
    assert person.recalls[-1] == "What?"
