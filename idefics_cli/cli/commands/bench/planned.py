"""The model that a benchmark measures: a checkpoint, or random weights in a real shape."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from idefics_cli.cli.commands.bench.choices import WITHOUT_MODEL, Asked, RandomWeights
from idefics_cli.cli.invocation import Invocation
from idefics_cli.cli.model_choice import check_without_torch, find_facts, plan_for, report_warnings
from idefics_cli.core.errors import ModelError, UsageError
from idefics_cli.core.units import counted
from idefics_cli.models.hub.registry import DEMO

if TYPE_CHECKING:
    from idefics_cli.hardware.machine import Machine
    from idefics_cli.models.planning.plan import Plan


@dataclass(frozen=True, slots=True)
class BenchPlan:
    """The model to measure, and this machine.

    Attributes:
        plan: The plan of the model.
        folder: The folder of the checkpoint.
        name: The name of the model as a command takes it.
        title: The name of the model for people.
        machine: A description of this machine.
    """

    plan: Plan
    folder: Path
    name: str
    title: str
    machine: Machine


@contextmanager
def plan_bench(invocation: Invocation, asked: Asked) -> Iterator[BenchPlan]:
    """Plan the model that *asked* names. Temporary weights are removed after the `with` block.

    Raises:
        ModelError: If the model is not downloaded.
        IdeficsError: If the weights cannot be written.
    """
    weights = asked.weights
    if set(asked.names) <= WITHOUT_MODEL:
        demo = _with(invocation, model=DEMO, adapter=None, quantization="none")
        yield replace(_checkpoint(demo), title="stand-ins for models")
    elif weights is None:
        yield _checkpoint(invocation)
    elif weights.folder is not None:
        yield _random_weights(invocation, weights, Path(weights.folder).absolute())
    else:
        with tempfile.TemporaryDirectory(prefix="idefics-weights-") as scratch:
            yield _random_weights(invocation, weights, Path(scratch, "m"))


def _checkpoint(invocation: Invocation) -> BenchPlan:
    invocation = _with(invocation, adapter=None)
    facts = find_facts(invocation)
    if facts.adapter is not None:
        raise UsageError(
            f"`{facts.name}` is an adapter, and plain transformers would run without it",
            hint="name its base model: `idefics bench -m MODEL`",
        )
    check_without_torch(invocation, facts)
    if facts.folder is None:
        name = facts.name or facts.repo
        raise ModelError(f"`{name}` is not downloaded", hint=f"`idefics models pull {name}` first")
    machine = _probe(invocation)
    plan = plan_for(invocation, machine, facts)
    report_warnings(invocation, plan)
    return BenchPlan(plan, facts.folder, invocation.settings.model, plan.facts.name, machine)


def _probe(invocation: Invocation) -> Machine:
    with invocation.console.status("starting"):
        return invocation.services.probe()


def _random_weights(invocation: Invocation, weights: RandomWeights, folder: Path) -> BenchPlan:
    from idefics_cli.bench.random_model import make
    from idefics_cli.bench.shapes import SHAPES
    from idefics_cli.core.units import format_parameters

    settings = invocation.settings
    check_without_torch(invocation, None)
    machine = _probe(invocation)
    # The dtype is that of a small model: float32, unless the user chose another. The plan of a
    # large model could be 4 bit, but in a benchmark only the user chooses the quantization.
    small = plan_for(
        _with(
            invocation, model="demo", quantization="none", adapter=None,
            longest_edge=None, splitting=None,
        ),
        machine,
    ).spec  # fmt: skip
    with invocation.console.status("making random weights"):
        count = make(
            folder,
            SHAPES[weights.shape],
            # As in most checkpoints, the numbers are those of bfloat16.
            dtype="bfloat16" if small.dtype == "float32" else small.dtype,
            layers=weights.layers,
            vision_layers=weights.vision_layers,
        )
    changed = _with(
        invocation,
        model=str(folder),
        adapter=None,
        dtype=small.dtype,
        quantization="none" if settings.quantization == "auto" else settings.quantization,
        device=small.device,
    )
    plan = plan_for(changed, machine)
    report_warnings(invocation, plan)
    cut = f", {counted(weights.layers, 'text layer')}" if weights.layers else ""
    title = f"random weights of the shape of {weights.shape}{cut} ({format_parameters(count)})"
    return BenchPlan(plan, folder, str(folder), title, machine)


def _with(invocation: Invocation, **changes: str | None) -> Invocation:
    settings = replace(invocation.settings, **changes)  # type: ignore[arg-type]  # texts only
    return replace(invocation, resolved=replace(invocation.resolved, settings=settings))
