"""The connections of the server: HTTP/1.1 with a deadline for heads, and errors in JSON."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import h11
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from idefics_cli.server.errors import ApiError
from idefics_cli.server.exchange import ClientGoneError
from idefics_cli.server.replies import to_json

# `struct linger`: close at once, and drop what is not sent yet.
_DROP_UNSENT = struct.pack("hh" if sys.platform == "win32" else "ii", 1, 0)
# After an answer to a request that was not read, at most this many of its bytes are dropped.
_DROPPED_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """The limits of all connections.

    Attributes:
        head_seconds: Time in which the head of a request must be there.
        write_seconds: A client that reads nothing for so long is given up.
        most: Largest number of connections.
    """

    head_seconds: float = 10.0
    write_seconds: float = 60.0
    most: int = 256


class GuardedConnection(H11Protocol):
    """One connection. A head that does not end in time, and one connection too many, are closed."""

    limits = ConnectionLimits()

    # Any: uvicorn's arguments.
    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # uvicorn gives the app to the task of each request.
        self._app, self.app = self.app, self._run_app
        self._head_timer: asyncio.TimerHandle | None = None
        self._dropped_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn
        """Begin the deadline of the first head."""
        self._writes = JoinedWrites(transport, joins=self._is_answering)
        super().connection_made(self._writes)  # type: ignore[arg-type]  # what uvicorn uses of it
        if len(self.connections) > self.limits.most:
            self._refuse(
                ApiError(503, "too many connections", code="server_is_overloaded"),
                b"Service Unavailable",
                b"Retry-After: 5\r\n",
            )
            return
        self._start_timer()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes of a request."""
        if self.transport.is_closing():
            return
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            if self._head_timer is None and self.conn.trailing_data[0]:
                self._start_timer()
            return
        self._stop_timer()
        if self.conn.their_state is h11.SEND_BODY and self.conn.our_state is h11.DONE:
            self._dropped_bytes += len(data)
            if self._dropped_bytes > _DROPPED_BYTES:
                self.transport.close()

    def on_response_complete(self) -> None:
        """Begin the deadline of a head that came in part with the last request."""
        self._writes.flush()
        super().on_response_complete()
        if self.conn.their_state is h11.IDLE and self.conn.trailing_data[0]:
            self._start_timer()

    def send_400_response(self, msg: str) -> None:
        """Answer bytes that are no HTTP; *msg* is not used."""
        self._stop_timer()
        self._refuse(ApiError(400, "this is not a valid HTTP request"), b"Bad Request")

    async def _run_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_whole(message: Message) -> None:
            if self.flow.write_paused:
                try:
                    async with asyncio.timeout(self.limits.write_seconds):
                        await self.flow.drain()
                except TimeoutError:
                    self._give_up()
                    raise ClientGoneError from None
            await send(message)
            if message["type"] == "http.response.body":
                self._writes.flush()

        await self._app(scope, receive, send_whole)

    def _give_up(self) -> None:
        """Drop the connection, and what the client does not read.

        `close` would wait for ever to send it, and after `abort` alone the system would still hold
        up to megabytes for minutes.
        """
        connection = self.transport.get_extra_info("socket")
        with suppress(OSError):  # the client may have closed it in this moment
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _DROP_UNSENT)
        self.transport.abort()

    def _is_answering(self) -> bool:
        return self.cycle is not None and self.cycle.response_started

    def _refuse(self, error: ApiError, reason: bytes, headers: bytes = b"") -> None:
        """Answer *error* and close the connection."""
        body = to_json(error.body())
        head = b"HTTP/1.1 %d %s\r\nContent-Type: application/json\r\n" % (error.status, reason)
        length = b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
        if self._can_answer():
            self.transport.write(head + headers + length + body)
        self.transport.close()

    def _can_answer(self) -> bool:
        """Return whether the next bytes are the beginning of an answer.

        An answer that has begun cannot be followed by another one. Without one, only the request
        whose body is read gets the answer; the app of that request must then write nothing.
        """
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            return True
        if cycle.response_started or not cycle.more_body:
            return False
        cycle.disconnected = True
        cycle.message_event.set()
        return True

    def _start_timer(self) -> None:
        self._stop_timer()
        self._head_timer = self.loop.call_later(self.limits.head_seconds, self._end_head)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _end_head(self) -> None:
        self._head_timer = None
        if self.conn.trailing_data[0]:
            error = ApiError(408, "the request came too slowly", code="request_timeout")
            self._refuse(error, b"Request Timeout")
        else:
            self.transport.close()


class JoinedWrites:
    """A transport that joins what belongs together: the head of an answer and its first bytes.

    Each write costs a system call, after which this thread waits until the inference thread lets
    it run again.

    Args:
        transport: Writes, and does all else that a transport does.
        joins: Whether bytes are kept until `flush`, or until the transport is closed.
    """

    def __init__(self, transport: asyncio.Transport, *, joins: Callable[[], bool]) -> None:
        self._transport = transport
        self._joins = joins
        self._kept: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Write *data* after what is kept, or keep it, too."""
        self._kept.append(data)
        if not self._joins():
            self.flush()

    def flush(self) -> None:
        """Write what is kept."""
        if self._kept:
            data, self._kept = b"".join(self._kept), []
            self._transport.write(data)

    def close(self) -> None:
        """Write what is kept, and close the transport."""
        self.flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


def connection_class(limits: ConnectionLimits) -> type[GuardedConnection]:
    """Return the class of connections with *limits*, for uvicorn."""
    return type("LimitedConnection", (GuardedConnection,), {"limits": limits})
