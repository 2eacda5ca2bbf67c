"""A worker on another machine: calls give it pictures, and fetch its events."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread

from idefics_cli.caption.executors.worker import GivenPictures, run_task
from idefics_cli.caption.executors.worker_protocol import Task, WorkerEnded, WorkerEvent
from idefics_cli.caption.item import CaptionItem
from idefics_cli.core.errors import IdeficsError

# A call for events waits at most this long for the first one.
_WAIT_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class NodeTask:
    """What a worker on another machine does.

    Attributes:
        task: What it does.
        folder: The current folder of the run, from which names of pictures are resolved. If the
            node has the same folder, names and messages are those of a run on one machine.
        witness: A picture that the run sees; None if no picture is a file.
        node: Name of the node.
    """

    task: Task
    folder: str
    witness: str | None = None
    node: str = ""


class NodeWorker:
    """Captions pictures in a thread of this process; any thread may call its methods.

    Args:
        what: What it does.
    """

    def __init__(self, what: NodeTask) -> None:
        self._outbox: SimpleQueue[WorkerEvent] = SimpleQueue()
        self._source = GivenPictures()
        Thread(target=self._work, args=(what,), daemon=True).start()

    def add(self, pictures: Sequence[CaptionItem]) -> None:
        """Caption *pictures*, too."""
        self._source.add(pictures)

    def stop(self) -> None:
        """Finish the current batch, and end."""
        self._source.stop.set()

    def events(self) -> list[WorkerEvent]:
        """Return the events since the last call; wait a moment for the first one."""
        events: list[WorkerEvent] = []
        with contextlib.suppress(Empty):
            events.append(self._outbox.get(timeout=_WAIT_SECONDS))
            while True:
                events.append(self._outbox.get_nowait())
        return events

    def _work(self, what: NodeTask) -> None:
        # Without the folder, the check of the witness says what is wrong.
        with contextlib.suppress(OSError):
            os.chdir(what.folder)
        if what.witness is not None and not os.path.exists(what.witness):
            self._outbox.put(WorkerEnded(error=blind(what.node, what.witness)))
            return
        self._outbox.put(run_task(what.task, self._source, self._outbox.put))


def blind(node: str, path: str) -> IdeficsError:
    """Return the error of a node that does not see the picture at *path*."""
    folder = os.path.dirname(os.path.abspath(path))
    return IdeficsError(
        f"the node {node} does not see the files in `{folder}`",
        hint="mount this folder at the same path on every node",
    )
