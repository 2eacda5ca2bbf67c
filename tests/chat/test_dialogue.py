"""The chat at the keyboard with a fake model: every command, every error, and Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from PIL import Image
from rich.cells import cell_len

from idefics_cli.chat.commands.dispatch import complete, take
from idefics_cli.chat.commands.table import COMMANDS
from idefics_cli.chat.dialogue import Chat
from idefics_cli.chat.loading import Loading, LoadPlan
from idefics_cli.chat.store.sessions import NullStore, SessionStore
from idefics_cli.core.errors import IdeficsError, MemoryLimitError, ModelError, UsageError
from idefics_cli.core.types import ImageLimits, Progress, Sampling, TokenChunk
from idefics_cli.engine.protocol import Engine, Prepared
from idefics_cli.ui.chat.repl import Repl
from idefics_cli.ui.terminal.console import Console
from tests.support.commands import Stream
from tests.support.fakes import FAKE_SPEC, FakeClock, FakeEngine


class Lines:
    """A person who types *lines*, and then Ctrl-D; an exception is the key that raises it."""

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self._lines = list(lines)
        self.seen: list[tuple[str, str]] = []

    def read(self, prompt: str, *, text: str = "") -> str:
        self.seen.append((prompt, text))
        if not self._lines:
            raise EOFError
        line = self._lines.pop(0)
        if isinstance(line, str):
            return line
        raise line

    @property
    def drafts(self) -> list[str]:
        return [text for _, text in self.seen]


class World:
    """A chat with a fake model, in a folder of its own."""

    def __init__(
        self,
        folder: Path,
        engine: FakeEngine,
        store: SessionStore | NullStore | None = None,
        *,
        offline: bool = True,
    ) -> None:
        self.models = {"fake": engine}
        self.store = store or SessionStore(folder / "data")
        self.engine = engine
        loading = Loading("fake", self._find("fake"))
        assert loading.engine is engine  # it is there from the start
        self.chat = Chat(
            loading,
            self.store.create("fake"),
            store=self.store,
            find_model=self._find,
            sampling=Sampling(),
            displays={"plain": False, "preview": True},
            limits=ImageLimits(),
            offline=offline,
            clock=FakeClock(),
        )

    def _find(self, name: str) -> LoadPlan:
        if name not in self.models:
            raise ModelError(f"unknown model `{name}`")
        return lambda warn: lambda progress: self._load(name)

    def _load(self, name: str) -> Engine:
        return self.models[name]

    def talk(self, *lines: str | type[BaseException], **environ: str) -> tuple[str, str, Lines]:
        """Let a person type *lines*; return stdout, stderr and what he was offered."""
        out, err = Stream(terminal=True), Stream(terminal=True)
        person = Lines(*lines)
        console = Console(out, err, environ={"NO_COLOR": "1", **environ})
        Repl(self.chat, console, person).run()
        return out.text(), err.text(), person


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder, which is the current one, with a.png, b.png and `my dog.png`."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, size in {"a.png": (8, 6), "b.png": (10, 4), "my dog.png": (5, 5)}.items():
        Image.new("RGB", size, "red").save(folder / name)
    monkeypatch.chdir(folder)
    return folder


def world(tmp_path: Path, *answers: str, **options: object) -> World:
    return World(tmp_path, FakeEngine(*answers, **options))  # type: ignore[arg-type]


def texts(world: World) -> list[str]:
    return [turn.text for turn in world.chat.conversation.turns]


# Asking


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


@pytest.mark.parametrize(
    "line",
    ["{p}/a.png What?", "'{p}/my dog.png' What?", "What? {p}/my\\ dog.png", "@a.png What?",
     "file://{p}/my%20dog.png What?", "What is in @a.png?", '@"my dog.png" What?'],
)  # fmt: skip
def test_a_picture_in_the_line_goes_with_the_text(
    tmp_path: Path, pictures: Path, line: str
) -> None:
    here = world(tmp_path, "Red.")
    out, err, _ = here.talk(line.format(p=pictures))
    (request,) = here.engine.requests
    assert out == "Red.\n"
    assert len(request.attachments) == 1
    assert "png" not in request.messages[0].text
    assert request.messages[0].text.startswith("What")
    assert "[1]" in err
    assert "10 tokens" in err


def test_staged_pictures_are_shown_and_sent_with_the_next_text_only(
    tmp_path: Path, pictures: Path
) -> None:
    here = world(tmp_path, "Red.", "Yes.")
    _, err, person = here.talk("/image *.png", "What?", "Sure?")
    assert [len(r.messages[0].attachments) for r in here.engine.requests] == [3, 3]
    assert [len(r.attachments) for r in here.engine.requests] == [3, 3]
    assert [prompt for prompt, _ in person.seen] == ["> ", "3 pictures > ", "> ", "> "]
    assert err.startswith(
        "[1] a.png, 8x6 landscape, 10 tokens, goes with your next text\n[2] b.png, 10x4 l"
    )


@pytest.mark.parametrize(
    "line", ["/image nothere.png", "@nothere.png What?", "What is in /nothere/x.png?", "/image *.x"]
)
def test_a_missing_picture_is_an_error_at_once_and_nothing_is_asked(
    tmp_path: Path, pictures: Path, line: str
) -> None:
    here = world(tmp_path)
    _, err, person = here.talk("/image a.png", line)
    assert "error: " in err
    assert here.engine.requests == []
    assert len(here.chat.turns.staged) == 1
    assert person.drafts[-1] == ("" if line.startswith("/") else line)


def test_a_picture_that_exif_turns_is_told_so(tmp_path: Path, pictures: Path) -> None:
    image = Image.new("RGB", (8, 6))
    exif = image.getexif()
    exif[0x0112] = 6  # the camera was turned
    image.save(pictures / "turned.jpg", exif=exif)
    _, err, _ = world(tmp_path).talk("/image turned.jpg")
    assert "[1] turned.jpg, 6x8 portrait, turned upright, 10 tokens" in err


def test_of_several_pictures_all_are_attached_or_none(tmp_path: Path, pictures: Path) -> None:
    (pictures / "broken.png").write_text("hello")
    here = world(tmp_path)
    here.talk("/image a.png broken.png")
    assert here.chat.turns.staged == []


@pytest.mark.parametrize("text", ["What is 3/4?", "mail me@x.org", "see /etc/passwd", "a @ b"])
def test_a_text_that_names_no_picture_is_left_alone(tmp_path: Path, text: str) -> None:
    here = world(tmp_path, "Yes.")
    here.talk(text)
    assert here.engine.requests[0].messages[0].text == text


def test_an_error_takes_the_turn_back_and_offers_the_text_again(
    tmp_path: Path, pictures: Path
) -> None:
    errors: list[Exception | None] = [MemoryLimitError("out of memory", hint="fewer"), None]
    here = world(tmp_path, "Red.", completion_error=lambda requests: errors.pop(0))
    out, err, person = here.talk("/image a.png", "What?", "What?")
    assert (out, errors) == ("Red.\n", [])
    assert "error: out of memory\n" in err
    assert person.drafts[2] == "What?"
    assert [prompt for prompt, _ in person.seen][2:] == ["1 picture > ", "> "]
    assert texts(here) == ["What?"]


# Ctrl-C


class Interrupted(FakeEngine):
    """Ctrl-C is pressed after *count* words; then it goes on until it is cancelled."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def stream(self, prepared: Prepared, *, cancel: Event | None = None) -> Iterator[TokenChunk]:
        assert cancel is not None
        for made in range(100):
            if made == self._count:
                os.kill(os.getpid(), signal.SIGINT)
            if cancel.is_set():
                yield TokenChunk("", made, "cancelled")
                return
            yield TokenChunk(f"{made} ", made + 1)


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said(tmp_path: Path) -> None:
    here = World(tmp_path, Interrupted(3))
    out, err, _ = here.talk("Count")
    (turn,) = here.chat.conversation.turns
    assert out == "0 1 2 \n"
    assert err == "note: interrupted; what was said is kept\n"
    assert turn.reply is not None
    assert (turn.reply.text, turn.reply.is_interrupted) == ("0 1 2 ", True)


