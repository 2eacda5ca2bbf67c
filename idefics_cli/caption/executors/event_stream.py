"""The events of a worker as bytes: a length of 4 bytes, then the pickled event."""

from __future__ import annotations

import pickle

from idefics_cli.caption.executors.worker_protocol import WorkerEvent

_LENGTH_BYTES = 4


def event_bytes(event: WorkerEvent) -> bytes:
    """Return the bytes of *event*."""
    data = pickle.dumps(event)
    return len(data).to_bytes(_LENGTH_BYTES, "big") + data


class EventReader:
    """Makes events of bytes that come in pieces."""

    def __init__(self) -> None:
        self._data = b""

    def feed(self, data: bytes) -> list[WorkerEvent]:
        """Return the events that *data* completes.

        Raises:
            ValueError: If the bytes are not those of `event_bytes`, or it cannot be unpickled.
        """
        data, self._data = self._data + data, b""
        events: list[WorkerEvent] = []
        at = 0
        while len(data) > (begin := at + _LENGTH_BYTES):
            # Text that something else printed would be taken for an enormous length.
            if data[begin : begin + 1] != pickle.PROTO:
                raise ValueError("it is not a pickle")
            end = begin + int.from_bytes(data[at:begin], "big")
            if len(data) < end:
                break
            events.append(pickle.loads(data[begin:end]))
            at = end
        self._data = data[at:]
        return events
