"""The writes of a connection: what is joined, and when it is written."""

from __future__ import annotations

import asyncio

from idefics_cli.server.connections import JoinedWrites


class _Transport(asyncio.Transport):
    """Notes each write, and the end."""

    def __init__(self) -> None:
        super().__init__()
        self.written: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))

    def close(self) -> None:
        self.written.append(b"closed")

    def is_closing(self) -> bool:
        return self.written[-1:] == [b"closed"]


def test_bytes_that_do_not_belong_to_an_answer_are_written_at_once() -> None:
    transport = _Transport()
    writes = JoinedWrites(transport, joins=lambda: False)
    writes.write(b"100 Continue")
    writes.write(b"next")
    assert transport.written == [b"100 Continue", b"next"]


def test_the_bytes_of_an_answer_are_one_write() -> None:
    transport = _Transport()
    writes = JoinedWrites(transport, joins=lambda: True)
    writes.write(b"head ")
    writes.write(b"text")
    assert transport.written == []
    writes.flush()
    writes.flush()
    assert transport.written == [b"head text"]


def test_nothing_is_lost_at_the_end() -> None:
    transport = _Transport()
    writes = JoinedWrites(transport, joins=lambda: True)
    writes.write(b"last")
    assert not writes.is_closing()
    writes.close()
    assert transport.written == [b"last", b"closed"]
    assert writes.is_closing()
