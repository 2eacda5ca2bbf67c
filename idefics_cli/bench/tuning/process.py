"""Processes that train one step for each command that they receive."""

from __future__ import annotations

import json
import pickle
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import IO, Protocol

from idefics_cli.bench.cold_start.processes import process_error, python_command
from idefics_cli.bench.tuning.order import StepReport, TuneOrder

_CHILD = "from idefics_cli.bench.tuning.child import main; main()"


class Trainer(Protocol):
    """A side that has loaded its model for training."""

    def step(self, number: int) -> StepReport:
        """Do the step *number* of the order: one update of the weights.

        Raises:
            IdeficsError: If the process failed.
        """
        ...


OpenTrainer = Callable[[TuneOrder], AbstractContextManager[Trainer]]
"""Loads a model for training; it is freed at the end of the `with` block."""


@contextmanager
def open_trainer(order: TuneOrder, *, child: str = _CHILD) -> Iterator[Trainer]:
    """Start a process that carries out *order*, and wait until its model is loaded.

    Args:
        order: What the process trains.
        child: Python code that reads the order and the numbers of steps from stdin.

    Raises:
        IdeficsError: If the process failed.
    """
    # stderr goes to a file, because a process blocks when a pipe that nobody reads is full.
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            python_command("-c", child),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
        )
        try:
            trainer = _ProcessTrainer(process, order, errors)
            trainer.start()
            yield trainer
        finally:
            # The process may be in the middle of a step, and has nothing to save.
            process.kill()
            process.communicate()


class _ProcessTrainer:
    def __init__(
        self, process: subprocess.Popen[bytes], order: TuneOrder, errors: IO[bytes]
    ) -> None:
        self._process, self._order, self._errors = process, order, errors

    def start(self) -> None:
        """Send the order, and wait for the answer that the model is loaded."""
        self._ask(pickle.dumps(self._order))

    def step(self, number: int) -> StepReport:
        return StepReport(**json.loads(self._ask(f"{number}\n".encode())))

    def _ask(self, message: bytes) -> bytes:
        """Send *message*, and return the line that answers it."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(message)
            self._process.stdin.flush()
            answer = self._process.stdout.readline()
        except BrokenPipeError:
            answer = b""
        if answer:
            return answer
        code = self._process.wait()
        self._errors.seek(0)
        raise process_error(f"tune {self._order.side}", code, self._errors.read())
