"""Fresh processes: time to the first output, and a model that is loaded once.

Every figure has a process of its own. Its imports take most of the time, but nothing else
measures a cold start: in a process that loaded before, libraries are initialised and the peak of
the memory is reached. A fork of a process that has imported all would be quicker, and would have
to touch each page of its parent to use as much memory as a fresh process.
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
    """The work of a process that loads a model; it goes to the process as a pickle.

    Attributes:
        side: Side whose way of loading is measured.
        spec: Choices of the model.
        folder: Folder of its files.
        picture: Picture to ask about.
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
        load_seconds: Time from the folder to a model that can answer, without imports.
        peak_bytes: Peak memory of the device, after a short answer about a picture.
        tokens: Tokens of that answer.
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
        clock: Seconds.
        child: Program that does a `LoadOrder`.
    """

    def __init__(self, clock: Clock, *, child: str = _CHILD) -> None:
        self._clock = clock
        self._child = child

    def time_first_output(self, name: str, command: Sequence[str]) -> tuple[float, str]:
        """Run *command*; see `Processes.time_first_output`."""
        started = self._clock()
        # Errors go to a file: a full pipe that nobody reads would stop the process. Without a
        # buffer `read` leaves the rest of the output to `communicate`.
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
                raise _failed(name, process.returncode, errors.read())
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
            raise _failed(f"load {order.side}", done.returncode, done.stderr)
        record = json.loads(done.stdout)
        return LoadReport(record["load_seconds"], record["peak_bytes"], tuple(record["tokens"]))


def python_command(*arguments: str) -> list[str]:
    """Return the command of this Python with *arguments*, which imports nothing from the folder.

    Without `-P`, a file `torch.py` in the current folder would be run in place of torch.
    """
    return [sys.executable, "-P", *arguments]


def _failed(name: str, code: int, errors: bytes) -> IdeficsError:
    """Return the error for the process *name* that ended with *code* and wrote *errors*."""
    lines = errors.decode("utf-8", "replace").strip().splitlines()
    if code < 0:
        lines.append(f"signal {-code} ended it")
    message = lines[-1] if lines else "no message"
    return IdeficsError(f"a process of the benchmark failed ({name}): {message}")