def test_ctrl_c_before_the_first_word_takes_the_question_back(tmp_path: Path) -> None:
    here = World(tmp_path, Interrupted(0))
    out, err, person = here.talk("Count")
    assert (out, texts(here)) == ("", [])
    assert "taken back" in err
    assert person.drafts == ["", "Count"]


def test_a_second_ctrl_c_does_not_wait_for_the_engine(tmp_path: Path) -> None:
    class Deaf(FakeEngine):
        def stream(
            self, prepared: Prepared, *, cancel: Event | None = None
        ) -> Iterator[TokenChunk]:
            yield TokenChunk("So ", 1)
            while True:
                os.kill(os.getpid(), signal.SIGINT)

    here = World(tmp_path, Deaf())
    assert here.talk("Hi", "/exit")[0] == "So \n"
    assert here.chat.conversation.turns[0].reply is not None


# Commands


RIGHT = {
    "image": ("/image b.png", "[2] b.png, 10x4 landscape, 10 tokens"),
    "paste": None,  # needs a clipboard
    "images": ("/images", "a.png, 8x6 landscape, turn 1, 10 tokens"),
    "drop": ("/drop 1", "dropped [1] "),
    "undo": ("/undo", "took back: What?"),
    "retry": None,  # answers; see below
    "edit": None,
    "editor": None,
    "forget": None,
    "clear": ("/clear", "a new beginning"),
    "system": ("/system Be brief.", "instruction set"),
    "set": ("/set temperature=0.5 top_k=3", "temperature = 0.5\ntop_k = 3"),
    "model": ("/model other", "the model is other now"),
    "stats": ("/stats", "context: 15 of 1000 tokens, 2%"),
    "save": ("/save trip", "saved as trip"),
    "load": None,
    "export": ("/export json x.json", "wrote x.json"),
    "help": ("/help drop", "/drop N: Take picture N out of what the model sees"),
    "exit": ("/exit", ""),
}


