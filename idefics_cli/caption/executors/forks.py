"""Processes that another one forks, after it has imported the libraries of an engine."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from contextlib import suppress
from itertools import count
from threading import RLock
from typing import IO

from idefics_cli.caption.executors.worker_process import start_python
from idefics_cli.core.closing import Closing

IMPORT = b"import"
"""A message without an answer: the libraries are imported now."""
FORK, EARLY_FORK = b"fork", b"early fork"
"""Messages, followed by a number, with the three standard streams of a new process.

The value of the answer is the id of the process. The libraries of an engine are imported before
`FORK`, and only torch before `EARLY_FORK`."""
CODE = b"code"
"""A message, followed by the id of such a process; the value is its exit code, or `RUNNING`."""
RUNNING = b"running"
MESSAGE_BYTES = 64
"""Longest message. An answer is the message and the value."""


class ForkServer(Closing):
    """A process that imports the libraries of an engine once, and forks for each worker.

    So workers need less processor time for their start, and share the memory of the libraries.
    It needs Linux. CUDA does not work in a fork.

    Raises:
        OSError: If the system starts no process.
    """

    def __init__(self) -> None:
        self._control, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._numbers = count()
        self._answers: dict[bytes, bytes] = {}
        # A thread must not receive the answer for which another one waits.
        self._lock = RLock()
        with theirs:
            streams = theirs.fileno(), subprocess.DEVNULL, subprocess.DEVNULL
            self._process = start_python("fork_server", streams)

    def fork(self, kind: bytes = FORK) -> Fork:
        """Return a process that starts as soon as the libraries are imported.

        Args:
            kind: `FORK` or `EARLY_FORK`.

        Raises:
            OSError: If the server has ended, or too many files are open.
        """
        message = b"%s %d" % (kind, next(self._numbers))
        pipes = [os.pipe() for _ in range(3)]
        (stdin, near_stdin), (near_stdout, stdout), (near_stderr, stderr) = pipes
        fork = Fork(self, message, near_stdin, near_stdout, near_stderr)
        try:
            socket.send_fds(self._control, [message], [stdin, stdout, stderr])
        except OSError:
            fork.close()
            raise
        finally:
            for far_end in (stdin, stdout, stderr):
                os.close(far_end)
        return fork

    def import_all(self) -> None:
        """Let the server import all libraries now."""
        with suppress(OSError):
            self._control.send(IMPORT)

    def exit_code(self, fork: Fork) -> int | None:
        """Return the exit code of *fork*; None if it runs or has not started.

        If the server has ended, its exit code stands for that of *fork*.
        """
        process_id = self._process_id(fork)
        if process_id is None:
            return self._process.poll()
        message = b"%s %d" % (CODE, process_id)
        with self._lock, suppress(OSError):
            self._answers.pop(message, None)
            self._control.send(message)
            while message not in self._answers and self._receive():
                pass
        code = self._answers.get(message)
        if code is None:
            return self._process.wait()
        return None if code == RUNNING else int(code)

    def kill(self, fork: Fork) -> None:
        """Kill *fork*, or the server if it has not forked it yet."""
        process_id = self._process_id(fork)
        if process_id is None:
            self._process.kill()
        else:
            # The id is not yet that of another process, because its exit code is not known.
            with suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)

    def close(self) -> None:
        """End the server, but no fork; idempotent."""
        self._process.kill()
        self._process.wait()
        self._control.close()

    def _process_id(self, fork: Fork) -> int | None:
        """Return the id of *fork*; None if it has not started."""
        with self._lock, suppress(OSError):
            while self._receive(socket.MSG_DONTWAIT):
                pass
        value = self._answers.get(fork.message)
        return None if value is None else int(value)

    def _receive(self, flags: int = 0) -> bool:
        """Receive an answer; False if the server has ended."""
        answer = self._control.recv(MESSAGE_BYTES, flags)
        message, _, value = answer.rpartition(b" ")
        self._answers[message] = value
        return bool(answer)


class Fork:
    """A process that a `ForkServer` forks; see `PipedProcess`.

    Args:
        server: The server.
        message: The message to it.
        stdin: The near end of a pipe.
        stdout: Likewise.
        stderr: Likewise.
    """

    def __init__(
        self, server: ForkServer, message: bytes, stdin: int, stdout: int, stderr: int
    ) -> None:
        self.message = message
        self._server = server
        self._code: int | None = None
        self.stdin: IO[bytes] = open(stdin, "wb")  # noqa: SIM115 (stays open)
        self.stdout: IO[bytes] = open(stdout, "rb")  # noqa: SIM115 (stays open)
        self.stderr: IO[bytes] = open(stderr, "rb")  # noqa: SIM115 (stays open)

    def poll(self) -> int | None:
        """Return the exit code, or None as long as the process runs or has not started."""
        if self._code is None:
            self._code = self._server.exit_code(self)
        return self._code

    def kill(self) -> None:
        """End the process; it may need a moment."""
        if self._code is None:
            self._server.kill(self)

    def close(self) -> None:
        """Close the pipes."""
        for pipe in (self.stdin, self.stdout, self.stderr):
            pipe.close()
