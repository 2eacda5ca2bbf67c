"""Plans: how a model runs on a machine, decided before any weight is read, with reasons."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

from idefics_cli.core.errors import PlanError
from idefics_cli.core.paths import display_path
from idefics_cli.core.types import DECODING_BYTES, Attention, DtypeName, LoadSpec, Quantization
from idefics_cli.core.units import format_size
from idefics_cli.hardware.machine import Gpu, Machine, probe_machine
from idefics_cli.models.hub.facts import ModelFacts, registry_facts
from idefics_cli.models.planning import attention as attentions
from idefics_cli.models.planning import quantization
from idefics_cli.models.planning import reasons as plan_reasons
from idefics_cli.models.planning.kernels import choose_kernels
from idefics_cli.models.planning.needs import (
    Need,
    float32_modules,
    max_memory,
    needs_of,
    with_larger_forwards,
)
from idefics_cli.models.planning.placement import (
    Placement,
    PlanChoices,
    default_threads,
    list_placements,
)
from idefics_cli.models.planning.quantization import Problem
from idefics_cli.models.planning.reasons import Reason

__all__ = [
    "Gpu",
    "Machine",
    "ModelFacts",
    "Need",
    "Plan",
    "PlanChoices",
    "Reason",
    "make_plan",
    "probe_machine",
]

_DEVICE = re.compile(r"auto|cpu|mps|cuda(:\d+)?")
_SUGGESTIONS = 3


@dataclass(frozen=True, slots=True)
class Plan:
    """All choices for a model, and why they were made.

    Attributes:
        spec: The choices, for the loader.
        facts: What is known about the model.
        reasons: Why each choice was made.
        needs: The memory that the model needs on each device.
        warnings: Drawbacks that a user should expect, such as slowness.
        spare_ram_bytes: RAM that the plan leaves to pictures that wait for the model.
    """

    spec: LoadSpec
    facts: ModelFacts
    reasons: tuple[Reason, ...]
    needs: tuple[Need, ...]
    warnings: tuple[str, ...]
    spare_ram_bytes: int = 0

    def to_dict(self) -> dict[str, object]:
        """Return the plan for JSON; paths below the home folder begin with `~`."""
        spec, facts = self.spec, self.facts
        repo = display_path(Path(spec.repo)) if Path(spec.repo).is_absolute() else spec.repo
        return {
            "model": display_path(Path(spec.name)) if Path(spec.name).is_absolute() else spec.name,
            "repo": repo,
            "revision": spec.revision,
            "family": spec.family,
            "parameters": facts.parameters,
            "chats": spec.chats,
            "context_tokens": facts.context_tokens,
            "folder": None if facts.folder is None else display_path(facts.folder),
            "download_bytes": facts.download_bytes,
            "device": spec.device,
            "dtype": spec.dtype,
            "quantization": spec.quantization,
            "format_4bit": spec.format_4bit if spec.quantization == "4bit" else None,
            "attention": spec.attention,
            "kernels": asdict(spec.kernels),
            "splitting": spec.splitting,
            "device_map": spec.device_map,
            "max_memory": None if spec.max_memory is None else dict(spec.max_memory),
            "threads": spec.threads,
            "offline": spec.offline,
            "reasons": [
                {"subject": r.subject, "choice": r.choice, "why": r.why} for r in self.reasons
            ],
            "memory": [_need_record(need) for need in self.needs],
            "decoding_bytes": DECODING_BYTES,
            "warnings": list(self.warnings),
        }


def _need_record(need: Need) -> dict[str, object]:
    return {
        "device": need.device,
        "weights_bytes": need.weights,
        "kv_cache_bytes": need.kv_cache,
        "working_bytes": need.working,
        "total_bytes": need.total,
        "free_bytes": need.free,
        "usable_bytes": need.usable,
    }


def make_plan(model: ModelFacts, choices: PlanChoices, machine: Machine) -> Plan:
    """Decide how *model* runs on *machine*.

    The plan is the first of `list_placements` that works.

    Raises:
        PlanError: If the machine cannot do what *choices* ask for, or if no way works.
    """
    _check_choices(choices, model)
    _check_device(choices.device or "auto", machine)
    attention = _attention(choices)
    options = list_placements(model, choices, machine)
    verdicts = [_judge(option, model, attention, machine) for option in options]
    chosen = next((v for v in verdicts if v.works), None)
    if chosen is None:
        raise _no_way(verdicts, model, choices, machine)
    if chosen.option.device == "cpu" and choices.quantization not in (None, "auto"):
        _check_missed_gpu(verdicts)
    needs, vision_tiles = with_larger_forwards(chosen.needs, chosen.option, model, attention)
    spec = _spec(chosen, attention, model, choices, machine)
    kernels = choose_kernels(spec, machine, is_stored=model.stored is not None)
    spec = replace(spec, kernels=kernels, vision_tiles=vision_tiles)
    better = verdicts[: verdicts.index(chosen)]
    context = plan_reasons.Context(
        facts=model,
        choices=choices,
        machine=machine,
        option=chosen.option,
        needs=needs,
        tried=tuple((v.option, v.needs) for v in better if v.problem is None),
        missed=_missed_gpu(chosen, better),
    )
    return Plan(
        spec=spec,
        facts=model,
        reasons=plan_reasons.explain_choices(context, spec),
        needs=needs,
        spare_ram_bytes=machine.free_ram_bytes - sum(n.total for n in needs if n.is_in_ram),
        warnings=plan_reasons.list_warnings(context, spec),
    )


@dataclass(frozen=True, slots=True)
class _Verdict:
    """Whether one option works."""

    option: Placement
    needs: tuple[Need, ...]
    problem: Problem | None

    @property
    def works(self) -> bool:
        return self.problem is None and not self.missing

    @property
    def missing(self) -> int:
        return sum(need.missing for need in self.needs)

    @property
    def is_on_gpu(self) -> bool:
        """Whether GPUs hold all weights."""
        return bool(self.option.gpus) and not self.option.offload

    @property
    def is_missed(self) -> bool:
        """Whether only a package is missing to run the model on GPUs."""
        return self.is_on_gpu and self.problem is not None and not self.missing


def _judge(
    option: Placement, model: ModelFacts, attention: Attention, machine: Machine
) -> _Verdict:
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
    return _Verdict(option, needs_of(option, model, attention, machine), problem)


def _spec(
    chosen: _Verdict,
    attention: Attention,
    model: ModelFacts,
    choices: PlanChoices,
    machine: Machine,
) -> LoadSpec:
    option = chosen.option
    # For splitting, None keeps the setting in the files of the checkpoint.
    own = option.splitting == bool(model.splitting) and choices.splitting is None
    return LoadSpec(
        repo=model.repo,
        family=model.family,
        name=model.name,
        revision=model.revision,
        chats=model.chats,
        dtype=option.dtype,
        quantization=option.quantization,
        format_4bit=option.format_4bit,
        attention=attention,
        device=option.device,
        device_map="auto" if option.is_spread else None,
        max_memory=max_memory(chosen.needs, option),
        float32_modules=float32_modules(option, model, attention),
        splitting=None if own or model.splitting is None else option.splitting,
        offline=choices.offline,
        threads=choices.threads or default_threads(option, model, machine),
        limits=choices.limits,
    )


def _attention(choices: PlanChoices) -> Attention:
    chosen = choices.attention or "auto"
    for name in get_args(Attention):
        if chosen == name:
            return name  # type: ignore[no-any-return] # a member of the Literal
    return "sdpa"


def _check_choices(choices: PlanChoices, model: ModelFacts) -> None:
    closed = (
        ("dtype", choices.dtype, get_args(DtypeName)),
        ("quantization", choices.quantization, get_args(Quantization)),
        ("attention", choices.attention, get_args(Attention)),
    )
    for name, value, allowed in closed:
        if value not in (None, "auto", *allowed):
            raise PlanError(f"unknown {name} `{value}`", hint=f"auto, {', '.join(allowed)}")
    device = choices.device or "auto"
    if not _DEVICE.fullmatch(device):
        raise PlanError(f"unknown device `{device}`", hint="auto, cpu, mps, cuda or cuda:N")
    for flag, wanted, stored in (
        ("quantization", choices.quantization, model.stored),
        ("dtype", choices.dtype, model.stored_dtype),
    ):
        if stored is not None and wanted not in (None, "auto", stored):
            raise PlanError(
                f"the weights of `{model.name}` are stored in {stored}, so `--{flag} {wanted}` "
                "is not possible",
                hint="take the plain checkpoint",
            )


def _check_device(device: str, machine: Machine) -> None:
    """Raise a PlanError if *device* cannot be used; it says what is missing."""
    if "torch" in machine.broken:
        raise PlanError(
            f"torch cannot be imported: {machine.broken['torch']}",
            hint="pip install --force-reinstall torch",
        )
    if device == "mps" and machine.mps_bytes is None:
        raise PlanError(
            "there is no Apple GPU that torch can use", hint="`--device auto` uses what there is"
        )
    if not device.startswith("cuda"):
        return
    if machine.gpus:
        names = [f"cuda:{gpu.index} ({gpu.name})" for gpu in machine.gpus]
        if device != "cuda" and not any(name.startswith(f"{device} ") for name in names):
            raise PlanError(f"there is no `{device}`", hint=f"this machine has {', '.join(names)}")
        return
    if machine.torch_build == "cpu":
        raise PlanError(
            f"`--device {device}` needs another torch: {machine.versions.get('torch')} is built "
            "for the CPU",
            hint="https://pytorch.org/get-started/locally has the `pip install` for a GPU",
        )
    raise PlanError(
        f"torch finds no GPU for `--device {device}`",
        hint="; ".join(machine.notes)
        or "`nvidia-smi` shows whether the driver sees one; `--device auto` uses what there is",
    )


def _missed_gpu(chosen: _Verdict, better: Sequence[_Verdict]) -> Problem | None:
    """Return why no GPU runs the model, if it would fit one of the *better* placements."""
    if chosen.is_on_gpu:
        return None
    return next((verdict.problem for verdict in better if verdict.is_missed), None)


def _check_missed_gpu(verdicts: Sequence[_Verdict]) -> None:
    """Raise a PlanError if a model runs on the CPU only because the GPU needs a missing package.

    A user who asks for quantized weights expects the speed of the GPU. So an error that names the
    package is better than a slow run on the CPU.
    """
    for verdict in verdicts:
        if verdict.is_missed and verdict.problem is not None:
            hint = f"{verdict.problem.hint}; or `--device cpu`, which needs no package"
            raise PlanError(verdict.problem.message, hint=hint)


def _no_way(
    verdicts: Sequence[_Verdict], model: ModelFacts, choices: PlanChoices, machine: Machine
) -> PlanError:
    """Return the error for a model that cannot run in any way that agrees with *choices*."""
    possible = [v for v in verdicts if v.problem is None]
    if not possible:
        problem = next(v.problem for v in verdicts if v.problem is not None)
        return PlanError(problem.message, hint=problem.hint)
    # These problems are of options that would fit into memory, and lack only a package.
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
        if _judge(option, model, "sdpa", machine).works:
            return option
    return None


def _as_flags(option: Placement) -> str:
    device = option.device if not option.gpus or option.is_spread else option.gpus[0].device
    return f"`--device {device} --quantization {option.quantization} --dtype {option.dtype}`"
