"""The judgement of one placement, and the errors of plans for which no placement works."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from idefics_cli.core.errors import PlanError
from idefics_cli.core.types import Attention
from idefics_cli.core.units import format_size
from idefics_cli.hardware.machine import Machine
from idefics_cli.models.hub.facts import ModelFacts, registry_facts
from idefics_cli.models.planning import attention as attentions
from idefics_cli.models.planning import quantization
from idefics_cli.models.planning.faults import FaultSieve, as_problem
from idefics_cli.models.planning.needs import Need, needs_of
from idefics_cli.models.planning.placement import Placement, PlanChoices, list_placements
from idefics_cli.models.planning.quantization import Problem
from idefics_cli.models.planning.verdicts import Fault

_SUGGESTIONS = 3


@dataclass(frozen=True, slots=True)
class JudgedPlacement:
    """Whether one placement works.

    Attributes:
        option: The placement.
        attention: The attention of the model.
        needs: The memory that it needs on each device.
        problem: Why it cannot run; None if it can.
        fault: A known fault of this placement, from which `problem` is then made; None if there is
            none.
    """

    option: Placement
    attention: Attention
    needs: tuple[Need, ...]
    problem: Problem | None
    fault: Fault | None = None

    @property
    def works(self) -> bool:
        """Whether it can run, fits the memory, and has no known fault."""
        return self.problem is None and not self.missing

    @property
    def missing(self) -> int:
        """Number of bytes that it needs and that are not free."""
        return sum(need.missing for need in self.needs)

    @property
    def is_on_gpu(self) -> bool:
        """Whether GPUs hold all weights."""
        return bool(self.option.gpus) and not self.option.offload

    @property
    def is_missed(self) -> bool:
        """Whether only a package is missing to run the model on GPUs."""
        is_faulty = self.fault is not None
        return self.is_on_gpu and self.problem is not None and not self.missing and not is_faulty


def judge_placement(
    option: Placement,
    model: ModelFacts,
    attention: Attention,
    machine: Machine,
    sieve: FaultSieve | None = None,
) -> JudgedPlacement:
    """Judge *option* with *attention*; *sieve* has the known faults of the machine."""
    problem = quantization.find_problem(
        option.quantization,
        device=option.device,
        machine=machine,
        shape=model.shape,
        format_4bit=option.format_4bit,
        is_stored=model.stored is not None,
    ) or attentions.find_problem(
        attention, family=model.family, dtype=option.dtype, gpus=option.gpus, machine=machine
    )
    if problem is None and option.is_spread and not machine.has("accelerate"):
        problem = Problem("several devices need the package accelerate", "pip install accelerate")
    fault = None
    if problem is None and sieve is not None:
        fault = sieve.find(option, attention)
        problem = None if fault is None else as_problem(fault)
    left_out = () if sieve is None else sieve.kernels(option.device)
    needs = needs_of(option, model, attention, machine, left_out=left_out)
    return JudgedPlacement(option, attention, needs, problem, fault)


def find_missed_gpu(chosen: JudgedPlacement, better: Sequence[JudgedPlacement]) -> Problem | None:
    """Return why no GPU runs the model, if it would fit one of the *better* placements."""
    if chosen.is_on_gpu:
        return None
    return next((verdict.problem for verdict in better if verdict.is_missed), None)


def check_missed_gpu(verdicts: Sequence[JudgedPlacement]) -> None:
    """Raise a PlanError if a model runs on the CPU only because the GPU needs a missing package.

    A user who asks for quantized weights expects the speed of the GPU. So an error that names the
    package is better than a slow run on the CPU.
    """
    for verdict in verdicts:
        if verdict.is_missed and verdict.problem is not None:
            hint = f"{verdict.problem.hint}; or `--device cpu`, which needs no package"
            raise PlanError(verdict.problem.message, hint=hint)


def no_way_error(
    verdicts: Sequence[JudgedPlacement], model: ModelFacts, choices: PlanChoices, machine: Machine
) -> PlanError:
    """Return the error for a model that cannot run in any way that agrees with *choices*."""
    possible = [v for v in verdicts if v.problem is None]
    if not possible:
        problem = next(v.problem for v in verdicts if v.problem is not None)
        return PlanError(problem.message, hint=problem.hint)
    # Placements that would fit into the memory (`missing` is 0) cannot run for these reasons.
    problems = [v.problem for v in verdicts if v.problem is not None and not v.missing]
    best = min(possible, key=lambda v: v.missing)
    short = max(best.needs, key=lambda need: need.missing)
    if best.option.is_spread:
        needed = sum(need.total for need in best.needs)
        usable = sum(need.usable for need in best.needs)
        where = " and ".join(need.device for need in best.needs)
    else:
        needed, usable, where = short.total, short.usable, short.device
    free = sum(need.free for need in best.needs)
    return PlanError(
        f"`{model.name}`{_asked(choices)} needs {format_size(needed)} on {where}, and "
        f"{format_size(usable)} of {format_size(free)} free memory are usable",
        hint="; ".join(_ways_out(model, choices, machine, problems)),
    )


def _asked(choices: PlanChoices) -> str:
    flags = [
        f"--{name} {value}"
        for name in ("quantization", "dtype", "attention")
        if (value := getattr(choices, name)) not in (None, "auto")
    ]
    if choices.splitting:
        flags.append("--splitting")
    return f" with `{' '.join(flags)}`" if flags else ""


def _ways_out(
    model: ModelFacts, choices: PlanChoices, machine: Machine, problems: Sequence[Problem]
) -> list[str]:
    ways = []
    relaxed = replace(choices, quantization=None, dtype=None, attention=None, splitting=None)
    for other in (relaxed, replace(relaxed, device=None)):
        option = None if other == choices else _first(model, other, machine)
        if option is not None:
            ways.append(_as_flags(option) + " would fit")
            break
    if not ways and problems:
        ways.append(problems[0].hint)
    smaller = [
        facts
        for facts in registry_facts()
        if facts.chats
        and facts.parameters < model.parameters
        and _first(facts, replace(relaxed, revision=None), machine) is not None
    ]
    smaller.sort(key=lambda facts: facts.parameters, reverse=True)
    if smaller:
        ways.append(f"models that fit: {', '.join(f.name for f in smaller[:_SUGGESTIONS])}")
    return ways


def _first(model: ModelFacts, choices: PlanChoices, machine: Machine) -> Placement | None:
    for option in list_placements(model, choices, machine):
        if judge_placement(option, model, "sdpa", machine).works:
            return option
    return None


def _as_flags(option: Placement) -> str:
    device = option.device if not option.gpus or option.is_spread else option.gpus[0].device
    return f"`--device {device} --quantization {option.quantization} --dtype {option.dtype}`"
