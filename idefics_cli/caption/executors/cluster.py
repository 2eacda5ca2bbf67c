"""The executor on a cluster: one worker for each place of it, whichever node the place is on."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from threading import Event, Thread
from typing import Protocol, TypeVar

from idefics_cli.caption.executors.base import NamedFactory
from idefics_cli.caption.executors.node import NodeTask, blind
from idefics_cli.caption.executors.ray_actor import find_versions
from idefics_cli.caption.executors.reading import MakeReader, PictureReader
from idefics_cli.caption.executors.remote import RemoteExecutor
from idefics_cli.caption.executors.worker_protocol import (
    Hire,
    Inbox,
    Task,
    WorkerEnded,
    WorkerEvent,
    WorkerLoading,
    WorkerNamed,
)
from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.job import CaptionJob
from idefics_cli.core.errors import IdeficsError
from idefics_cli.core.sources import kind_of_source
from idefics_cli.core.types import CaptionRecord
from idefics_cli.engine.protocol import EngineFactory
from idefics_cli.images.tars import split_member

_PLACE_SECONDS = 2.0
_PLACES_UNTIL_TOLD = 3
_END_SECONDS = 5.0
T = TypeVar("T")


class ActorLost(Exception):
    """An actor has died.

    Attributes:
        blames_pictures: As in `WorkerEnded`.
    """

    def __init__(self, reason: str, *, blames_pictures: bool = True) -> None:
        super().__init__(reason)
        self.blames_pictures = blames_pictures


class Actor(Protocol):
    """A `RayActor` on a node. Every method but `kill` may raise `ActorLost`."""

    def describe(self, wait_seconds: float) -> tuple[str, Mapping[str, str | None]] | None:
        """Return `RayActor.describe`; None if the actor has no place on a node yet."""
        ...

    def run(self, function: bytes) -> bytes:
        """Return `RayActor.run`."""
        ...

    def begin(self, task: bytes) -> None:
        """Call `RayActor.begin`."""
        ...

    def add(self, pictures: bytes) -> None:
        """Call `RayActor.add`, and do not wait."""
        ...

    def events(self) -> bytes:
        """Return `RayActor.events`."""
        ...

    def stop(self) -> None:
        """Call `RayActor.stop`, and do not wait."""
        ...

    def kill(self) -> None:
        """End the actor at once, also one without a place; idempotent."""
        ...


@dataclass(frozen=True, slots=True)
class NodeShare:
    """What each worker needs of a node: a number of GPUs and of processors."""

    gpus: int = 0
    cpus: int = 1


@dataclass(frozen=True, slots=True)
class Node:
    """A node of a cluster, with the number of GPUs and of processors that it lends."""

    gpus: int
    cpus: int


class Cluster(Protocol):
    """Machines on which actors find a place."""

    def nodes(self) -> Sequence[Node]:
        """Return the nodes that there are now."""
        ...

    def with_share(self, share: NodeShare) -> Cluster:
        """Return the cluster, on which each actor gets *share*."""
        ...

    def hire(self) -> Actor:
        """Return a new actor, which may have to wait for its place."""
        ...


def cluster_executor(
    factory: EngineFactory,
    job: CaptionJob,
    *,
    cluster: Cluster,
    make_reader: MakeReader = PictureReader,
    workers: Sequence[NamedFactory] = (),
) -> RemoteExecutor:
    """Return the executor that runs *job* on *cluster*.

    Args:
        factory: Makes the engine of a single worker, if there are no *workers*. It is pickled.
        job: The job.
        cluster: The cluster.
        make_reader: Makes the reader of its items. It is pickled.
        workers: The factories of the engines, one for each worker.
    """
    plain = replace(job, pictures=(), others=())
    folder, witness = os.getcwd(), _witness(job.pictures)
    hires = []
    for name, each in workers or [("1", factory)]:
        task = NodeTask(Task(each, plain, make_reader), folder, witness)
        hires.append(Hire(name, partial(ClusterWorker, cluster, task)))
    return RemoteExecutor(
        hires,
        batch_size=max(1, job.batch_size // len(job.asked)),
        total=len(job.pictures),
    )


def run_on(cluster: Cluster, function: Callable[[], T], tell: Callable[[str], None]) -> T:
    """Call *function*, which is pickled, on a node with the versions of this machine.

    Args:
        cluster: The cluster.
        function: What to call.
        tell: Gets a sentence if this has to wait for a node.

    Raises:
        IdeficsError: If the node has other versions, or is lost; or an error of *function*.
    """
    actor, waited = cluster.hire(), 0
    try:
        while (described := actor.describe(_PLACE_SECONDS)) is None:
            waited += 1
            if waited == _PLACES_UNTIL_TOLD:
                tell("the cluster has no free place for a worker now; waiting for one")
        check_versions(*described)
        result: T | Exception = pickle.loads(actor.run(pickle.dumps(function)))
    except ActorLost as lost:
        raise IdeficsError(f"a worker on the cluster died: {lost}") from lost
    finally:
        actor.kill()
    if isinstance(result, Exception):
        raise result
    return result


def _witness(pictures: Sequence[CaptionItem]) -> str | None:
    """Return the first of a few pictures that is a file which exists here."""
    for picture in pictures[:16]:
        file = _file_of(picture)
        if file is not None and os.path.exists(file):
            return file
    return None


def _file_of(picture: CaptionItem) -> str | None:
    """Return the path of the file that holds *picture*: its own, or that of a tar archive."""
    source = picture.attachment.source
    if kind_of_source(source) != "file":
        return None
    member = split_member(source)
    return source if member is None else member[0]


def check_versions(node: str, versions: Mapping[str, str | None]) -> None:
    """Raise an IdeficsError if *node* does not have the versions of this machine."""
    own = find_versions()
    for package in ("idefics-cli", *own):
        here, there = own[package], versions.get(package)
        if package == "python":  # Ray itself checks it, but for the last number
            here, there = _without_patch(here), _without_patch(there)
        if here == there:
            continue
        hint = f"`pip install {package}=={here}` on that node"
        if package == "python":
            hint = f"Python {here} on that node"
        if there is None:
            raise IdeficsError(f"the node {node} lacks {package}", hint=hint)
        raise IdeficsError(
            f"the node {node} has {package} {there}, and this machine {here}", hint=hint
        )


def _without_patch(version: str | None) -> str | None:
    return version and ".".join(version.split(".")[:2])


class ClusterWorker:
    """A worker on a node of a cluster; see `CaptionWorker`.

    Args:
        cluster: The cluster.
        task: What the worker does, without the name of the node.
        inbox: Receives its events.
    """

    def __init__(self, cluster: Cluster, task: NodeTask, inbox: Inbox) -> None:
        self._actor = cluster.hire()
        self._task = task
        self._inbox = inbox
        self._is_killed = Event()
        # Key of a picture that it has -> path of its file.
        self._files: dict[str, str] = {}
        self._thread = Thread(target=self._attend, daemon=True)
        self._thread.start()

    def add(self, pictures: Sequence[CaptionItem]) -> None:
        """Send *pictures*; see `CaptionWorker.add`."""
        for picture in pictures:
            if (file := _file_of(picture)) is not None:
                self._files[picture.key] = file
        self._actor.add(pickle.dumps(tuple(pictures)))

    def stop(self) -> None:
        """Send the order to stop; see `CaptionWorker.stop`."""
        self._actor.stop()

    def kill(self) -> None:
        """Kill the actor; see `CaptionWorker.kill`."""
        self._is_killed.set()
        self._actor.kill()
        self._thread.join(_END_SECONDS)

    def _attend(self) -> None:
        try:
            ended = self._receive_events()
        except ActorLost as lost:
            ended = WorkerEnded(str(lost), blames_pictures=lost.blames_pictures)
        except IdeficsError as error:
            ended = WorkerEnded(error=error, blames_pictures=False)
        self._actor.kill()
        self._put(ended)

    def _receive_events(self) -> WorkerEnded:
        self._put(WorkerLoading("waiting for a free place on the cluster"))
        while (described := self._actor.describe(_PLACE_SECONDS)) is None:
            if self._is_killed.is_set():
                return WorkerEnded()
        node, versions = described
        self._put(WorkerNamed(node))
        check_versions(node, versions)
        self._put(WorkerLoading("loading"))
        self._actor.begin(pickle.dumps(replace(self._task, node=node)))
        while True:
            events: list[WorkerEvent] = pickle.loads(self._actor.events())
            for event in events:
                if isinstance(event, WorkerEnded):
                    return event
                if isinstance(event, CaptionRecord):
                    self._check_sight(node, event)
                self._put(event)

    def _check_sight(self, node: str, record: CaptionRecord) -> None:
        """Raise an IdeficsError if the picture of *record* is missing on the node, but not here."""
        file = self._files.pop(record.file_name, None)
        if record.error_kind == "missing" and file is not None and os.path.exists(file):
            raise blind(node, file)

    def _put(self, event: WorkerEvent) -> None:
        self._inbox.put((self, event))
