"""The executor with a process for each device of this machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from threading import Thread

from idefics_cli.caption.executors.base import NamedFactory
from idefics_cli.caption.executors.event_stream import EventReader
from idefics_cli.caption.executors.reading import MakeReader, PictureReader
from idefics_cli.caption.executors.remote import RemoteExecutor
from idefics_cli.caption.executors.warm import READ_BYTES, WarmProcesses
from idefics_cli.caption.executors.worker_process import WorkerProcess
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
from idefics_cli.engine.protocol import EngineFactory


def process_executor(
    factory: EngineFactory,
    job: CaptionJob,
    *,
    make_reader: MakeReader = PictureReader,
    workers: Sequence[NamedFactory] = (),
    warm: WarmProcesses | None = None,
    processors: Sequence[frozenset[int]] = (),
) -> RemoteExecutor:
    """Return the executor that runs *job* in processes, each with an engine.

    Args:
        factory: Makes the engine of a single worker, if there are no *workers*. It is pickled.
        job: The job.
        make_reader: Makes the reader of its items. It is pickled.
        workers: The factories of the engines, one for each process.
        warm: Processes for the first workers; the caller closes it.
        processors: The processors that each worker uses, as in `Task`; all without it.
    """
    take_process = WorkerProcess if warm is None else warm.take_process

    def start(task: Task, inbox: Inbox) -> ProcessWorker:
        return ProcessWorker(take_process(), task, inbox)

    plain = replace(job, pictures=(), others=())
    workers = workers or [("worker", factory)]
    parts = processors or [frozenset()] * len(workers)
    hires = [
        Hire(name, partial(start, Task(each, plain, make_reader, part)))
        for (name, each), part in zip(workers, parts, strict=True)
    ]
    return RemoteExecutor(
        hires,
        batch_size=max(1, job.batch_size // len(job.asked)),
        total=len(job.pictures),
    )


class ProcessWorker:
    """A worker in a process of its own; see `CaptionWorker`.

    Args:
        process: The process.
        task: What it does.
        inbox: Receives its events.
    """

    def __init__(self, process: WorkerProcess, task: Task, inbox: Inbox) -> None:
        self._process, self._inbox = process, inbox
        self._reader, self._has_ended = EventReader(), False
        if os.name == "nt":
            Thread(target=self._put_events, daemon=True).start()
        else:
            inbox.watch(process.pipe, self._receive)
        process.send(task)

    def add(self, pictures: Sequence[CaptionItem]) -> None:
        """Send *pictures*; see `CaptionWorker.add`."""
        self._process.send(tuple(pictures))

    def stop(self) -> None:
        """Send the order to stop; see `CaptionWorker.stop`."""
        self._process.send("stop")

    def kill(self) -> None:
        """Kill the process, and wait for its end; see `CaptionWorker.kill`."""
        self._process.kill()
        self._end()

    def _put_events(self) -> None:
        while not self._has_ended:
            for received in self._receive():
                self._inbox.put(received)

    def _receive(self) -> list[Received]:
        """Read events once; the last one of all is `WorkerEnded`."""
        events: list[WorkerEvent] = []
        try:
            data = os.read(self._process.pipe, READ_BYTES)
            events += self._reader.feed(data)
            self._has_ended = not data or bool(events and isinstance(events[-1], WorkerEnded))
        except Exception:  # what came is not an event, so no other can follow
            self._process.kill()
            self._has_ended = True
        if self._has_ended:
            code = self._end()
            if not (events and isinstance(events[-1], WorkerEnded)):
                events.append(WorkerEnded(self._reason(code)))
        return [(self, event) for event in events]

    def _end(self) -> int:
        """Wait for the end of the process, and close its pipes; return its exit code."""
        code = self._process.wait()
        if not self._process.is_closed:  # else another pipe can have its number now
            self._inbox.forget(self._process.pipe)
            self._process.close()
        return code

    def _reason(self, code: int) -> str:
        told = self._process.last_line
        if code >= 0:
            return f"exit code {code}: {told}" if told else f"exit code {code}"
        name = signal.Signals(-code).name if -code in {*signal.Signals} else f"signal {-code}"
        if name == "SIGKILL":
            told = "perhaps there was too little memory"
        return f"killed by {name}: {told}" if told else f"killed by {name}"
