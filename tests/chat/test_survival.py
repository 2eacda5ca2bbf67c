"""Nothing that fails for one line ends a chat, and the conversation stands."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from threading import Event

import pytest

from idefics_cli.chat.store.open_session import OpenSession
from idefics_cli.core.errors import MemoryLimitError, SessionError
from idefics_cli.core.types import TokenChunk
from idefics_cli.engine.protocol import Prepared
from tests.support.chat import ChatWorld, world
from tests.support.fakes import FakeEngine

BUGS = [
    ValueError("zip() argument 2 is shorter than argument 1"),
    TypeError('can only concatenate str (not "list") to str'),
    IndexError("index 169 is out of range"),
    RuntimeError("shape '[1, 45, 11, 128]' is invalid"),
    RecursionError("maximum recursion depth exceeded"),
]


@pytest.mark.parametrize("bug", BUGS, ids=lambda bug: type(bug).__name__)
def test_an_error_of_a_library_in_an_answer_is_shown_and_the_chat_goes_on(
    tmp_path: Path, bug: Exception
) -> None:
    errors: list[Exception | None] = [None, bug, None]
    here = world(tmp_path, "One.", "Two.", completion_error=lambda _: errors.pop(0))
    out, err, person = here.talk("a", "b", "c")
    assert out == "One.\nTwo.\n"
    assert f"unexpected error: {type(bug).__name__}: " in err
    assert "Traceback" not in err
    assert here.questions == ["a", "c"]
    assert person.recalls == ["", "", "b", ""]


@pytest.mark.parametrize("line", ["@a.png What?", "/image a.png", "@a.png"])
def test_an_error_of_a_library_while_a_picture_is_prepared_is_shown(
    tmp_path: Path, pictures: Path, line: str
) -> None:
    here = ChatWorld(tmp_path, Brittle("One.", "Two."))
    out, err, _ = here.talk("a", line, "b")
    assert out == "One.\nTwo.\n"
    assert "unexpected error: ValueError: a bug" in err
    assert here.questions == ["a", "b"]


def test_a_picture_that_the_next_model_cannot_take_ends_nothing(
    tmp_path: Path, pictures: Path
) -> None:
    here = world(tmp_path, "One.")
    here.models["brittle"] = Brittle()
    # Staged for one model, and counted again for the other in the loop itself.
    out, err, _ = here.talk("/image a.png", "/model brittle", "", "", "/model fake", "What?")
    assert err.count("unexpected error: ValueError: a bug") == 1
    assert out == "One.\n"


def test_a_model_that_fails_with_an_error_of_a_library_gives_way_to_the_former(
    tmp_path: Path,
) -> None:
    here = world(tmp_path, "One.", "Two.")

    def fail(progress: object) -> FakeEngine:
        raise KeyError("no such weight")

    here.loads["odd"] = fail
    here.loads["fake"] = lambda progress: FakeEngine("Two.")
    out, err, _ = here.talk("a", "/model odd", "b", "b")
    assert "cannot load `odd`: KeyError: 'no such weight'" in err
    assert "fake answers again" in err
    assert out == "One.\nTwo.\n"


def test_the_line_that_failed_can_be_sent_again_without_a_second_picture(
    tmp_path: Path, pictures: Path
) -> None:
    errors: list[Exception | None] = [MemoryLimitError("out of memory"), None]
    here = world(tmp_path, "Red.", completion_error=lambda _: errors.pop(0))
    here.talk("@a.png What?", "@a.png What?")
    assert [len(request.attachments) for request in here.engine.requests] == [1]
    assert here.chat.turns.staged == []


def test_the_same_picture_can_still_be_attached_twice(tmp_path: Path, pictures: Path) -> None:
    here = world(tmp_path, "Same.")
    here.talk("/image a.png", "@a.png Are both the same?")
    assert len(here.engine.requests[0].attachments) == 2


def test_a_question_that_cannot_be_saved_leaves_no_picture_staged(
    tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = world(tmp_path, "Red.")
    saves = OpenSession.ask
    failures = [SessionError("cannot save the session: no space left on device")]

    def ask(self: OpenSession, *arguments: object) -> None:
        if failures:
            raise failures.pop()
        saves(self, *arguments)  # type: ignore[arg-type]  # passed on

    monkeypatch.setattr(OpenSession, "ask", ask)
    _, err, _ = here.talk("@a.png What?", "@a.png What?")
    assert "no space left" in err
    assert [len(request.attachments) for request in here.engine.requests] == [1]


def test_a_question_that_cannot_be_taken_back_at_once_is_taken_back_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    errors: list[Exception | None] = [MemoryLimitError("out of memory"), None]
    here = world(tmp_path, "One.", completion_error=lambda _: errors.pop(0))
    takes_back = OpenSession.roll_back
    failures = [SessionError("cannot save the session: no space left on device")]

    def roll_back(self: OpenSession) -> object:
        if failures:
            raise failures.pop()
        return takes_back(self)

    monkeypatch.setattr(OpenSession, "roll_back", roll_back)
    out, _, _ = here.talk("a", "b")
    assert (out, here.questions) == ("One.\n", ["b"])


@pytest.mark.parametrize("line", ["/exit", "/forget 1", "/stats", "exit"])
def test_after_an_error_a_command_works_at_once(tmp_path: Path, line: str) -> None:
    errors: list[Exception | None] = [None, None, MemoryLimitError("out of memory")]
    here = world(tmp_path, "One.", "Two.", completion_error=lambda _: errors.pop(0))
    here.talk("a", "b", "c", line)
    assert len(here.engine.requests) == 2


def test_leaving_waits_no_longer_for_an_answer_that_was_abandoned(tmp_path: Path) -> None:
    engine = Busy()
    here = ChatWorld(tmp_path, engine)
    begun = time.monotonic()
    here.chat.close()
    assert time.monotonic() - begun < 10
    engine.is_done.set()


class Brittle(FakeEngine):
    """A model whose processor has a bug with pictures."""

    def prepare(self, request: object, *, open_image: object = None) -> Prepared:
        """Fail if there is a picture."""
        if request.attachments:  # type: ignore[attr-defined]  # a GenerationRequest
            raise ValueError("a bug")
        return super().prepare(request)  # type: ignore[arg-type]  # as above


class Busy(FakeEngine):
    """A model that cannot be closed before it has ended a long computation."""

    def __init__(self) -> None:
        super().__init__()
        self.is_done = Event()

    def stream(self, prepared: Prepared, *, cancel: Event | None = None) -> Iterator[TokenChunk]:
        """Wait."""
        yield TokenChunk("", 0)

    def close(self) -> None:
        """Wait for the end."""
        self.is_done.wait(60)
