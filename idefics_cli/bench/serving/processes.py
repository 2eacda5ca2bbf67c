"""The servers of both sides, each in a process of its own."""

from __future__ import annotations

import http.client
import os
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from types import MappingProxyType

from idefics_cli.bench.cold_start.processes import process_error

_START_SECONDS = 1800.0
_END_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class ServerCommand:
    """A server to start.

    Attributes:
        name: Name of its side, for messages.
        command: Program and arguments; `{port}` stands for the port.
        model: The model that requests name.
        environ: Variables beside those of this process.
    """

    name: str
    command: Sequence[str]
    model: str
    environ: Mapping[str, str] = field(default_factory=lambda: MappingProxyType({}))


OpenServer = Callable[[ServerCommand], AbstractContextManager[int]]
"""Starts a server, and gives its port inside the `with` block."""


@contextmanager
def open_server(order: ServerCommand) -> Iterator[int]:
    """Start a server, wait until it answers, and yield its port.

    Raises:
        IdeficsError: If it ends before it answers.
    """
    port = _free_port()
    command = [part.replace("{port}", str(port)) for part in order.command]
    # stderr goes to a file, because a process blocks when a pipe that nobody reads is full.
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=errors,
            env={**os.environ, **order.environ},
        )
        try:
            deadline = time.monotonic() + _START_SECONDS
            while not _is_healthy(port):
                if process.poll() is not None or time.monotonic() > deadline:
                    errors.seek(0)
                    code = process.poll()
                    name = f"the server of {order.name}"
                    raise process_error(name, 1 if code is None else code, errors.read())
                time.sleep(0.1)
            yield port
        finally:
            process.terminate()
            try:
                process.wait(_END_SECONDS)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _is_healthy(port: int) -> bool:
    """Return whether a server answers at *port* and has its model."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
    try:
        connection.request("GET", "/health")
        answer = connection.getresponse()
        state = answer.read()
        return answer.status == 200 and not any(word in state for word in (b"loading", b"unloaded"))
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()
