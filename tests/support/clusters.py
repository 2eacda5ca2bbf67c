"""A cluster in this process, with the actors that a Ray cluster would have on its nodes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from idefics_cli.caption.executors.cluster import ActorLost, Node, NodeShare
from idefics_cli.caption.executors.ray_actor import RayActor, find_versions


@dataclass
class LocalCluster:
    """A cluster whose actors are on nodes of the names "n1", "n2" and so on, in turn.

    Attributes:
        found: Its nodes.
        versions: Other versions that a node has, by its name.
        full_until: Number of actors from which on none finds a place.
        share: What each actor gets.
        actors: All actors.
    """

    found: Sequence[Node] = (Node(0, 1), Node(0, 1))
    versions: Mapping[str, Mapping[str, str | None]] = field(default_factory=dict)
    full_until: int = 1000
    share: NodeShare = field(default_factory=NodeShare)
    actors: list[LocalActor] = field(default_factory=list)

    def nodes(self) -> Sequence[Node]:
        """Return the nodes."""
        return self.found

    def with_share(self, share: NodeShare) -> LocalCluster:
        """Note the share."""
        self.share = share
        return self

    def hire(self) -> LocalActor:
        """Return an actor on the next node."""
        actor = LocalActor(self, f"n{len(self.actors) % len(self.found) + 1}")
        self.actors.append(actor)
        return actor


class LocalActor:
    """An actor of `LocalCluster`; a test sets `lost` to let it die."""

    def __init__(self, cluster: LocalCluster, node: str) -> None:
        self._cluster, self.node = cluster, node
        self._number = len(cluster.actors)
        self._actor = RayActor()
        self._has_begun = False
        self.lost: ActorLost | None = None
        self.was_killed = False

    def describe(self, wait_seconds: float) -> tuple[str, Mapping[str, str | None]] | None:
        """Return the name and the versions of the node."""
        if self._number >= self._cluster.full_until:
            time.sleep(0.01)
            return None
        return self.node, {**find_versions(), **self._cluster.versions.get(self.node, {})}

    def run(self, function: bytes) -> bytes:
        """Call the function here."""
        return self._actor.run(function)

    def begin(self, task: bytes) -> None:
        """Begin to work in a thread."""
        self._actor.begin(task)
        self._has_begun = True

    def add(self, pictures: bytes) -> None:
        """Give it pictures."""
        self._actor.add(pictures)

    def events(self) -> bytes:
        """Return its events."""
        events = self._actor.events()
        if self.lost is not None:
            raise self.lost
        return events

    def stop(self) -> None:
        """Let it finish its batch."""
        self._actor.stop()

    def kill(self) -> None:
        """Let it end."""
        self.was_killed = True
        if self._has_begun:
            self._actor.stop()
