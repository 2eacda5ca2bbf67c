"""The connections of one download: another thread can close them, and redirects stay public."""

from __future__ import annotations

import socket
from collections.abc import Callable
from contextlib import suppress
from threading import Event
from typing import Protocol

from requests.adapters import HTTPAdapter
from urllib3 import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.connection import HTTPConnection, HTTPSConnection

from idefics_cli.images.addresses import AddressPolicy, PinnedAdapter


class PrivateAddressError(Exception):
    """A server on the internet redirects to *address*, which only this network reaches."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self.address = address


class _Connected(Protocol):
    @property
    def sock(self) -> socket.socket | None: ...


class Connections:
    """The connections of one download, in the order of its redirects.

    A connection through a proxy is not known here: the proxy chooses the server.

    Args:
        is_public: Whether an IP address belongs to a server on the internet.

    Attributes:
        is_closed: Set by `close`.
    """

    def __init__(self, is_public: Callable[[str], bool]) -> None:
        self._is_public = is_public
        # The sockets are kept here for `close`. If a server marks the end of its answer by closing
        # the connection, http.client removes the socket from its connection object during the
        # answer.
        self._made: list[socket.socket] = []
        self._has_public = False
        self.is_closed = Event()

    def adapter(self, policy: AddressPolicy | None = None) -> HTTPAdapter:
        """Return an adapter of requests that makes its connections here.

        Args:
            policy: Which servers it may connect to; None for any.
        """
        note = self._note

        class NotedHttp(HTTPConnection):
            def connect(self) -> None:
                super().connect()
                note(self)

        class NotedHttps(HTTPSConnection):
            def connect(self) -> None:
                super().connect()
                note(self)

        class HttpPool(HTTPConnectionPool):
            ConnectionCls = NotedHttp

        class HttpsPool(HTTPSConnectionPool):
            ConnectionCls = NotedHttps

        adapter = HTTPAdapter() if policy is None else PinnedAdapter(policy)
        adapter.poolmanager.pool_classes_by_scheme = {"http": HttpPool, "https": HttpsPool}
        return adapter

    def close(self) -> None:
        """End every wait for data of a server; it then fails in the thread that waits."""
        self.is_closed.set()
        for made in self._made:
            # `shutdown` wakes a thread that waits for data. `close` would leave it waiting.
            with suppress(OSError, ValueError):
                made.shutdown(socket.SHUT_RDWR)

    def _note(self, connection: _Connected) -> None:
        """Note a connection before it is used.

        Raises:
            PrivateAddressError: If it leads from a public address to a private one.
            ConnectionAbortedError: After `close`.
        """
        assert connection.sock is not None
        self._made.append(connection.sock)
        if self.is_closed.is_set():
            raise ConnectionAbortedError
        address = str(connection.sock.getpeername()[0])
        if self._is_public(address):
            self._has_public = True
        elif self._has_public:
            raise PrivateAddressError(address)
