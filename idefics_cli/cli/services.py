"""The services of a command: its access to the outside world, which a test can replace."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, BinaryIO, Protocol

from idefics_cli.core.types import LoadSpec
from idefics_cli.engine.factory import engine_factory
from idefics_cli.engine.protocol import EngineFactory

if TYPE_CHECKING:
    from pathlib import Path

    from idefics_cli.caption.executors.cluster import Cluster
    from idefics_cli.caption.executors.warm import WarmProcesses
    from idefics_cli.models.families.spec import Shape
    from idefics_cli.models.hub.facts import ModelFacts
    from idefics_cli.models.planning.plan import Machine
    from idefics_cli.models.planning.verdicts import Verdicts
    from idefics_cli.selfcheck.speeds import SpeedCheck


class FindFacts(Protocol):
    """The type of `models.hub.facts.find_facts`."""

    def __call__(self, name: str, *, revision: str | None, offline: bool) -> ModelFacts:
        """Return the facts that a plan needs about the model *name*."""
        ...


def _probe_machine() -> Machine:
    from idefics_cli.models.planning.plan import probe_machine

    return probe_machine()


def _torch_version() -> str | None:
    from idefics_cli.core.versions import installed_version

    return installed_version("torch")


def _warm_up(devices: Sequence[str]) -> WarmProcesses:
    from idefics_cli.caption.executors.warm import WarmProcesses

    return WarmProcesses(len(devices), forks={*devices} == {"cpu"})


def _broken_packages() -> Mapping[str, str]:
    from idefics_cli.hardware.machine import broken_packages

    return broken_packages()


def _failing_kernels(spec: LoadSpec) -> tuple[str, ...]:
    from idefics_cli.models.kernels.self_tests import find_failing_kernels
    from idefics_cli.models.loading.device_check import is_here

    if not is_here(spec.device):
        return ()
    return find_failing_kernels(spec.kernels, device=spec.device)


def _probe_gpus(folder: Path, verdicts: Verdicts, machine: Machine, shape: Shape) -> Verdicts:
    from idefics_cli.models.loading.device_check import is_here
    from idefics_cli.selfcheck.keeping import probe_new_gpus

    return probe_new_gpus(folder, verdicts, machine, shape, is_here=is_here)


def _check_speeds(machine: Machine, broken: Collection[str]) -> SpeedCheck:
    from idefics_cli.config.settings import DEFAULT_MODEL
    from idefics_cli.hardware.load import SystemLoad
    from idefics_cli.models.hub.facts import registry_facts
    from idefics_cli.selfcheck.speeds import check_speeds

    facts = next(each for each in registry_facts() if each.name == DEFAULT_MODEL)
    clock = time.perf_counter
    return check_speeds(machine, facts, clock=clock, load=SystemLoad(), broken=broken)


def _find_facts(name: str, *, revision: str | None, offline: bool) -> ModelFacts:
    from idefics_cli.models.hub.facts import find_facts

    return find_facts(name, revision=revision, offline=offline)


def _open_cluster(address: str) -> Cluster:
    from idefics_cli.caption.executors.ray import open_cluster

    return open_cluster(address)


def _stdin() -> BinaryIO | None:
    # `sys.stdin` is None if the parent process has closed it, as some schedulers do.
    return None if sys.stdin is None else sys.stdin.buffer


@dataclass(frozen=True, slots=True)
class Services:
    """The outside world of a command.

    Attributes:
        environ: The environment; a command may set variables for libraries in it.
        stdin: Standard input in bytes; None if it is closed.
        make_factory: Returns the engine factory for a `LoadSpec`.
        probe: Describes this machine.
        torch_version: Returns the version of the installed torch, without importing it.
        warm_up: Starts processes for workers on devices; None if they must not start early.
        broken_packages: Returns the packages that cannot be imported, each with the reason. This
            takes seconds.
        failing_kernels: Runs the self-tests of the kernels of a plan, and returns the failures.
        probe_gpus: Checks the attention of GPUs without a verdict, and returns all verdicts. Its
            arguments are the folder of the verdicts, those in it, the machine, and the shape of
            the model.
        check_speeds: Measures the formats of weights on the CPU. Its arguments are the machine, and
            the kernels that are left out.
        find_facts: Looks up a model.
        open_cluster: Connects to the Ray cluster at an address.
        clock: Returns seconds, for durations.
    """

    environ: MutableMapping[str, str] = field(default_factory=lambda: os.environ)
    stdin: BinaryIO | None = field(default_factory=_stdin)
    make_factory: Callable[[LoadSpec], EngineFactory] = engine_factory
    probe: Callable[[], Machine] = _probe_machine
    torch_version: Callable[[], str | None] = _torch_version
    warm_up: Callable[[Sequence[str]], WarmProcesses] | None = _warm_up
    broken_packages: Callable[[], Mapping[str, str]] = _broken_packages
    failing_kernels: Callable[[LoadSpec], Collection[str]] = _failing_kernels
    probe_gpus: Callable[[Path, Verdicts, Machine, Shape], Verdicts] = _probe_gpus
    check_speeds: Callable[[Machine, Collection[str]], SpeedCheck] = _check_speeds
    find_facts: FindFacts = _find_facts
    open_cluster: Callable[[str], Cluster] = _open_cluster
    clock: Callable[[], float] = time.perf_counter
