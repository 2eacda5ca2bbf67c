"""A Python server that has imported everything `idefics` uses, and forks for each run.

A fresh process takes seconds for imports before it runs the code under test. This server imports
once, and each run is a fork of it: with the arguments, variables, folder and open files of the
caller, and with its own exit code. This file is also the client: started in place of `python`, it
sends its arguments to the server, passes signals on, and exits as the run does.
"""

from __future__ import annotations

import atexit
import contextlib
import importlib
import json
import os
import select
import signal
import socket
import sys
import threading
from typing import Any

PASSED_ON = ("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT", "SIGWINCH")
# MKL's own allocator counts per thread. In a fork it looped for ever, because it searched for
# threads that the fork does not have (torch 2.13, Python 3.12, in `mm_account_ptr_by_tid`).
PLAIN_MEMORY = {"MKL_DISABLE_FAST_MM": "1"}
MODULES = (
    "idefics_cli.caption.resume.journaled_sink",
    "idefics_cli.caption.run",
    "idefics_cli.caption.sinks.jsonl",
    "idefics_cli.caption.sinks.tsv",
    "idefics_cli.engine.local.engine",
    "idefics_cli.models.families.idefics2",
    "idefics_cli.models.families.resize",
    "idefics_cli.ui.views.progress",
    "idefics_cli.ui.chat.repl",
    "tests.support.readme_idefics",
    "transformers.models.llama.modeling_llama",
    "transformers.models.mistral.modeling_mistral",
)
# Slow imports that few commands need: the server does them when the first such command runs.
MODULES_OF_COMMANDS = {
    "doctor": ("bitsandbytes",),
    "serve": ("idefics_cli.server.connections", "idefics_cli.server.run"),
    "tune": ("peft", "idefics_cli.training.tuning.run"),
}


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
    order = {
        "arguments": arguments,
        "environ": dict(os.environ),
        "folder": os.getcwd(),
        "open": is_open,
    }
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(path)
        text = json.dumps(order).encode() + b"\n"
        passed = [descriptor for descriptor in range(3) if is_open[descriptor]]
        sent = socket.send_fds(connection, [text], passed)
        connection.sendall(text[sent:])
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


def serve(path: str) -> None:
    """Import, then fork for each order on the socket, until standard input ends.

    Returns only in a fork, which must then call `run`.
    """
    _import_all()
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # forks that wait for a run are not waited for
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        os.write(1, b"ready\n")
        while listener in select.select([listener, sys.stdin], [], [])[0]:
            connection, _ = listener.accept()
            order, descriptors = _order(connection)
            for word in order.get("arguments", ()):
                for name in MODULES_OF_COMMANDS.get(word, ()):
                    importlib.import_module(name)
            if order and not os.fork():
                listener.close()
                if _fork_run(connection, order, descriptors):
                    return
                os._exit(0)
            connection.close()
            for descriptor in descriptors:
                os.close(descriptor)
    os._exit(0)


def _import_all() -> None:
    for name in MODULES:
        importlib.import_module(name)
    # Imports that happen at first use.
    importlib.import_module("PIL.Image").init()
    with contextlib.suppress(ImportError):  # not on every system
        importlib.import_module("llvmlite.binding")
    importlib.import_module("tests.support.commands").run("config", "path")
    classes = importlib.import_module("idefics_cli.models.families.classes")
    for family in ("idefics", "idefics2", "idefics3", "smolvlm"):
        classes.config_class(family)
        classes.model_class(family)
        classes.processor_classes(family)


def _order(connection: socket.socket) -> tuple[dict[str, Any], list[int]]:
    """Return what to run, and its open files; nothing if the client is gone."""
    text, descriptors, _, _ = socket.recv_fds(connection, 1 << 16, 3)
    while not text.endswith(b"\n"):
        if not (more := connection.recv(1 << 16)):
            return {}, descriptors
        text += more
    return json.loads(text), descriptors


def _fork_run(connection: socket.socket, order: dict[str, Any], descriptors: list[int]) -> bool:
    """Fork for the run; return True in the fork, and False in the parent when the run has ended."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    child = os.fork()
    if not child:
        connection.close()
        _adopt(order, descriptors)
        return True
    for descriptor in descriptors:
        os.close(descriptor)
    connection.sendall(b"%d\n" % child)
    code = _exit_code_of(child, connection)
    with contextlib.suppress(OSError):
        connection.sendall(b"%d\n" % code)
    return False


def _exit_code_of(child: int, connection: socket.socket) -> int:
    """Wait for *child*, and kill it if the client is gone."""
    ended = 0
    while not ended:
        if select.select([connection], [], [], 0.005)[0]:
            os.kill(child, signal.SIGKILL)
        ended, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status)


def _adopt(order: dict[str, object], descriptors: list[int]) -> None:
    """Adopt the open files, variables, folder and arguments of *order*."""
    environ, folder, arguments = order["environ"], order["folder"], order["arguments"]
    assert isinstance(environ, dict)
    assert isinstance(folder, str)
    assert isinstance(arguments, list)
    is_open = order["open"]
    assert isinstance(is_open, list)
    # Duplicated first, because a descriptor may have the number of another one's target.
    moved = iter([os.dup(descriptor) for descriptor in descriptors])
    for descriptor in descriptors:
        os.close(descriptor)
    for number in range(3):
        os.close(number) if not is_open[number] else os.dup2(source := next(moved), number)
        if is_open[number]:
            os.close(source)
    os.environ.clear()
    os.environ.update(environ)
    os.chdir(folder)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        stream = _stream(number, "w" if number else "r") if is_open[number] else None
        vars(sys).update({name: stream, f"__{name}__": stream})
    sys.argv = ["-", *arguments]


def _stream(descriptor: int, mode: str) -> object:
    errors = {0: "strict", 1: "strict", 2: "backslashreplace"}[descriptor]
    return open(
        descriptor,
        mode,
        buffering=1 if os.isatty(descriptor) or descriptor == 2 else -1,
        encoding="utf-8",
        errors=errors,
        closefd=False,
    )


def run() -> None:
    """Run `-m MODULE` or `-c CODE` as Python does, and leave at once if it ends as usual.

    To free what is imported takes Python a second in a fork, which must copy the memory for it.
    """
    _, option, target, *arguments = sys.argv
    sys.argv = [option, *arguments]
    code = 0
    try:
        if option == "-m":
            import runpy

            runpy.run_module(target, run_name="__main__", alter_sys=True)
        else:
            exec(target, {"__name__": "__main__"})
    except SystemExit as end:
        if isinstance(end.code, str):
            raise
        code = end.code or 0
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as Python does
    atexit._run_exitfuncs()
    with contextlib.suppress(OSError, ValueError):  # Python tells this error and exits with 120
        for stream in (sys.stdout, sys.stderr):
            if stream is not None:
                stream.flush()
        os._exit(code & 0xFF)


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
        run()
    else:
        code = ask(sys.argv[1], sys.argv[2:])
        if code < 0:
            if code != -signal.SIGKILL:  # which has no handler
                signal.signal(-code, signal.SIG_DFL)
            os.kill(os.getpid(), -code)
        # `sys.exit` would flush closed streams.
        os._exit(code)