def test_every_command_is_tried() -> None:
    assert RIGHT.keys() == COMMANDS.keys()


@pytest.mark.parametrize("name", [name for name, use in RIGHT.items() if use])
def test_a_command_does_what_it_says(name: str, tmp_path: Path, pictures: Path) -> None:
    line, told = RIGHT[name]  # type: ignore[misc]
    here = world(tmp_path, "A red one.")
    here.models["other"] = FakeEngine(spec=replace(FAKE_SPEC, name="other"))
    _, err, _ = here.talk("@a.png What?", line)
    assert told in err.partition("landscape, 10 tokens\n")[2]
    assert "error" not in err


@pytest.mark.parametrize(
    ("line", "error"),
    [
        ("/image", "a picture is missing"),
        ("/paste it", "/paste takes nothing after it, not `it`"),
        ("/images 1", "/images takes nothing after it, not `1`"),
        ("/drop", "a number is missing"),
        ("/drop x", "`x` is no number"),
        ("/drop 7", "there is no picture 7"),
        ("/editor x", "/editor takes nothing after it, not `x`"),
        ("/undo 2", "/undo takes nothing after it, not `2`"),
        ("/retry temperature=hot", "`temperature` must be a number, not `hot`"),
        ("/retry plain=on", "no setting `plain`"),
        ("/edit 9", "there is no question 9"),
        ("/forget 1", "there are 1 questions"),
        ("/clear all", "/clear takes nothing after it, not `all`"),
        ("/set temprature=1", "no setting `temprature`"),
        ("/set top_p=3", "`top_p` must be more than 0 and 1 or less, not `3.0`"),
        ("/set top_p", "a value for `top_p` is missing"),
        ("/model nope", "unknown model `nope`"),
        ("/stats x", "/stats takes nothing after it, not `x`"),
        ("/save", "a name is missing"),
        ("/load", "a name is missing"),
        ("/export pdf", "`pdf` is no format"),
        ("/export", "a format is missing"),
        ("/help nope", "no command `nope`"),
        ("/imgae a.png", "no command `/imgae`"),
        ("/nothere/a.txt", "no picture `/nothere/a.txt`"),
    ],
)
def test_wrong_use_is_an_error_and_changes_nothing(
    line: str, error: str, tmp_path: Path, pictures: Path
) -> None:
    here = world(tmp_path, "A red one.")
    here.talk("@a.png What?")
    before = here.chat.conversation
    with pytest.raises(IdeficsError) as caught:
        take(here.chat, line)
    assert str(caught.value) == error
    assert here.chat.conversation == before
    assert here.chat.model.engine is here.engine


