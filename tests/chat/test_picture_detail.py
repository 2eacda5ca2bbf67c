"""`/set longest_edge` and `/set splitting`: how much detail of its pictures the model sees."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from PIL import Image

from idefics_cli.core.types import PictureDetail
from idefics_cli.engine.local.engine import LocalEngine
from tests.support.chat import ChatWorld
from tests.support.fakes import FakeEngine
from tests.support.prompts import open_engine, picture


@pytest.fixture
def engine(checkpoint: Callable[[str], Path]) -> Iterator[LocalEngine]:
    with open_engine(checkpoint("smolvlm"), "smolvlm") as engine:
        yield engine


@pytest.fixture(autouse=True)
def _in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def world(folder: Path, engine: LocalEngine) -> ChatWorld:
    return ChatWorld(folder, cast("FakeEngine", engine))


def answers(here: ChatWorld) -> list[tuple[str, int]]:
    replies = [turn.reply for turn in here.chat.conversation.turns]
    return [(reply.text, reply.prompt_tokens) for reply in replies if reply is not None]


@pytest.mark.parametrize(
    ("line", "changes"),
    [
        ("/set longest_edge=28", {"longest_edge": 28}),
        ("/set splitting=off", {"splitting": False}),
        ("/set longest_edge=28 splitting=off", {"longest_edge": 28, "splitting": False}),
    ],
)
def test_a_chat_with_another_detail_is_that_of_a_model_loaded_with_it(
    line: str, changes: dict[str, int], engine: LocalEngine, tmp_path: Path
) -> None:
    picture(0).save(tmp_path / "a.png")
    lines = ("/set max_new_tokens=6", "@a.png What is it?", "And now?")
    usual = world(tmp_path, engine)
    usual.talk(*lines)
    here = world(tmp_path, engine)
    here.talk(line, *lines)
    with LocalEngine(replace(engine.spec, **changes)) as other:  # type: ignore[arg-type]  # a table
        there = world(tmp_path, other)
        there.talk(*lines)
    assert answers(here) == answers(there) != answers(usual)
    # Set in the middle of the chat, it holds for the pictures of earlier turns, too.
    usual.talk(line, "And here?")
    assert answers(usual)[2][1] < answers(usual)[1][1]


def test_a_detail_that_the_model_cannot_see_changes_nothing(
    engine: LocalEngine, tmp_path: Path
) -> None:
    here = world(tmp_path, engine)
    _, err, _ = here.talk("Hi", "/set longest_edge=33 temperature=0.5", "/set")
    assert "cannot scale pictures to a longest edge of 33 pixels" in err
    assert "longest_edge = as at the start" in err
    assert here.chat.conversation.settings == {}


def test_staged_pictures_are_counted_again(engine: LocalEngine, tmp_path: Path) -> None:
    picture(0).save(tmp_path / "a.png")
    here = world(tmp_path, engine)
    _, err, _ = here.talk("Hi", "/image a.png", "/set splitting=off", "/images")
    (first, *_, last) = [line for line in err.splitlines() if line.startswith("[1] a.png")]
    assert first != last
    assert "splitting = off" in err


def test_the_detail_is_saved_and_can_be_removed(tmp_path: Path) -> None:
    Image.new("RGB", (8, 6)).save(tmp_path / "a.png")
    here = ChatWorld(tmp_path, FakeEngine("One.", "Two."))
    here.talk("/set longest_edge=512", "@a.png What?", "/set longest_edge=", "And?")
    first, second = here.engine.requests
    assert [each.detail for each in first.attachments] == [PictureDetail(None, 512)]
    assert [each.detail for each in second.attachments] == [PictureDetail()]
