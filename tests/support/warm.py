"""A Python server that has imported everything `idefics` uses, and forks for each run.

A fresh process takes seconds for imports before it runs the code under test. This server imports
once, and each run is a fork of it: with the arguments, variables, folder and open files of the
caller, and with its own exit code. `warm_client.py`, started in place of `python`, asks for a run.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import marshal
import os
import select
import signal
import socket
import sys
import threading
import weakref

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
    "serve": ("idefics_cli.server.connections", "idefics_cli.server.run"),
    "tune": ("peft", "idefics_cli.training.tuning.run"),
}


def serve(path: str) -> None:
    """Import, then fork for each order on the socket, until standard input ends.

    Returns only in a fork, which must then call `run`.
    """
    _import_all()
    _forget_ends_of_imports()
    # A run that ends wakes the server.
    woken, waking = os.pipe()
    for descriptor in (woken, waking):
        os.set_blocking(descriptor, False)
    signal.set_wakeup_fd(waking, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda number, frame: None)
    runs: dict[int, socket.socket] = {}
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        os.write(1, b"ready\n")
        while True:
            ready = select.select([listener, sys.stdin, woken, *runs.values()], [], [])[0]
            if woken in ready:
                os.read(woken, 1 << 16)
                _tell_ends(runs)
            for child, connection in runs.items():
                if connection in ready:  # the client is gone
                    os.kill(child, signal.SIGKILL)
            if sys.stdin in ready:
                break
            if listener in ready and _starts_run(listener, runs):
                signal.set_wakeup_fd(-1)
                os.close(woken)
                os.close(waking)
                return
    for child in runs:
        os.kill(child, signal.SIGKILL)
    os._exit(0)


def _starts_run(listener: socket.socket, runs: dict[int, socket.socket]) -> bool:
    """Fork for the next order and add it to *runs*; return True in the fork."""
    connection, _ = listener.accept()
    order, descriptors = _order(connection)
    if order:
        words = order["arguments"]
        assert isinstance(words, list)
        for word in words:
            for name in MODULES_OF_COMMANDS.get(word, ()):
                importlib.import_module(name)
        # A search for garbage in a fork would copy the memory of all that is imported.
        gc.freeze()
        child = os.fork()
        if not child:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            for each in (listener, connection, *runs.values()):
                each.close()
            _adopt(order, descriptors)
            return True
        runs[child] = connection
        with contextlib.suppress(OSError):
            connection.sendall(b"%d\n" % child)
    else:
        connection.close()
    for descriptor in descriptors:
        os.close(descriptor)
    return False


def _tell_ends(runs: dict[int, socket.socket]) -> None:
    """Tell the clients of *runs* that have ended their exit codes."""
    for child in list(runs):
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            with runs.pop(child) as connection, contextlib.suppress(OSError):
                connection.sendall(b"%d\n" % os.waitstatus_to_exitcode(status))


def _forget_ends_of_imports() -> None:
    """Let a fork run only those finalizers at its end that it has made itself.

    torch takes back what its modules have registered, which takes 0.06 s.
    """
    for each in vars(weakref.finalize)["_registry"]:
        each.atexit = False


def _import_all() -> None:
    for name in MODULES:
        importlib.import_module(name)
    # Imports that happen at first use.
    importlib.import_module("PIL.Image").init()
    with contextlib.suppress(ImportError):  # not on every system
        importlib.import_module("llvmlite.binding")
    with contextlib.suppress(ImportError):
        importlib.import_module("idefics_cli.core.imports").import_bitsandbytes()
    importlib.import_module("tests.support.commands").run("config", "path")
    classes = importlib.import_module("idefics_cli.models.families.classes")
    for family in ("idefics", "idefics2", "idefics3", "smolvlm"):
        classes.config_class(family)
        classes.model_class(family)
        classes.processor_classes(family)


def _order(connection: socket.socket) -> tuple[dict[str, object], list[int]]:
    """Return what to run, and its open files; nothing if the client is gone."""
    data, descriptors, _, _ = socket.recv_fds(connection, 1 << 16, 3)
    while len(data) < 8 or len(data) < 8 + int.from_bytes(data[:8]):
        if not (more := connection.recv(1 << 16)):
            return {}, descriptors
        data += more
    order = marshal.loads(data[8:])
    assert isinstance(order, dict)
    return order, descriptors


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
    serve(sys.argv[1])
    run()
