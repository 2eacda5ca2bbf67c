"""Runs of `idefics` inside a test, with fake streams and services."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from typer.core import TyperGroup
from typer.main import get_command

from idefics_cli.cli.app import make_app
from idefics_cli.cli.services import Services
from idefics_cli.core.errors import IdeficsError
from idefics_cli.core.types import LoadSpec, Progress
from idefics_cli.engine.protocol import Engine, EngineFactory
from idefics_cli.models.hub.facts import ModelFacts, registry_facts
from idefics_cli.models.planning.plan import Machine
from tests.support.fakes import FakeClock, FakeEngine


@dataclass(frozen=True)
class Ran:
    """The result of a run: exit code, stdout and stderr."""

    code: int
    out: str
    err: str

    def __iter__(self) -> Iterator[int | str]:
        return iter((self.code, self.out, self.err))

    @property
    def record(self) -> Any:
        """The JSON value on stdout."""
        return json.loads(self.out)


class Terminal(io.BytesIO):
    """A keyboard on stdin."""

    def isatty(self) -> bool:
        return True


class Stream(io.TextIOWrapper):
    """A text stream in memory, which can claim to be a terminal."""

    def __init__(self, *, terminal: bool, encoding: str = "utf-8") -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors="strict", newline="")
        self.terminal = terminal

    def isatty(self) -> bool:
        return self.terminal

    def text(self) -> str:
        """Return the written text; bytes that are not text become surrogates."""
        self.flush()
        buffer = self.buffer
        assert isinstance(buffer, io.BytesIO)
        return buffer.getvalue().decode(self.encoding, "surrogateescape")


class World:
    """The outside world of a command: a fake model on a machine with only a CPU.

    Args:
        engine: The engine of every model.
        model: The model of the registry that every lookup finds.
        is_cached: Whether the files of the model are downloaded.
        stdin: Standard input; None if it is closed.
        facts_error: Error of a lookup.
        load_error: Error of loading.
        notes: Notes on the machine.
        environ: The environment.
        variables: More variables of the environment.

    Attributes:
        specs: The specs of the loaded models.
        looked_up: The names of the looked up models.
    """

    def __init__(
        self,
        engine: FakeEngine,
        *,
        model: str = "smolvlm-256m",
        is_cached: bool = True,
        stdin: BinaryIO | None = None,
        facts_error: IdeficsError | None = None,
        load_error: IdeficsError | None = None,
        notes: tuple[str, ...] = (),
        environ: Mapping[str, str] | None = None,
        **variables: str,
    ) -> None:
        self.engine = engine
        self.specs: list[LoadSpec] = []
        self.looked_up: list[str] = []
        self._facts_error, self._load_error = facts_error, load_error
        facts = next(facts for facts in registry_facts() if facts.name == model)
        self._facts = (
            replace(facts, folder=Path("/cached"), download_bytes=0) if is_cached else facts
        )
        self.services = Services(
            environ={**(environ or {}), **variables},
            stdin=stdin,
            make_factory=self._make_factory,
            probe=lambda: replace(MACHINE, notes=notes),
            torch_version=lambda: MACHINE.versions["torch"],
            warm_up=None,
            find_facts=self._find_facts,
            clock=FakeClock(),
        )

    def _find_facts(self, name: str, *, revision: str | None, offline: bool) -> ModelFacts:
        self.looked_up.append(name)
        if self._facts_error:
            raise self._facts_error
        return replace(self._facts, revision=revision)

    def _make_factory(self, spec: LoadSpec) -> EngineFactory:
        def make(*, progress: Progress | None = None) -> Engine:
            self.specs.append(spec)
            if self._load_error:
                raise self._load_error
            return self.engine

        return make


MACHINE = Machine(
    cores=4,
    ram_bytes=16 * 2**30,
    free_ram_bytes=12 * 2**30,
    versions={"torch": "2.13.0", "bitsandbytes": "0.50.2", "accelerate": "1.15.0"},
)
# For commands that run a real model: a plan gives a small model one thread here. On a busy machine,
# two threads wait for each other most of the time.
TWO_CORES = replace(MACHINE, cores=2)


def run(
    *arguments: str,
    services: Services | None = None,
    terminal: bool = False,
    encoding: str = "utf-8",
) -> Ran:
    """Run `idefics` with *arguments* to its end.

    Args:
        arguments: The words after `idefics`.
        services: The outside world; None uses the real one.
        terminal: Whether stdout and stderr are terminals.
        encoding: Encoding of stdout and stderr.
    """
    out = Stream(terminal=terminal, encoding=encoding)
    err = Stream(terminal=terminal, encoding=encoding)
    with (
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        pytest.raises(SystemExit) as end,
    ):
        _command().main(list(arguments), prog_name="idefics", obj=services)
    return Ran(int(end.value.code or 0), out.text(), err.text())


@cache
def _command() -> TyperGroup:
    # `app()` builds the commands at each call, which takes longer than most commands.
    command = get_command(make_app())
    assert isinstance(command, TyperGroup)
    return command
