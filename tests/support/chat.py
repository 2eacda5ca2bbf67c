"""A chat with a fake model, and a person who types."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event

from idefics_cli.chat.attachments import PictureOpener
from idefics_cli.chat.commands.dispatch import Dispatcher
from idefics_cli.chat.dialogue import Chat
from idefics_cli.chat.loading import Loading, LoadPlan, Phase
from idefics_cli.chat.store.sessions import NullStore, SessionStore
from idefics_cli.core.errors import ModelError
from idefics_cli.core.types import ImageLimits, Progress, Sampling, TokenChunk
from idefics_cli.engine.protocol import Engine, Prepared
from idefics_cli.ui.chat.repl import Repl
from idefics_cli.ui.terminal.console import Console
from tests.support.commands import Stream
from tests.support.fakes import FakeClock, FakeEngine


class Lines:
    """A person who types *lines*, and then Ctrl-D; an exception is the key that raises it."""

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self._lines = list(lines)
        self.seen: list[tuple[str, str]] = []
        self.recalls: list[str] = []

    def read(self, prompt: str, *, text: str = "", recall: str = "") -> str:
        """Return the next line; remember what was offered."""
        self.seen.append((prompt, text))
        self.recalls.append(recall)
        if not self._lines:
            raise EOFError
        line = self._lines.pop(0)
        if isinstance(line, str):
            return line
        raise line

    @property
    def drafts(self) -> list[str]:
        """The texts that were offered for editing."""
        return [text for _, text in self.seen]


class ChatWorld:
    """A chat with a fake model, whose sessions lie in a folder of the test.

    Args:
        folder: The folder of the test.
        engine: The model, which is loaded from the start.
        store: The sessions; None keeps them in *folder*.
        offline: Fetch no pictures.

    Attributes:
        models: The model that each name loads.
        loads: What is called instead to load the model of a name.
    """

    def __init__(
        self,
        folder: Path,
        engine: FakeEngine,
        store: SessionStore | NullStore | None = None,
        *,
        offline: bool = True,
    ) -> None:
        self.models: dict[str, FakeEngine] = {"fake": engine}
        self.loads: dict[str, Callable[[Progress], Engine]] = {}
        self.sessions = SessionStore(folder / "data")
        self.engine = engine
        kept = store or self.sessions
        loading = Loading(*self._find("fake"))
        assert loading.engine is engine  # waits for it
        self.chat = Chat(
            loading,
            kept.create("fake"),
            store=kept,
            find_model=self._find,
            sampling=Sampling(),
            displays={"plain": False, "preview": True},
            pictures=PictureOpener(ImageLimits(), offline=offline),
            clock=FakeClock(),
        )
        self.dispatcher = Dispatcher(self.chat, Path.cwd())

    def talk(self, *lines: str | type[BaseException], **environ: str) -> tuple[str, str, Lines]:
        """Let a person type *lines*; return stdout, stderr and the person."""
        person = Lines(*lines)
        out, err = self.talk_as(person, **environ)
        return out, err, person

    def talk_as(self, person: Lines, **environ: str) -> tuple[str, str]:
        """Let *person* type; return stdout and stderr."""
        out, err = Stream(terminal=True), Stream(terminal=True)
        console = Console(out, err, environ={"NO_COLOR": "1", **environ})
        Repl(self.dispatcher, console, person).run()
        return out.text(), err.text()

    @property
    def questions(self) -> list[str]:
        """The texts of the turns."""
        return [turn.text for turn in self.chat.conversation.turns]

    def _find(self, name: str) -> tuple[str, LoadPlan]:
        if name not in self.models | self.loads:
            raise ModelError(f"unknown model `{name}`")
        return name, lambda warn: self.loads.get(name, lambda progress: self.models[name])


def world(folder: Path, *answers: str, **options: object) -> ChatWorld:
    """Return a chat with a model that gives *answers*; *options* are those of `FakeEngine`."""
    return ChatWorld(folder, FakeEngine(*answers, **options))  # type: ignore[arg-type]  # passed on


class Interrupted(FakeEngine):
    """A model that says numbers until it is cancelled; Ctrl-C is pressed after *count* of them."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self._count = count

    def stream(self, prepared: Prepared, *, cancel: Event | None = None) -> Iterator[TokenChunk]:
        """Yield numbers."""
        assert cancel is not None
        for made in range(100):
            if made == self._count:
                os.kill(os.getpid(), signal.SIGINT)
            if cancel.is_set():
                yield TokenChunk("", made, "cancelled")
                return
            yield TokenChunk(f"{made} ", made + 1)


class Gate:
    """Loads a model when the gate opens: *engine*, or the error that is given instead."""

    def __init__(self, engine: FakeEngine | Exception) -> None:
        self._engine = engine
        self.opened = Event()

    def load(self, progress: Progress) -> Engine:
        """Wait for the gate, and return the engine."""
        progress("loading", 0.4)
        assert self.opened.wait(30)
        if isinstance(self._engine, Exception):
            raise self._engine
        return self._engine


class AwaitedLoading(Loading):
    """A model behind *gate*; something happens as soon as a question waits for it."""

    def __init__(self, gate: Gate, *, interrupts: bool = False) -> None:
        super().__init__("slow", lambda warn: gate.load)
        self._gate = gate
        self._interrupts = interrupts

    def wait(self, cancel: Event, phase: Phase) -> Engine | None:
        """Open the gate, or press Ctrl-C, and wait for the model."""
        if self._interrupts:
            self._interrupts = False
            os.kill(os.getpid(), signal.SIGINT)
        else:
            self._gate.opened.set()
        return super().wait(cancel, phase)