@pytest.mark.parametrize(
    ("line", "hint"),
    [("/imgae x", "did you mean `/image`?"), ("/zzz", "`/help` lists the commands")],
)
def test_an_unknown_command_comes_with_a_suggestion(line: str, hint: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError) as caught:
        take(world(tmp_path).chat, line)
    assert caught.value.hint == hint


def test_retry_asks_the_same_again_with_other_sampling_for_once(tmp_path: Path) -> None:
    here = world(tmp_path, "One.", "Two.", "Three.")
    out, _, _ = here.talk("What?", "/retry temperature=0.7 seed=1", "And?")
    first, second, third = here.engine.requests
    assert out == "One.\nTwo.\nThree.\n"
    assert second.messages == first.messages
    assert [r.sampling.temperature for r in (first, second, third)] == [0.0, 0.7, 0.0]
    assert [m.text for m in third.messages] == ["What?", "Two.", "And?"]


def test_a_retry_that_fails_leaves_the_answer_that_was_there(tmp_path: Path) -> None:
    errors: list[Exception | None] = [None, MemoryLimitError("out of memory")]
    here = world(tmp_path, "One.", completion_error=lambda requests: errors.pop(0))
    here.talk("What?", "/retry")
    (turn,) = here.chat.conversation.turns
    assert turn.reply is not None
    assert turn.reply.text == "One."


def test_a_retry_leaves_what_is_staged_for_the_next_text(tmp_path: Path, pictures: Path) -> None:
    here = world(tmp_path, "One.", "Two.")
    here.talk("What?", "/image a.png", "/retry")
    assert len(here.chat.turns.staged) == 1


def test_edit_offers_a_question_and_goes_back_when_it_is_asked(
    tmp_path: Path, pictures: Path
) -> None:
    here = world(tmp_path, "One.", "Two.", "Three.")
    _, _, person = here.talk("@a.png What?", "And?", "/edit 1", "What is it?")
    assert person.drafts[3] == "What?"
    assert texts(here) == ["What is it?"]
    assert len(here.engine.requests[2].attachments) == 1


def test_edit_changes_nothing_until_the_new_text_is_there(tmp_path: Path) -> None:
    here = world(tmp_path, "One.", "Two.")
    here.talk("What?", "/edit 1", "", "And?")
    assert texts(here) == ["What?", "And?"]


def test_another_command_ends_the_editing(tmp_path: Path) -> None:
    here = world(tmp_path, "One.", "Two.")
    _, _, person = here.talk("What?", "/edit 1", "/images", "And?")
    assert texts(here) == ["What?", "And?"]
    assert [prompt for prompt, _ in person.seen] == ["> ", "> ", "edit 1 > ", "> ", "> "]


def test_forget_leaves_the_oldest_out_of_the_prompt(tmp_path: Path) -> None:
    here = world(tmp_path, "One.", "Two.", "Three.")
    here.talk("a", "b", "/forget 1", "c")
    assert [m.text for m in here.engine.requests[2].messages] == ["b", "Two.", "c"]


def test_dropped_pictures_are_out_of_the_prompt(tmp_path: Path, pictures: Path) -> None:
    here = world(tmp_path, "One.", "Two.")
    here.talk("/image a.png b.png", "a", "/drop 1", "c")
    assert [len(r.attachments) for r in here.engine.requests] == [2, 1]


def test_a_number_refers_to_a_picture_and_an_unknown_one_is_told(
    tmp_path: Path, pictures: Path
) -> None:
    here = world(tmp_path, "One.", "Two.")
    _, err, _ = here.talk("/image a.png b.png", "What is in [2]?", "And [3]?")
    assert here.engine.requests[0].messages[0].text == "What is in the second image?"
    assert "there is no picture [3]" in err
    assert "no picture [2]" not in err


