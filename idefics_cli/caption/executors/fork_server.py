"""The process that imports the libraries of an engine once, and forks for each worker."""

from __future__ import annotations

import os
import signal
import socket
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress

from idefics_cli.caption.executors.forks import CODE, EARLY_FORK, MESSAGE_BYTES, RUNNING
from idefics_cli.caption.executors.worker import main as work
from idefics_cli.core.imports import quick_imports
from idefics_cli.engine.factory import import_engine


def serve(control: socket.socket) -> None:
    """Obey the messages of a `ForkServer` until it is closed; return in each fork.

    Args:
        control: The other end of its socket.
    """
    # A fork has only the thread that forks, and would wait for ever for the other threads of a
    # pool. So no thread starts here, and nothing is computed.
    with suppress(ImportError, OSError, MemoryError), quick_imports():  # each fork tells why
        import torch  # noqa: F401  # for its side effect
    while True:
        message, streams, _, _ = socket.recv_fds(control, MESSAGE_BYTES, 3)
        kind, _, number = message.rpartition(b" ")
        if not message:
            os._exit(0)
        if kind == CODE:
            ended, status = os.waitpid(int(number), os.WNOHANG)
            code = b"%d" % os.waitstatus_to_exitcode(status) if ended else RUNNING
            control.send(b"%s %s" % (message, code))
            continue
        if kind != EARLY_FORK:
            import_engine()
        if streams:
            process_id = os.fork()
            # Without the id, the run would kill the server to end the fork. So the fork tells it
            # before its first answer, and the server for a fork that ends before it can.
            control.send(b"%s %d" % (message, process_id or os.getpid()))
            if not process_id:
                _adopt(streams)
                return
            for stream in streams:
                os.close(stream)


def _adopt(streams: Sequence[int]) -> None:
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)


def main() -> None:
    """Serve the process that started this one; each fork works for it."""
    # Only the run decides what Ctrl-C and SIGTERM mean.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # if it were ignored, there would be no exit code
    warnings.filterwarnings("ignore")
    with socket.socket(fileno=os.dup(sys.stdin.fileno())) as control:
        serve(control)
    work()
