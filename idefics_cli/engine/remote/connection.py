"""One exchange with a server over HTTP. Another thread can break it off at any time."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from threading import Lock
from urllib.parse import urlsplit

from idefics_cli import __version__
from idefics_cli.core.closing import Closing

_CONNECT_SECONDS = 10.0
# A server computes the whole prompt before the first byte.
_FIRST_BYTE_SECONDS = 600.0
# A line of a stream is longer than the text in it; no reply has so many characters.
_MOST_LINE_BYTES = 1 << 20
_MOST_ANSWER_BYTES = 4 << 20
_MOST_STREAM_BYTES = 64 << 20


class ConnectError(Exception):
    """A server that cannot be reached; the message is the reason."""


class BrokenError(Exception):
    """An answer that broke off, or did not go on in time; the message is the reason."""


class BrokenOffError(Exception):
    """An exchange that `HttpExchange.break_off` ended."""


class HttpExchange(Closing):
    """One request and its answer, on a connection of its own.

    It follows no redirect, and asks no proxy and no `.netrc`: the key goes to the server that the
    user named, and to no other.

    Args:
        url: Address of the request.
        key: The key of the server; "" for none.
        silence_seconds: Longest wait for more of an answer that has begun.
        first_byte_seconds: Longest wait for the beginning of the answer.

    Attributes:
        status: Status of the answer.
        headers: Headers of the answer, with names in lower case.
    """

    def __init__(
        self,
        url: str,
        *,
        key: str = "",
        silence_seconds: float = 60.0,
        first_byte_seconds: float = _FIRST_BYTE_SECONDS,
    ) -> None:
        self._parts = urlsplit(url)
        self._key = key
        self._silence_seconds = silence_seconds
        self._first_byte_seconds = first_byte_seconds
        self._lock = Lock()
        self._socket: socket.socket | None = None
        self._response: http.client.HTTPResponse | None = None
        self._connection: http.client.HTTPConnection | None = None
        self._is_broken_off = False
        self.status = 0
        self.headers: Mapping[str, str] = {}

    def send(self, body: object = None) -> None:
        """Send *body* as JSON, or ask for the address without one; wait for the status.

        Raises:
            ConnectError: If the server cannot be reached.
            BrokenError: If it gives no answer.
            BrokenOffError: If `break_off` was called.
        """
        connection = self._connect()
        data = None if body is None else json.dumps(body).encode()
        headers = {"User-Agent": f"idefics-cli/{__version__}", "Accept": "*/*"}
        headers |= {} if data is None else {"Content-Type": "application/json"}
        headers |= {"Authorization": f"Bearer {self._key}"} if self._key else {}
        try:
            connection.request("POST" if data else "GET", self._parts.path, data, headers)
        except (OSError, http.client.HTTPException) as error:
            # A server may answer, and close the connection, before it has read a large body.
            with suppress(OSError, http.client.HTTPException):
                self._read_head(connection)
                return
            raise self._broken(error) from error
        try:
            self._read_head(connection)
        except (OSError, http.client.HTTPException) as error:
            raise self._broken(error) from error

    def read(self) -> bytes:
        """Return the rest of the answer, cut after some megabytes.

        Raises:
            BrokenError: If it breaks off.
            BrokenOffError: If `break_off` was called.
        """
        return b"".join(self._pieces(_MOST_ANSWER_BYTES, None))

    def lines(self) -> Iterator[bytes]:
        """Yield the lines of the answer as they arrive.

        Raises:
            BrokenError: If it breaks off, or is far too long.
            BrokenOffError: If `break_off` was called.
        """
        return self._pieces(_MOST_STREAM_BYTES, _MOST_LINE_BYTES)

    def break_off(self) -> None:
        """End the exchange now, in any thread; the server sees that its client has left."""
        with self._lock:
            self._is_broken_off = True
            if self._socket is not None:
                with suppress(OSError):
                    self._socket.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Close the connection; idempotent."""
        with self._lock:
            self._socket = None
        for one in (self._response, self._connection):
            if one is not None:
                one.close()

    def _connect(self) -> http.client.HTTPConnection:
        host, port = self._parts.hostname or "", self._parts.port
        connection: http.client.HTTPConnection
        if self._parts.scheme == "https":
            connection = http.client.HTTPSConnection(
                host, port, timeout=_CONNECT_SECONDS, context=_tls_context()
            )
        else:
            connection = http.client.HTTPConnection(host, port, timeout=_CONNECT_SECONDS)
        self._connection = connection
        try:
            connection.connect()
        except (OSError, UnicodeError) as error:  # UnicodeError: a name that is no host name
            raise ConnectError(_reason(error)) from error
        with self._lock:
            self._socket = connection.sock
            if self._is_broken_off:
                raise BrokenOffError
        connection.sock.settimeout(self._first_byte_seconds)
        return connection

    def _read_head(self, connection: http.client.HTTPConnection) -> None:
        open_socket = self._socket
        self._response = response = connection.getresponse()
        self.status = response.status
        self.headers = {name.lower(): value for name, value in response.getheaders()}
        if open_socket is not None:
            # http.client gives up the socket if the answer ends with the connection.
            open_socket.settimeout(self._silence_seconds)

    def _pieces(self, most: int, most_line: int | None) -> Iterator[bytes]:
        response, count = self._response, 0
        assert response is not None  # `send` has set it
        try:
            while (
                data := response.read1(65536) if most_line is None else response.readline(most_line)
            ):
                count += len(data)
                if most_line is not None and (count > most or len(data) >= most_line):
                    raise BrokenError("the answer is far too long")
                yield data
                if count > most:
                    return
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._broken(error) from error
        if self._is_broken_off:
            raise BrokenOffError

    def _broken(self, error: Exception) -> Exception:
        return BrokenOffError() if self._is_broken_off else BrokenError(_reason(error))


# Every request has a connection of its own, and reading the certificates of the system for each
# would take 17 ms of computing.
@cache
def _tls_context() -> ssl.SSLContext:
    return ssl.create_default_context()


def _reason(error: Exception) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, ConnectionRefusedError):
        return "nothing listens there"
    if isinstance(error, socket.gaierror):
        return "the name of the host is unknown"
    if isinstance(error, ssl.SSLError):
        return f"no secure connection: {error.reason or error}"
    if isinstance(error, ConnectionError | http.client.RemoteDisconnected):
        return "the connection broke"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    if isinstance(error, http.client.IncompleteRead):
        return "the answer broke off"
    return f"no HTTP ({type(error).__name__})"