def test_another_model_goes_on_with_the_conversation(tmp_path: Path) -> None:
    here = world(tmp_path, "One.")
    other = here.models["other"] = FakeEngine("Two.", spec=replace(FAKE_SPEC, name="other"))
    here.talk("a", "/model other", "b")
    assert [m.text for m in other.requests[0].messages] == ["a", "One.", "b"]
    assert here.engine.is_closed
    assert here.chat.conversation.model == "other"


def test_when_another_model_cannot_be_loaded_the_former_answers_on(tmp_path: Path) -> None:
    here = world(tmp_path)
    again = FakeEngine("One.")

    def load(name: str) -> Engine:
        if name == "other":
            while here.chat.conversation.pending is None:
                time.sleep(0.01)
            raise MemoryLimitError("out of memory")
        return again

    here.models["other"] = FakeEngine()
    here._load = load  # type: ignore[method-assign]
    out, err, person = here.talk("/model other", "a", "a")
    assert "error: out of memory\nnote: fake answers on\n" in err
    assert person.drafts == ["", "", "a", ""]
    assert here.engine.is_closed  # two models at a time may be more than the memory holds
    assert out == "One.\n"


class Gate:
    """A model that is there when it is opened."""

    def __init__(self, engine: Engine | MemoryLimitError) -> None:
        self.opened = Event()
        self._engine = engine

    def load(self, progress: Progress) -> Engine:
        progress("loading", 0.4)
        assert self.opened.wait(30)
        if isinstance(self._engine, MemoryLimitError):
            raise self._engine
        return self._engine


def start_loading(here: World, gate: Gate) -> None:
    here.chat.model.loading = Loading("slow", lambda warn: gate.load)
    here.chat.model.loading.start()


class Opener(Lines):
    """A person who waits for the model before the line *number*."""

    def __init__(self, here: World, gate: Gate, number: int, *lines: str) -> None:
        super().__init__(*lines)
        self._here, self._gate, self._number = here, gate, number

    def read(self, prompt: str, *, text: str = "") -> str:
        if len(self.seen) == self._number:
            self._gate.opened.set()
            while not self._here.chat.model.loading.is_ready:
                time.sleep(0.01)
        return super().read(prompt, text=text)


def test_while_the_model_loads_all_but_an_answer_can_be_had(tmp_path: Path, pictures: Path) -> None:
    gate = Gate(FakeEngine("Red."))
    here = world(tmp_path)
    start_loading(here, gate)
    out, err = Stream(terminal=True), Stream(terminal=True)
    lines = ("/image a.png", "/images", "/stats", "/set top_k=2", "", "What?")
    person = Opener(here, gate, 4, *lines)
    Repl(here.chat, Console(out, err, environ={"NO_COLOR": "1"}), person).run()
    told = err.text().splitlines()
    listed = "[1] a.png, 8x6 landscape, goes with your next text"
    assert told[:3] == [listed, listed, "model: slow, loading 40%"]
    assert "[1] takes 10 tokens" in told
    assert out.text() == "Red.\n"


def test_what_a_picture_costs_is_told_when_it_was_asked_about_at_once(
    tmp_path: Path, pictures: Path
) -> None:
    gate = Gate(FakeEngine("Red.", "Yes."))
    here = world(tmp_path)
    start_loading(here, gate)
    threading.Timer(0.3, gate.opened.set).start()
    _, err, _ = here.talk("@a.png What?", "Sure?")
    assert err == "[1] a.png, 8x6 landscape\n[1] takes 10 tokens\n\n\n"


def test_the_first_question_waits_for_the_model_and_ctrl_c_ends_the_wait(tmp_path: Path) -> None:
    gate = Gate(FakeEngine("Red."))
    here = world(tmp_path)
    start_loading(here, gate)
    timer = threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGINT))
    timer.start()
    _, err, person = here.talk("What?")
    assert "the question is taken back" in err
    assert person.drafts == ["", "What?"]
    gate.opened.set()
    assert here.talk("What?")[0] == "Red.\n"


