"""The executor with a process for each device of this machine."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import subprocess
import sys
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from threading import Lock, Thread

from idefics_cli.caption.executors.base import NamedFactory
from idefics_cli.caption.executors.event_stream import EventReader
from idefics_cli.caption.executors.reading import MakeReader, PictureReader
from idefics_cli.caption.executors.remote import RemoteExecutor
from idefics_cli.caption.executors.worker_protocol import (
    Hire,
    Inbox,
    Received,
    Task,
    WorkerEnded,
    WorkerEvent,
)
from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.job import CaptionJob
from idefics_cli.core.errors import IdeficsError
from idefics_cli.engine.protocol import EngineFactory

# The path of imports comes first, so that a worker imports the same modules as this process.
_PROGRAM = (
    "import pickle, sys; sys.path[:] = pickle.load(sys.stdin.buffer); "
    "from idefics_cli.caption.executors.worker import main; main()"
)
_END_SECONDS = 5.0
_READ_BYTES = 1 << 16


def process_executor(
    factory: EngineFactory,
    job: CaptionJob,
    *,
    make_reader: MakeReader = PictureReader,
    workers: Sequence[NamedFactory] = (),
) -> RemoteExecutor:
    """Return the executor that runs *job* in processes, each with an engine.

    Args:
        factory: Makes the engine of a single worker, if there are no *workers*. It is pickled.
        job: The job.
        make_reader: Makes the reader of its items. It is pickled.
        workers: The factories of the engines, one for each process.
    """
    plain = replace(job, pictures=(), others=())
    hires = [
        Hire(name, partial(ProcessWorker, Task(each, plain, make_reader)))
        for name, each in workers or [("worker", factory)]
    ]
    return RemoteExecutor(
        hires,
        batch_size=max(1, job.batch_size // len(job.asked)),
        total=len(job.pictures),
    )


class ProcessWorker:
    """A worker in a process of its own; see `CaptionWorker`.

    Args:
        task: What it does.
        inbox: Receives its events.
    """

    def __init__(self, task: Task, inbox: Inbox) -> None:
        # Ctrl-C in a terminal goes to all processes of a group. Only the run decides what it means.
        try:
            self._process = subprocess.Popen(
                # `-P` leaves out the current folder, whose files are not the user's choice to run.
                [sys.executable, "-P", "-c", _PROGRAM],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                process_group=None if os.name == "nt" else 0,
            )
        except OSError as error:
            raise IdeficsError(
                f"cannot start a worker: {error.strerror or error}", hint="take fewer workers"
            ) from error
        self._lock = Lock()
        self._lines: deque[bytes] = deque(maxlen=20)
        self._errors = Thread(target=self._read_errors, daemon=True)
        self._errors.start()
        assert self._process.stdout is not None
        self._inbox, self._pipe = inbox, self._process.stdout.fileno()
        self._reader, self._has_ended = EventReader(), False
        if os.name == "nt":
            Thread(target=self._put_events, daemon=True).start()
        else:
            inbox.watch(self._pipe, self._receive)
        self._send(sys.path)
        self._send(task)

    @property
    def process_id(self) -> int:
        """The id of the process."""
        return self._process.pid

    def add(self, pictures: Sequence[CaptionItem]) -> None:
        """Send *pictures*; see `CaptionWorker.add`."""
        self._send(tuple(pictures))

    def stop(self) -> None:
        """Send the order to stop; see `CaptionWorker.stop`."""
        self._send("stop")

    def kill(self) -> None:
        """Kill the process, and wait for its end; see `CaptionWorker.kill`."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        self._close()

    def _send(self, what: object) -> None:
        """Send *what*; if the process has died, `WorkerEnded` says so."""
        assert self._process.stdin is not None
        data = pickle.dumps(what)
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._process.stdin.write(data)
            self._process.stdin.flush()

    def _put_events(self) -> None:
        while not self._has_ended:
            for received in self._receive():
                self._inbox.put(received)

    def _receive(self) -> list[Received]:
        """Read events once; the last one of all is `WorkerEnded`."""
        events: list[WorkerEvent] = []
        try:
            data = os.read(self._pipe, _READ_BYTES)
            events += self._reader.feed(data)
            self._has_ended = not data or bool(events and isinstance(events[-1], WorkerEnded))
        except Exception:  # what came is not an event, so no other can follow
            self._process.kill()
            self._has_ended = True
        if self._has_ended:
            code = self._wait()
            if not (events and isinstance(events[-1], WorkerEnded)):
                events.append(WorkerEnded(self._reason(code)))
        return [(self, event) for event in events]

    def _wait(self) -> int:
        """Wait for the end of the process, which has closed its pipe; return its exit code."""
        try:
            code = self._process.wait(_END_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        self._close()
        return code

    def _close(self) -> None:
        assert self._process.stdout is not None
        assert self._process.stdin is not None
        if self._process.stdout.closed:  # another pipe can have the number of this one now
            return
        self._errors.join(_END_SECONDS)
        self._inbox.forget(self._pipe)
        self._process.stdout.close()
        with self._lock, contextlib.suppress(OSError):
            self._process.stdin.close()

    def _read_errors(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream, contextlib.suppress(OSError, ValueError):
            self._lines.extend(stream)

    def _reason(self, code: int) -> str:
        last = next((line for line in reversed(self._lines) if line.strip()), b"")
        told = last.decode("utf-8", "replace").strip()[:300]
        if code >= 0:
            return f"exit code {code}: {told}" if told else f"exit code {code}"
        name = signal.Signals(-code).name if -code in {*signal.Signals} else f"signal {-code}"
        if name == "SIGKILL":
            told = "perhaps there was too little memory"
        return f"killed by {name}: {told}" if told else f"killed by {name}"
