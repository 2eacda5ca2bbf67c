"""A fresh process that imports a model's class, and then can load the model time and again."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from idefics_cli.core.errors import IdeficsError
from idefics_cli.core.types import LoadSpec
from idefics_cli.models.families.spec import find_family

Side = Literal["ours", "plain"]
# What is timed ends with the line that it writes.
_PROGRAM = """\
import torch
from transformers import {model_class}
print(0, flush=True)
from idefics_cli.bench.cold_start.child import main
main()
"""


@dataclass(frozen=True, slots=True)
class LoadReport:
    """What a process that loaded a model tells.

    Attributes:
        load_seconds: From the folder to a model that can answer; imports not counted.
        peak_bytes: Most memory of the device in use, after a short answer about a picture.
        tokens: Of that answer.
    """

    load_seconds: float
    peak_bytes: int
    tokens: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Order:
    """What such a process is to do; it is pickled to it.

    Attributes:
        side: Whose way to load.
        spec: What to load.
        folder: Of its files.
        picture: To be asked about.
        max_new_tokens: Of the answer.
        in_fork: Do it in a fork, so that the process can take another order.
    """

    side: Side
    spec: LoadSpec
    folder: Path
    picture: Path
    max_new_tokens: int
    in_fork: bool


class Importer:
    """Such a process; it is started at once, and must be closed.

    Args:
        family: Of the model.
    """

    def __init__(self, family: str) -> None:
        # Errors go to a file: a full pipe that nobody reads would stop the process.
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # closed by `close`
        name = find_family(family).classes.model.partition(":")[2]
        program = _PROGRAM.format(model_class=name)
        self._command = [sys.executable, "-c", program]
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._errors
        )

    def wait(self) -> None:
        """Wait until torch and the model class are imported; to be called once, first.

        Raises:
            IdeficsError: If the process failed.
        """
        self._line()

    def load(self, order: Order) -> LoadReport:
        """Let it load a model and answer; only once if not in a fork.

        Raises:
            IdeficsError: If the process failed.
        """
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(pickle.dumps(order).hex().encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # what it wrote last is told below
        told = json.loads(self._line())
        return LoadReport(told["load_seconds"], told["peak_bytes"], tuple(told["tokens"]))

    def close(self) -> None:
        """End the process, whatever it does."""
        self._process.kill()
        self._process.communicate()
        self._errors.close()

    def _line(self) -> bytes:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._errors.seek(0)
            raise failed(self._command, self._errors.read())
        return line


def failed(command: Sequence[str], errors: bytes) -> IdeficsError:
    """Return the error to raise for a process of *command* that wrote *errors* and failed."""
    lines = errors.decode("utf-8", "replace").strip().splitlines() or ["no message"]
    return IdeficsError(f"a process of the benchmark failed ({command[1]}): {lines[-1]}")