def test_when_no_model_can_be_loaded_the_chat_ends_and_the_text_is_told(tmp_path: Path) -> None:
    gate = Gate(MemoryLimitError("out of memory"))
    here = world(tmp_path)
    start_loading(here, gate)
    err = Stream(terminal=True)
    threading.Timer(0.3, gate.opened.set).start()
    with pytest.raises(MemoryLimitError):
        Repl(here.chat, Console(Stream(terminal=True), err), Lines("What?", "And?")).run()
    assert err.text() == "not asked: What?\n"
    assert texts(here) == []


def test_settings_of_a_chat_go_into_its_requests_and_are_kept(tmp_path: Path) -> None:
    here = world(tmp_path, "One.")
    here.talk("/set temperature=0.5", "/system Be brief.", "/save trip", "a")
    (request,) = here.engine.requests
    assert request.sampling.temperature == 0.5
    assert request.messages[0].text == "Be brief."
    here.chat.turns.session.close()
    again = here.store.open("trip")  # type: ignore[union-attr]
    assert again.conversation.settings == {"temperature": 0.5}
    again.close()


def test_set_without_a_value_goes_back_to_the_start(tmp_path: Path) -> None:
    here = world(tmp_path)
    _, err, _ = here.talk("/set top_p=0.5", "/set top_p=")
    assert err == "top_p = 0.5\ntop_p = 1.0\n"


def test_a_saved_chat_is_loaded_with_what_was_said(tmp_path: Path, pictures: Path) -> None:
    first = world(tmp_path, "One.")
    first.talk("/save trip", "@a.png a")
    first.chat.turns.session.close()
    second = world(tmp_path, "Two.")
    _, err, _ = second.talk("/load trip", "b")
    assert "going on with trip: 1 question, 1 picture\n> a\nOne.\n" in err
    (request,) = second.engine.requests
    assert [m.text for m in request.messages] == ["a", "One.", "b"]
    assert len(request.attachments) == 1


def test_without_saving_nothing_can_be_loaded(tmp_path: Path) -> None:
    here = World(tmp_path, FakeEngine("One."), NullStore())
    _, err, _ = here.talk("a", "/load trip")
    assert "error: nothing is kept here" in err
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("kind", ["md", "json", "html"])
def test_an_export_has_what_was_said_and_overwrites_nothing(
    kind: str, tmp_path: Path, pictures: Path
) -> None:
    here = world(tmp_path, "A red one.")
    _, err, _ = here.talk("@a.png What is it?", f"/export {kind}", f"/export {kind}")
    text = (pictures / f"chat.{kind}").read_text(encoding="utf-8")
    assert "A red one." in text
    assert "What is it?" in text
    assert f"error: `chat.{kind}` is there already" in err


# The context


def test_a_nearly_full_context_is_announced_once(tmp_path: Path) -> None:
    here = world(tmp_path, "a " * 17 + "a", "b", context_tokens=20)
    _, err, _ = here.talk("x")
    assert "warning: 20 of 20 tokens of the context are used" in err


LONG = "c " * 59 + "c"


def crowded(tmp_path: Path) -> World:
    """Return a chat whose 53 tokens, 30 of them pictures, leave no room for `LONG` in 100."""
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
    assert "1: leave out the oldest question\n2: leave out [1], [2], [3]\n3: begin anew" in err
    assert (out, here.chat.conversation) == ("", before)
    assert person.seen[-1] == ("> ", LONG)


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


# Completion


def words(here: World, line: str) -> list[str]:
    return [candidate.text for candidate in complete(here.chat, line)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/im", ["/image", "/images"]),
        ("/image a", ["a.png"]),
        ("/image m", ["my\\ dog.png"]),
        ("look at @b", ["@b.png"]),
        ("/set temp", ["temperature="]),
        ("/set top_p=1 see", ["seed="]),
        ("/set pl", ["plain=on", "plain=off"]),
        ("/set preview=of", ["preview=off"]),
        ("/model dem", ["demo"]),
        ("/export ht", ["html"]),
        ("/help dr", ["drop"]),
        ("hello", []),
        ("/undo ", []),
    ],
)
def test_completion(line: str, expected: list[str], tmp_path: Path, pictures: Path) -> None:
    assert words(world(tmp_path), line) == expected


