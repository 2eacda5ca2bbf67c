"""Fresh processes, which measure the time to the first output and the loading of a model.

Every figure is measured in a new process. Imports take most of its time, but only a new process
shows a cold start: in a process that has loaded a model before, the libraries are initialised, and
the peak of its memory is that of the earlier model.

A fork of a process that has imported everything would be quicker. But it shares pages with its
parent, and would show the memory of a fresh process only after it has touched each of them.
"""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from idefics_cli.bench.measure import Clock
from idefics_cli.core.errors import IdeficsError
from idefics_cli.core.types import LoadSpec

Side = Literal["ours", "plain"]

_TIMEOUT_SECONDS = 1800.0
_CHILD = "from idefics_cli.bench.cold_start.child import main; main()"


@dataclass(frozen=True, slots=True)
class LoadOrder:
    """What a process has to load and to answer; the process gets this order as a pickle.

    Attributes:
        side: The side that loads the model.
        spec: How to load the model.
        folder: The folder of the checkpoint.
        picture: The picture to ask about.
        max_new_tokens: Length of the answer.
    """

    side: Side
    spec: LoadSpec
    folder: Path
    picture: Path
    max_new_tokens: int


@dataclass(frozen=True, slots=True)
class LoadReport:
    """The result of a process that loaded a model.

    Attributes:
        load_seconds: Time to load the model from its folder until it can answer, without imports.
        peak_bytes: Peak memory after loading and one short answer about a picture. On a GPU it is
            the memory of the tensors there, on a CPU the resident memory of the process.
        tokens: The tokens of that answer.
    """

    load_seconds: float
    peak_bytes: int
    tokens: tuple[int, ...]


class Processes(Protocol):
    """Starts fresh processes."""

    def time_first_output(self, name: str, command: Sequence[str]) -> tuple[float, str]:
        """Return the seconds until *command* wrote its first byte, and all of its output.

        Args:
            name: What the command measures, for messages.
            command: Program and arguments; see `python_command`.

        Raises:
            IdeficsError: If the process failed.
        """
        ...

    def load(self, order: LoadOrder) -> LoadReport:
        """Load a model in a process and let it answer once.

        Raises:
            IdeficsError: If the process failed.
        """
        ...


class FreshProcesses:
    """Starts processes of this Python; see `Processes`.

    Args:
        clock: Returns seconds.
        child: Python code that reads a `LoadOrder` from stdin and carries it out.
    """

    def __init__(self, clock: Clock, *, child: str = _CHILD) -> None:
        self._clock = clock
        self._child = child

    def time_first_output(self, name: str, command: Sequence[str]) -> tuple[float, str]:
        """Run *command*; see `Processes.time_first_output`."""
        started = self._clock()
        # stderr goes to a file, because a process blocks when a pipe that nobody reads is full.
        # stdout is unbuffered (bufsize=0), so that `communicate` gets all bytes after the first.
        with tempfile.TemporaryFile() as errors:
            process = subprocess.Popen(
                command, bufsize=0, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors
            )
            try:
                assert process.stdout is not None
                head = process.stdout.read(1)
                seconds = self._clock() - started
                tail, _ = process.communicate(timeout=_TIMEOUT_SECONDS)
            except BaseException:
                process.kill()
                process.wait()
                raise
            if process.returncode:
                errors.seek(0)
                raise process_error(name, process.returncode, errors.read())
        return seconds, (head + tail).decode("utf-8", "replace").strip()

    def load(self, order: LoadOrder) -> LoadReport:
        """Run the child with *order*; see `Processes.load`."""
        done = subprocess.run(
            python_command("-c", self._child),
            input=pickle.dumps(order),
            capture_output=True,
            timeout=_TIMEOUT_SECONDS,
            check=False,
        )
        if done.returncode:
            raise process_error(f"load {order.side}", done.returncode, done.stderr)
        record = json.loads(done.stdout)
        return LoadReport(record["load_seconds"], record["peak_bytes"], tuple(record["tokens"]))


def python_command(*arguments: str) -> list[str]:
    """Return a command that runs this Python with *arguments*.

    The option `-P` keeps Python from importing modules of the current folder, where a file
    `torch.py` would be run instead of torch.
    """
    return [sys.executable, "-P", *arguments]


def process_error(name: str, code: int, errors: bytes) -> IdeficsError:
    """Return the error for the process *name* that ended with *code* and wrote *errors*."""
    lines = errors.decode("utf-8", "replace").strip().splitlines()
    if code < 0:
        lines.append(f"signal {-code} ended it")
    message = lines[-1] if lines else "no message"
    return IdeficsError(f"a process of the benchmark failed ({name}): {message}")
