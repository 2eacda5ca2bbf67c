"""Runs of `idefics` in children of one process, which get signals or little room on the disk."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.support.warm import PLAIN_MEMORY

# Imports everything once, and forks for each command line: a start then takes milliseconds.
ZYGOTE = textwrap.dedent(
    """
    import contextlib, json, os, resource, signal, sys, time
    import idefics_cli.caption.resume.journaled_sink, idefics_cli.caption.runner
    import idefics_cli.ui.views.progress
    from typer.main import get_command
    from idefics_cli.caption.sinks import SINKS
    from idefics_cli.cli.app import make_app
    from idefics_cli.cli.services import Services
    from tests.support.commands import World
    from tests.support.fakes import FakeEngine

    def answer(request):
        time.sleep(0.0005)
        pictures = [attachment.source for attachment in request.attachments]
        if len(pictures) == 1 and request.messages[-1].text.startswith("Describe"):
            return "a picture of " + pictures[0]
        return " ".join([*pictures, *(message.text for message in request.messages)])

    engine = FakeEngine(answer)
    services = Services() if sys.argv[1] == "demo" else World(engine).services
    # Everything that a run imports. With one thread, OpenMP has no pool. A child would not have
    # its threads, and would wait for them for ever.
    words = ["-m", "demo", "-q", "-o", os.devnull, "--threads", "1"]
    idefics = get_command(make_app())
    for words in (["caption", sys.argv[2], *words], ["batch", sys.argv[3], *words]):
        engine.is_closed = False
        with contextlib.suppress(SystemExit):
            idefics.main(words, obj=services)
    # A signal during this import would be reported as a missing library.
    with contextlib.suppress(ImportError):
        import pyarrow.parquet

    for line in sys.stdin:
        order = json.loads(line)
        child = os.fork()
        if not child:
            os.chdir(order["folder"])
            if order["limit"]:
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (order["limit"],) * 2)
            os.dup2(os.open(order["err"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
            engine.is_closed = False  # the run at the start closed it
            try:
                idefics.main(order["arguments"], prog_name="idefics", obj=services)
            except SystemExit as end:
                os._exit(end.code or 0)
        print(child, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
    """
)


class Zygote:
    """Runs `idefics` many times, in children of one process.

    Args:
        kind: "fake" or "demo", the engine.
        picture: A picture.
        requests: A file of requests for `idefics batch`.
        python: The command that runs Python.
    """

    def __init__(
        self,
        kind: str,
        *,
        picture: Path,
        requests: Path,
        python: Sequence[str] = (sys.executable, "-W", "ignore"),
    ) -> None:
        root = str(Path(__file__).parents[2])
        self._process = subprocess.Popen(
            [*python, "-c", ZYGOTE, kind, str(picture), str(requests)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONPATH": root, "OMP_NUM_THREADS": "1"} | PLAIN_MEMORY,
        )

    def run(
        self,
        *arguments: str,
        command: str = "caption",
        number: int = 0,
        seconds: float = 0.0,
        after: Path | None = None,
        limit: int = 0,
    ) -> tuple[int, str]:
        """Run `idefics` and return its exit code and stderr.

        Args:
            arguments: Arguments as typed.
            command: The command before them.
            number: Signal that the run gets; 0 for none.
            seconds: Time of the signal after the start, or after *after*.
            after: File that must have grown before the time counts.
            limit: Most bytes that a file may have; 0 for no limit.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        words = [command, *arguments]
        size = _size(after)
        order = {"arguments": words, "folder": os.getcwd(), "limit": limit, "err": "err"}
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        child = int(self._process.stdout.readline())
        if number:
            deadline = time.monotonic() + 20
            # A run that has ended cannot get a signal.
            with contextlib.suppress(ProcessLookupError):
                while after is not None and _size(after) == size and time.monotonic() < deadline:
                    os.kill(child, 0)
                    time.sleep(0.0005)
                time.sleep(seconds)
                os.kill(child, number)
        code = int(self._process.stdout.readline())
        return code, Path("err").read_text("utf-8")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(timeout=30)
        self._process.stdout.close()


def _size(path: Path | None) -> int:
    return path.stat().st_size if path is not None and path.exists() else 0