def test_base_models_are_not_offered(tmp_path: Path) -> None:
    names = words(world(tmp_path), "/model ")
    assert "demo" in names
    assert "idefics2-8b-base" not in names


def test_names_of_saved_chats_are_completed(tmp_path: Path) -> None:
    here = world(tmp_path, "One.")
    here.talk("/save trip", "a")
    assert words(here, "/load t") == ["trip"]


# What reaches the terminal


def test_a_screen_reader_gets_whole_sentences(tmp_path: Path) -> None:
    class Pieces(Stream):
        def write(self, text: str) -> int:
            pieces.append(text)
            return len(text)

    pieces: list[str] = []
    here = world(tmp_path, "It is a cat. It sleeps now.\nYes")
    console = Console(Pieces(terminal=True), Stream(terminal=True), environ={}, accessible=True)
    Repl(here.chat, console, Lines("What?")).run()
    assert pieces == ["It is a cat. ", "It sleeps now.\n", "Yes", "\n"]


def test_control_characters_of_an_answer_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    out, _, _ = world(tmp_path, "a\x1b[2Jb [bold]c[/bold] \r\nd").talk("Hi")
    assert out == "a␛[2Jb [bold]c[/bold] \nd\n"


def test_control_characters_in_the_name_of_a_picture_are_not_obeyed(
    tmp_path: Path, pictures: Path
) -> None:
    Image.new("RGB", (4, 4)).save(pictures / "x\x1b[2J.png")
    _, err, _ = world(tmp_path).talk("/image x*.png")
    assert "\x1b" not in err
    assert "4x4" in err


@pytest.mark.parametrize(("environ", "is_drawn"), [({"NO_COLOR": ""}, True), ({}, False)])
def test_a_picture_is_drawn_where_colours_are(
    environ: dict[str, str], is_drawn: bool, tmp_path: Path, pictures: Path
) -> None:
    environ = {"COLORTERM": "truecolor", "TERM": "xterm", **environ}
    here = world(tmp_path)
    _, err, _ = here.talk("/image a.png", **environ)
    assert ("\x1b[38;2;255;0;0;48;2;255;0;0m▀" in err) == is_drawn
    _, err, _ = here.talk("/set preview=off", "/image b.png", **environ)
    assert "▀" not in err


# The editor, the clipboard, the network, and a model that sees the last picture only


def test_a_text_can_be_written_in_an_editor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    editor = tmp_path / "my editor"
    editor.write_text("#!/bin/sh\nprintf 'What is\\n/image it?\\n' > \"$2\"\n")
    editor.chmod(0o755)
    monkeypatch.setenv("VISUAL", f"'{editor}' --wait")
    here = world(tmp_path, "Red.")
    assert here.talk("/editor")[0] == "Red.\n"
    assert texts(here) == ["What is\n/image it?"]


