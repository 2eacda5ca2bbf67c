"""A running server: its socket, its signals, and its end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import uvicorn

from idefics_cli.core.errors import EXIT_DONE, EXIT_INTERRUPTED, IdeficsError, UsageError
from idefics_cli.engine.protocol import EngineFactory
from idefics_cli.server.app import make_app
from idefics_cli.server.connections import ConnectionLimits, connection_class
from idefics_cli.server.service import ServerOptions, Service

_IDLE_SECONDS = 30  # a connection without a request is closed
_HEAD_BYTES = 64 * 1024
_BACKLOG = 128
_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def open_socket(host: str, port: int) -> socket.socket:
    """Return a socket that listens at *host* and *port*.

    Raises:
        UsageError: If the host is not one of this machine.
        IdeficsError: If another program has the port.
    """
    # An address of IPv6 may stand in brackets, as in a URL.
    plain = host[1:-1] if host[:1] == "[" and host[-1:] == "]" else host
    try:
        found = socket.getaddrinfo(plain, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:
        raise UsageError(
            f"`--host {host}` is not a host", hint="127.0.0.1 is this machine only"
        ) from error
    family, kind, protocol, _, address = found[0]
    made = socket.socket(family, kind, protocol)
    if sys.platform == "win32":
        # There, SO_REUSEADDR would let another program take the same port.
        made.setsockopt(socket.SOL_SOCKET, socket.SO_EXCLUSIVEADDRUSE, 1)
    else:
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind(address)
        # With SO_REUSEADDR, two servers can bind one port until one of them listens.
        made.listen(_BACKLOG)
    except OSError as error:
        made.close()
        if error.errno == errno.EADDRINUSE:
            raise IdeficsError(
                f"another program has the port {port} of {host}",
                hint="choose another one, as with `--port 8001`, or any free one with `--port 0`",
            ) from error
        raise UsageError(
            f"cannot listen at {host}, port {port}: {error.strerror}",
            hint="`--host 127.0.0.1 --port 8000` works on most machines",
        ) from error
    return made


@dataclass(frozen=True, slots=True)
class Lifetime:
    """When a server begins and ends.

    Attributes:
        drain_seconds: Time for running requests after the first signal.
        ready: Called when the model is loaded.
        connections: The limits of connections.
        signals: The signals that end it; none in a thread that is not the main thread.
    """

    drain_seconds: float = 30.0
    ready: Callable[[], None] = lambda: None
    connections: ConnectionLimits = field(default_factory=ConnectionLimits)
    signals: tuple[signal.Signals, ...] = _SIGNALS


class RunningServer:
    """A server that runs until a signal, or until `stop`.

    Args:
        options: What it does.
        factory: Loads the model.
        listener: A bound socket, which the server closes.
        tell: Called with a line for each request, and about the model.
        lifetime: When it begins and ends.
    """

    def __init__(
        self,
        options: ServerOptions,
        factory: EngineFactory,
        listener: socket.socket,
        *,
        tell: Callable[[str], None],
        lifetime: Lifetime | None = None,
    ) -> None:
        self._options = options
        self._factory = factory
        self._listener = listener
        self._tell = tell
        self._lifetime = lifetime or Lifetime()
        self.loop: asyncio.AbstractEventLoop | None = None
        self._server: _Uvicorn | None = None
        self._exit_code = EXIT_DONE
        self._signals = 0
        self.service: Service | None = None
        """The parts of the server, once it runs."""

    def run(self) -> int:
        """Serve until the end, and return the exit code of the process.

        Raises:
            IdeficsError: If the model cannot be loaded at the beginning.
        """
        # What uvicorn says is in the answers and in our own lines.
        logging.getLogger("uvicorn").setLevel(logging.CRITICAL)
        with asyncio.Runner() as runner:
            return runner.run(self._run())

    def stop(self) -> None:
        """End the server as SIGTERM does; safe in any thread."""
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self._on_signal, signal.SIGTERM)

    async def _run(self) -> int:
        self.loop = asyncio.get_running_loop()
        service = self.service = Service(self._options, self._factory, tell=self._tell)
        lifetime = self._lifetime
        config = uvicorn.Config(
            make_app(service, tell=self._tell),
            http=connection_class(lifetime.connections),
            ws="none",
            lifespan="off",
            loop="asyncio",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=_IDLE_SECONDS,
            h11_max_incomplete_event_size=_HEAD_BYTES,
            timeout_graceful_shutdown=int(lifetime.drain_seconds) + 5,
        )
        server = self._server = _Uvicorn(config)
        former = {each: signal.signal(each, self._note_signal) for each in lifetime.signals}
        serving = asyncio.ensure_future(server.serve(sockets=[self._listener]))
        try:
            await self._load(service, serving)
            await serving
        finally:
            server.should_exit = True
            with contextlib.suppress(asyncio.CancelledError):
                await serving
            await service.close()
            for each, handler in former.items():
                signal.signal(each, handler)
        return self._exit_code

    async def _load(self, service: Service, serving: asyncio.Future[None]) -> None:
        """Load the model, unless the server is ended before."""
        loading = asyncio.ensure_future(service.engine.load())
        waiting: list[asyncio.Future[Any]] = [loading, serving]
        await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
        if loading.done():
            loading.result()
            self._lifetime.ready()
        else:
            loading.cancel()

    def _note_signal(self, number: int, frame: FrameType | None) -> None:
        # Loops have no handlers of signals on Windows.
        if self.loop is not None:
            self.loop.call_soon_threadsafe(self._on_signal, signal.Signals(number))

    def _on_signal(self, number: signal.Signals) -> None:
        self._signals += 1
        self._exit_code = EXIT_INTERRUPTED if number == signal.SIGINT else EXIT_DONE
        assert self.loop is not None
        assert self.service is not None
        if self._signals == 1:
            self._tell("shutting down: running requests are finished")
            self.service.drain()
            self._draining = asyncio.ensure_future(self._drain(self.service))
        else:
            self.service.end_all()
            self._end()

    async def _drain(self, service: Service) -> None:
        deadline = asyncio.get_running_loop().time() + self._lifetime.drain_seconds
        self._end()
        while service.calls and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.02)
        service.end_all()

    def _end(self) -> None:
        assert self._server is not None
        self._server.should_exit = True


class _Uvicorn(uvicorn.Server):
    """A server of uvicorn that leaves the signals to us: it would raise them again at its end."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
