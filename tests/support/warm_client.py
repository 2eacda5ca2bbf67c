"""Started in place of `python`: a run of the server in `warm.py`, which has imported everything.

Sends its arguments to the server, passes signals on, and exits as the run does. It imports little,
because each run waits for that.
"""

from __future__ import annotations

import contextlib
import marshal
import os
import signal
import socket
import sys

PASSED_ON = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGWINCH")


def ask(path: str, arguments: list[str]) -> int:
    """Run *arguments* on the server; return the exit code, or the negative number of a signal."""
    started = 0

    def pass_on(number: int, frame: object) -> None:
        if started:
            # A terminal that is closed sends SIGHUP at a time when its run may have ended.
            with contextlib.suppress(ProcessLookupError):
                os.kill(started, number)

    for name in PASSED_ON:
        signal.signal(getattr(signal, name), pass_on)
    is_open = [_is_open(descriptor) for descriptor in range(3)]
    order = marshal.dumps(
        {
            "arguments": arguments,
            "environ": dict(os.environ),
            "folder": os.getcwd(),
            "open": is_open,
        }
    )
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        data = len(order).to_bytes(8) + order
        passed = [descriptor for descriptor in range(3) if is_open[descriptor]]
        sent = socket.send_fds(connection, [data], passed)
        connection.sendall(data[sent:])
        # Only the copies of the run stay open, so that a reader sees when the run closes a pipe.
        for descriptor in passed:
            os.close(descriptor)
        with connection.makefile("r") as lines:
            started = int(lines.readline())
            return int(lines.readline() or -signal.SIGKILL)


def _is_open(descriptor: int) -> bool:
    try:
        os.fstat(descriptor)
    except OSError:
        return False
    return True


if __name__ == "__main__":
    code = ask(sys.argv[1], sys.argv[2:])
    if code < 0:
        if code != -signal.SIGKILL:  # which has no handler
            signal.signal(-code, signal.SIG_DFL)
        os.kill(os.getpid(), -code)
    # `sys.exit` would flush closed streams.
    os._exit(code)
