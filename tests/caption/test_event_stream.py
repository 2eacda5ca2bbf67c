"""Events of workers travel as bytes, which come in any pieces, and are read in one thread."""

from __future__ import annotations

import os
from collections.abc import Sequence

import pytest

from idefics_cli.caption.events import Ready
from idefics_cli.caption.executors.event_stream import EventReader, event_bytes
from idefics_cli.caption.executors.worker_protocol import (
    Inbox,
    Received,
    WorkerEnded,
    WorkerEvent,
    WorkerLoading,
)
from idefics_cli.caption.item import CaptionItem
from idefics_cli.core.types import CaptionRecord


class Idle:
    """A worker that does nothing."""

    def add(self, pictures: Sequence[CaptionItem]) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""

    def kill(self) -> None:
        """Do nothing."""


EVENTS: tuple[WorkerEvent, ...] = (
    WorkerLoading("reading", 0.5),
    Ready("0123abc"),
    CaptionRecord("a.jpg", caption="A cat. " * 100, sha256="ab" * 32),
    WorkerEnded("it died"),
)


@pytest.mark.parametrize("size", [1, 3, 64, 1000, 1 << 16])
def test_events_are_the_same_in_any_pieces(size: int) -> None:
    data = b"".join(map(event_bytes, EVENTS))
    reader, found = EventReader(), list[WorkerEvent]()
    for at in range(0, len(data), size):
        found += reader.feed(data[at : at + size])
    assert tuple(found) == EVENTS


@pytest.mark.parametrize("text", [b"hello", b"a library says something\n", b"\0\0\0\1no"])
def test_printed_text_is_refused_at_once(text: bytes) -> None:
    with pytest.raises(ValueError, match="not a pickle"):
        EventReader().feed(text)


def test_a_torn_event_is_not_given() -> None:
    assert EventReader().feed(event_bytes(EVENTS[2])[:-1]) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows cannot watch pipes")
def test_one_call_takes_the_events_of_all_pipes_and_those_that_were_put() -> None:
    inbox, pipes = Inbox(), [os.pipe() for _ in range(3)]
    readers = [EventReader() for _ in pipes]
    workers = [Idle() for _ in range(3)]

    def watch(number: int) -> None:
        def receive() -> list[Received]:
            events = readers[number].feed(os.read(pipes[number][0], 1 << 16))
            return [(workers[number], event) for event in events]

        inbox.watch(pipes[number][0], receive)

    for number in range(3):
        watch(number)
    assert inbox.take(0) == []
    for number in range(3):
        os.write(pipes[number][1], event_bytes(Ready(str(number))) * 2)
    inbox.put((workers[0], WorkerEnded()))
    expected = [(worker, Ready(str(number))) for number, worker in enumerate(workers)] * 2
    found = inbox.take(10)
    assert found[-1] == (workers[0], WorkerEnded())
    assert sorted(found[:-1], key=str) == sorted(expected, key=str)

    inbox.forget(pipes[1][0])
    os.write(pipes[1][1], event_bytes(Ready("1")))
    assert inbox.take(0) == []
    inbox.close()
    for pair in pipes:
        for end in pair:
            os.close(end)