@pytest.mark.parametrize(
    ("editor", "told"),
    [("true", "nothing was written"), ("/no/editor", "error"), ("false", "error")],
)
def test_an_editor_that_gives_no_text_asks_nothing(
    editor: str, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISUAL", editor)
    assert told in world(tmp_path).talk("/editor")[1]


def test_a_picture_on_the_clipboard_is_attached(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = Image.new("RGB", (9, 7), "red")
    monkeypatch.setattr("PIL.ImageGrab.grabclipboard", lambda: image)
    here = world(tmp_path, "Red.")
    _, err, _ = here.talk("/paste", "What?")
    assert "[1] clipboard, 9x7 landscape, 10 tokens" in err
    (attachment,) = here.engine.requests[0].attachments
    assert Image.open(attachment.source).tobytes() == image.tobytes()


def test_a_picture_is_fetched_once(tmp_path: Path, pictures: Path) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=str(pictures))
    asked: list[str] = []

    class Server(ThreadingHTTPServer):
        def process_request(self, request: Any, client_address: Any) -> None:
            asked.append("a picture")
            super().process_request(request, client_address)

    here = World(tmp_path, FakeEngine("Red.", "Yes."), offline=False)
    with Server(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}/a.png"
        _, err, _ = here.talk(f"/image {address}", "What?", "Sure?")
        server.shutdown()
    assert f"[1] {address}, 8x6 landscape" in err
    assert asked == ["a picture"]
    assert len(here.engine.requests[1].attachments) == 1


def test_a_model_that_sees_the_last_picture_only_is_shown_the_one_it_is_asked_about(
    tmp_path: Path, pictures: Path
) -> None:
    here = world(tmp_path, "A.", "B.", "C.", spec=replace(FAKE_SPEC, family="idefics"))
    here.talk("@a.png What?", "@b.png And?", "What was in [1]?")
    digests = [Path(a.source).stem for a in here.engine.requests[2].attachments]
    first, second = (picture.digest for picture in here.chat.conversation.pictures)
    assert digests == [first, second, first]
    assert here.engine.requests[2].messages[-1].parts[-1] == "What was in the image?"


def test_out_of_memory_says_what_would_help(tmp_path: Path, pictures: Path) -> None:
    here = world(tmp_path, completion_error=lambda _: MemoryLimitError("out of memory"))
    _, err, person = here.talk("@a.png What?")
    told = " ".join(err.split())
    for help_ in ("/drop N", "fewer or smaller pictures", "--quantization 4bit"):
        assert help_ in told
    assert person.drafts[-1] == "What?"


def test_stats_tell_what_was_reused(tmp_path: Path) -> None:
    class Reusing(FakeEngine):
        def stream(
            self, prepared: Prepared, *, cancel: Event | None = None
        ) -> Iterator[TokenChunk]:
            yield TokenChunk("One.", 6, "stop", 40, 30, prefill_seconds=1.0, decode_seconds=2.0)

    here = World(tmp_path, Reusing())
    _, err, _ = here.talk("a", "/stats")
    assert "prompts: 10 tokens computed, 30 reused\n" in err
    assert "answers: 1, 6 tokens, 3.0 tokens per second\n" in err
    reply = here.chat.conversation.turns[0].reply
    assert reply is not None
    assert (reply.prompt_tokens, reply.reused_tokens) == (40, 30)


# What people type who do not know it yet


@pytest.mark.parametrize("word", ["exit", "quit", "Quit ", "bye", ":q"])
def test_a_word_that_leaves_other_tools_leaves_this_one(tmp_path: Path, word: str) -> None:
    here = world(tmp_path)
    out, err, person = here.talk(word, "never read")
    assert (out, err, len(person.drafts)) == ("", "", 1)
    assert here.engine.requests == []


def test_help_alone_is_the_command_and_in_a_sentence_is_asked(tmp_path: Path) -> None:
    assert world(tmp_path / "a").talk("help")[1] == world(tmp_path / "b").talk("/help")[1]
    here = world(tmp_path / "c", "How?", "There.")
    here.talk("help me", "exit where?")
    assert texts(here) == ["help me", "exit where?"]


@pytest.mark.parametrize(
    ("size", "shape"),
    [((224, 225), "square"), ((8, 8), "square"), ((8, 9), "portrait"), ((640, 480), "landscape")],
)
def test_a_picture_that_looks_square_is_called_so(
    tmp_path: Path, pictures: Path, size: tuple[int, int], shape: str
) -> None:
    Image.new("RGB", size).save(pictures / "x.png")
    assert f"x.png, {size[0]}x{size[1]} {shape}," in world(tmp_path).talk("/image x.png")[1]


def test_a_name_in_wide_characters_is_folded_once(tmp_path: Path, pictures: Path) -> None:
    Image.new("RGB", (8, 6)).save(pictures / "写真の名前と説明.png")
    err = world(tmp_path).talk("/image 写真の名前と説明.png", "/images", COLUMNS="40")[1]
    told = [line for line in err.splitlines() if "▀" not in line]
    assert len(told) == 6
    assert all(cell_len(line) <= 40 for line in told)
    # What goes on below begins with a blank.
    assert [line[0] for line in told] == ["[", " ", " "] * 2
