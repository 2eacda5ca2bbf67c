"""Processes of workers in tests: their engines, their answers, and a quick start.

A process imports this module to do its task, so it imports neither pytest nor torch.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from idefics_cli.caption.executors import MakeExecutor
from idefics_cli.caption.executors.event_stream import EventReader
from idefics_cli.caption.executors.processes import process_executor
from idefics_cli.caption.executors.warm import WarmProcesses
from idefics_cli.caption.executors.worker_process import WorkerProcess
from idefics_cli.caption.executors.worker_protocol import Errand, WorkerAnswer, WorkerEvent
from idefics_cli.core.errors import MemoryLimitError, ModelError
from idefics_cli.core.types import GenerationRequest, Progress
from idefics_cli.engine.protocol import Engine
from tests.support.fakes import EngineOf, FakeEngine

T = TypeVar("T")


@dataclass(frozen=True)
class Answers:
    """Answers with the id of the process.

    Attributes:
        deadly: Key of a picture whose answer kills the process.
        prints: Whether it prints to stdout first.
        seconds: How long an answer takes.
        folder: Where processes note that they answer, and wait until two do; "" for no wait. On a
            busy machine, one may start seconds later.
    """

    deadly: str = ""
    prints: bool = False
    seconds: float = 0.0
    folder: str = ""

    def __call__(self, request: GenerationRequest) -> str:
        if request.attachments[0].source == self.deadly:
            os.kill(os.getpid(), signal.SIGKILL)
        if self.prints:
            sys.stdout.write("a library says something\n")
            os.write(1, b"and so does its C code\n")
        if self.folder:
            Path(self.folder, str(os.getpid())).touch()
            deadline = time.monotonic() + 60
            while len(os.listdir(self.folder)) < 2 and time.monotonic() < deadline:
                time.sleep(0.01)
        time.sleep(self.seconds)
        return str(os.getpid())


@dataclass(frozen=True)
class TooMany:
    """The error of a batch with more requests than *limit*."""

    limit: int

    def __call__(self, requests: Sequence[GenerationRequest]) -> Exception | None:
        return MemoryLimitError("out of memory") if len(requests) > self.limit else None


@dataclass(frozen=True)
class FailsAlone:
    """The error of a batch with the picture `05.jpg`."""

    error: Exception

    def __call__(self, requests: Sequence[GenerationRequest]) -> Exception | None:
        bad = any(request.attachments[0].source == "05.jpg" for request in requests)
        return self.error if bad else None


def broken_model(*, progress: Progress | None = None) -> Engine:
    """Fail to load."""
    raise ModelError("no such model", hint="another one")


def answer_processors(request: GenerationRequest) -> str:
    """Answer with the processors that the thread may use."""
    return str(sorted(os.sched_getaffinity(0)))


def answer_parent(request: GenerationRequest) -> str:
    """Answer with the id of the parent, after a moment."""
    time.sleep(0.02)
    return str(os.getppid())


def two_workers(
    answers: Callable[[GenerationRequest], str], warm: WarmProcesses | None = None
) -> MakeExecutor:
    """Return the executor with two processes whose engines give *answers*."""
    factory = EngineOf(FakeEngine(answers))
    return partial(process_executor, workers=[("cpu:0", factory), ("cpu:1", factory)], warm=warm)


def answer_of(process: WorkerProcess, function: Callable[[], T]) -> T:
    """Return what *function* returns in *process*."""
    process.send(Errand(function, answers=True))
    reader, events = EventReader(), list[WorkerEvent]()
    while not events:
        data = os.read(process.pipe, 1 << 16)
        assert data, f"the process has ended: {process.last_line}"
        events += reader.feed(data)
    (answer,) = events
    assert isinstance(answer, WorkerAnswer)
    value: T = answer.value
    return value


def exists(process_id: int) -> bool:
    """Whether a process exists; one that has ended counts until its parent has waited for it."""
    try:
        os.kill(process_id, 0)
    except ProcessLookupError:
        return False
    return True


def without_libraries(folder: Path, *, seconds: float = 0.0) -> str:
    """Put modules into *folder* in place of torch and transformers, whose import takes seconds.

    They cannot be imported. A worker whose engine is a fake does not need them.

    Args:
        folder: An empty folder.
        seconds: How long the import of transformers takes.

    Returns:
        The folder, which must come first among those of modules.
    """
    # A server imports torch before it forks, so its forks have the modules of their tasks.
    text = "import tests.support.captioning, tests.support.workers\nraise ImportError\n"
    (folder / "torch.py").write_text(text, "utf-8")
    text = f"import time\ntime.sleep({seconds})\nraise ImportError\n"
    (folder / "transformers.py").write_text(text, "utf-8")
    return str(folder)
