"""Plans: how a model runs on a machine, decided before any weight is read, with reasons."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

from idefics_cli.core.errors import PlanError
from idefics_cli.core.paths import display_path
from idefics_cli.core.types import (
    DECODING_BYTES,
    Attention,
    DtypeName,
    LoadSpec,
    PictureDetail,
    Quantization,
)
from idefics_cli.hardware.machine import Gpu, Machine, probe_machine
from idefics_cli.models.families.geometry import find_detail_fault
from idefics_cli.models.hub.facts import ModelFacts
from idefics_cli.models.kernels.table import KERNELS
from idefics_cli.models.planning import reasons as plan_reasons
from idefics_cli.models.planning.faults import FaultSieve
from idefics_cli.models.planning.judging import (
    JudgedPlacement,
    check_missed_gpu,
    find_missed_gpu,
    judge_placement,
    no_way_error,
)
from idefics_cli.models.planning.kernels import choose_kernels
from idefics_cli.models.planning.needs import (
    Need,
    float32_modules,
    max_memory,
    with_larger_forwards,
)
from idefics_cli.models.planning.picture_costs import picture_costs
from idefics_cli.models.planning.placement import (
    PlanChoices,
    default_threads,
    list_placements,
)
from idefics_cli.models.planning.reasons import Reason
from idefics_cli.models.planning.trained import as_trained
from idefics_cli.models.planning.verdicts import Fault

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
        return {
            "model": _shown(spec.name),
            "repo": _shown(spec.repo),
            "revision": spec.revision,
            "family": spec.family,
            "adapter": None if spec.adapter is None else _shown(spec.adapter.name),
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
            "longest_edge": spec.longest_edge,
            "pictures": [asdict(cost) for cost in picture_costs(facts, spec)],
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


def _shown(name: str) -> str:
    """Return the *name* of a model or adapter; a path below the home folder begins with `~`."""
    return display_path(Path(name)) if Path(name).is_absolute() else name


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


def make_plan(
    model: ModelFacts, choices: PlanChoices, machine: Machine, *, faults: Sequence[Fault] = ()
) -> Plan:
    """Decide how *model* runs on *machine*.

    The plan is the first of `list_placements` that works.

    Args:
        model: What is known about the model.
        choices: The user's choices.
        machine: Where the model runs.
        faults: What gave wrong results on this machine, and is left out.

    Raises:
        PlanError: If the machine cannot do what *choices* ask for, or if no way works.
    """
    model = _model_as_chosen(choices := as_trained(choices, model), model)
    _check_device(choices.device or "auto", machine)
    sieve, asked = FaultSieve(faults, model), _asked_attention(choices)
    verdicts = [
        judge_placement(option, model, attention, machine, sieve)
        for option in list_placements(model, choices, machine)
        for attention in sieve.attentions(option, asked)
    ]
    if (chosen := next((v for v in verdicts if v.works), None)) is None:
        raise no_way_error(verdicts, model, choices, machine)
    if chosen.option.device == "cpu" and choices.quantization not in (None, "auto"):
        check_missed_gpu(verdicts)
    better = verdicts[: verdicts.index(chosen)]
    context = plan_reasons.Context(
        facts=model,
        choices=choices,
        machine=machine,
        option=chosen.option,
        needs=chosen.needs,
        tried=tuple((v.option, v.needs) for v in better if v.problem is None),
        missed=find_missed_gpu(chosen, better),
        left_out=tuple(v.fault for v in better if v.fault is not None),
    )
    return _plan_of(chosen, context, sieve)


def _plan_of(chosen: JudgedPlacement, context: plan_reasons.Context, sieve: FaultSieve) -> Plan:
    """Return the plan for the placement *chosen*, with its kernels and reasons."""
    model, machine = context.facts, context.machine
    needs, vision_tiles = with_larger_forwards(chosen.needs, chosen.option, model, chosen.attention)
    spec = replace(_spec(chosen, model, context.choices, machine), vision_tiles=vision_tiles)
    spec, faults = _with_kernels(spec, model, machine, sieve)
    left_out = dict.fromkeys([*context.left_out, *faults])
    context = replace(context, needs=needs, left_out=tuple(left_out))
    return Plan(
        spec=spec,
        facts=model,
        reasons=plan_reasons.explain_choices(context, spec),
        needs=needs,
        spare_ram_bytes=machine.free_ram_bytes - sum(n.total for n in needs if n.is_in_ram),
        warnings=plan_reasons.list_warnings(context, spec),
    )


def _with_kernels(
    spec: LoadSpec, model: ModelFacts, machine: Machine, sieve: FaultSieve
) -> tuple[LoadSpec, list[Fault]]:
    """Return *spec* with sound kernels and graphs, and the faults of those that are left out."""
    faults, is_stored = sieve.kernels(spec.device), model.stored is not None
    graphs = sieve.graph_fault(spec)
    spec = replace(spec, uses_graphs=graphs is None)
    wanted = choose_kernels(spec, machine, is_stored=is_stored)
    sound = {name: kernel for name, kernel in KERNELS.items() if name not in faults}
    kernels = choose_kernels(spec, machine, is_stored=is_stored, kernels=sound)
    left_out = [fault for name, fault in faults.items() if name in wanted.names]
    if graphs is not None:
        left_out.append(graphs)
    return replace(spec, kernels=kernels), left_out


def _spec(
    chosen: JudgedPlacement,
    model: ModelFacts,
    choices: PlanChoices,
    machine: Machine,
) -> LoadSpec:
    option = chosen.option
    # `splitting` is None if it stays as in the files of the checkpoint.
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
        attention=chosen.attention,
        device=option.device,
        device_map="auto" if option.is_spread else None,
        max_memory=max_memory(chosen.needs, option),
        float32_modules=float32_modules(option, model, chosen.attention),
        splitting=None if own or model.splitting is None else option.splitting,
        longest_edge=_other_edge(choices, model),
        offline=choices.offline,
        threads=choices.threads or default_threads(option, model, machine),
        limits=choices.limits,
        adapter=model.adapter,
    )


def _other_edge(choices: PlanChoices, model: ModelFacts) -> int | None:
    """Return the longest edge that the user chose; None if the checkpoint has it anyway."""
    edges = model.shape.edges
    return None if edges and choices.longest_edge == edges.usual else choices.longest_edge


def _asked_attention(choices: PlanChoices) -> Attention | None:
    for name in get_args(Attention):
        if choices.attention == name:
            return name  # type: ignore[no-any-return] # a member of the Literal
    return None


def _model_as_chosen(choices: PlanChoices, model: ModelFacts) -> ModelFacts:
    """Return *model* with the size of pictures that the user chose, after a check of *choices*."""
    _check_choices(choices, model)
    if choices.longest_edge is None:
        return model
    return replace(model, shape=model.shape.at_edge(choices.longest_edge))


def _check_choices(choices: PlanChoices, model: ModelFacts) -> None:
    closed = (
        ("dtype", choices.dtype, get_args(DtypeName)),
        ("quantization", choices.quantization, get_args(Quantization)),
        ("attention", choices.attention, get_args(Attention)),
    )
    for name, value, allowed in closed:
        if value not in (None, "auto", *allowed):
            raise PlanError(f"unknown {name} `{value}`", hint=f"auto, {', '.join(allowed)}")
    detail = PictureDetail(choices.splitting, choices.longest_edge)
    if fault := find_detail_fault(detail, model.shape.edges, f"`{model.name}`"):
        raise PlanError(fault[0], hint=fault[1])
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


def check_torch_build(option: str, version: str | None) -> None:
    """Check, without importing torch, that it may have what the *option* for a GPU needs.

    Args:
        option: The option, such as "--device cuda".
        version: The version of the installed package; None if there is none. The builds for the
            CPU on download.pytorch.org end with "+cpu"; those on PyPI do not tell.

    Raises:
        PlanError: If torch is certainly built for the CPU.
    """
    if version is not None and version.endswith("+cpu"):
        raise _needs_another_torch(option, version)


def _needs_another_torch(option: str, version: str | None) -> PlanError:
    return PlanError(
        f"`{option}` needs another torch: {version} is built for the CPU",
        hint="https://pytorch.org/get-started/locally has the `pip install` for a GPU",
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
        raise _needs_another_torch(f"--device {device}", machine.versions.get("torch"))
    raise PlanError(
        f"torch finds no GPU for `--device {device}`",
        hint="; ".join(machine.notes)
        or "`nvidia-smi` shows whether the driver sees one; `--device auto` uses what there is",
    )
