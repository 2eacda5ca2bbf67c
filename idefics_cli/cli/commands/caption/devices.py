"""`--devices`: a worker process for each of several devices of this machine."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from idefics_cli.cli.commands.caption.inputs import Inputs
from idefics_cli.cli.invocation import Invocation
from idefics_cli.cli.model_choice import check_without_torch, find_facts, plan_for, with_base_model
from idefics_cli.core.errors import PlanError, UsageError
from idefics_cli.core.types import LoadSpec
from idefics_cli.core.units import counted, format_size
from idefics_cli.hardware.system import divide_cores

if TYPE_CHECKING:
    from idefics_cli.caption.executors import ExecutorKind, NamedFactory
    from idefics_cli.caption.executors.warm import WarmProcesses
    from idefics_cli.engine.protocol import EngineFactory
    from idefics_cli.models.hub.facts import ModelFacts
    from idefics_cli.models.planning.plan import Machine, Plan

MOST_WORKERS = 64
_ALL = "all"


@dataclass(frozen=True, slots=True)
class Workers:
    """The plans of all workers; the memory and the threads of the processor are divided.

    Attributes:
        names: Names of the workers, such as "cuda:1", or "cpu:0" for the first one on a processor.
        plans: The plan of each.
        warm: Processes that have started already.
        processors: The processors of each worker on the processor of this computer; an empty set,
            or no set at all, stands for all.
    """

    names: tuple[str, ...]
    plans: tuple[Plan, ...]
    warm: WarmProcesses | None = field(default=None, kw_only=True)
    processors: Sequence[frozenset[int]] = field(default=(), kw_only=True)

    @property
    def described(self) -> str:
        """A sentence about the workers."""
        return f"each worker has this plan: {', '.join(self.names)}"

    @property
    def executor(self) -> ExecutorKind:
        """The executor of a run with these workers."""
        from idefics_cli.caption.executors.processes import process_executor

        return partial(process_executor, warm=self.warm, processors=self.processors)

    def factories(self, make: Callable[[LoadSpec], EngineFactory]) -> list[NamedFactory]:
        """Return the factory of the engine of each worker."""
        plans = zip(self.names, self.plans, strict=True)
        return [(name, make(plan.spec)) for name, plan in plans]


def warm_up(invocation: Invocation) -> WarmProcesses | None:
    """Start the processes of `--devices`, which import their libraries during the planning.

    None if there are none, or if it is not known how many.

    Raises:
        UsageError: If `--devices` is wrong.
    """
    settings, start = invocation.settings, invocation.services.warm_up
    if start is None or settings.dry_run or settings.ray or settings.server:
        return None
    if settings.devices is None or settings.devices == _ALL:
        return None
    return start(_named(settings.devices))


def plan_workers(
    invocation: Invocation, given: Inputs, warm: WarmProcesses | None = None
) -> Workers | None:
    """Return the plans of the workers that `--devices` names; None if it is not given.

    Args:
        invocation: The command.
        given: Its inputs.
        warm: Processes for the workers; the first one describes this machine.

    Raises:
        UsageError: If `--devices` is wrong, or contradicts another option.
        ModelError: If the model is unknown, or cannot be downloaded.
        PlanError: If a device cannot run what the first one runs, or the memory is too small.
    """
    text = invocation.settings.devices
    if text is None:
        return None
    if invocation.resolved.origins["device"].source == "flag":
        raise UsageError(
            "--device and --devices exclude each other", hint="`--devices cuda:0,cuda:1`"
        )
    if given.fileless:
        raise UsageError(
            f"--devices shares files among workers, and {given.fileless} is one picture",
            hint="leave `--devices` out",
        )
    _named(text)  # an error in the text needs neither the model nor the machine
    facts = find_facts(with_base_model(invocation))
    check_without_torch(invocation, facts, text)
    machine = _probe(invocation, warm)
    devices = list_devices(text, machine)
    plans = _plans(invocation, devices, machine, facts)
    # Threads of one worker that wake each other on several processors take more processor time.
    processors = divide_cores(len(devices)) if {*devices} == {"cpu"} else ()
    return Workers(_worker_names(devices), plans, warm=warm, processors=processors)


def _worker_names(devices: Sequence[str]) -> tuple[str, ...]:
    """Return a name for each worker: its device, numbered if several share it."""
    return tuple(
        device if devices.count(device) == 1 else f"{device}:{devices[:index].count(device)}"
        for index, device in enumerate(devices)
    )


def _probe(invocation: Invocation, warm: WarmProcesses | None) -> Machine:
    with invocation.console.status("starting"):
        # The first worker imports torch in any case, and this process then does not need it.
        machine = warm and warm.ask(invocation.services.probe)
        return machine or invocation.services.probe()


def list_devices(text: str, machine: Machine) -> list[str]:
    """Return the device of each worker: `cpu:2` is two times "cpu", `all` every CUDA device.

    Raises:
        UsageError: If this machine has no such device, or one would be used twice.
    """
    if text == _ALL:
        _check_gpus(text, ["cuda"], machine)
        return [f"cuda:{gpu.index}" for gpu in machine.gpus]
    devices = _named(text)
    _check_gpus(text, devices, machine)
    return devices


def _named(text: str) -> list[str]:
    devices: list[str] = []
    for part in text.split(","):
        name, _, number = part.partition(":")
        if name == "cpu":
            # One more than the limit is enough for the error, whatever the number is.
            devices += ["cpu"] * min(int(number[:9] or 1), MOST_WORKERS + 1)
        elif part in devices:
            raise UsageError(f"`--devices {text}` names `{part}` twice")
        else:
            devices.append(part)
    if not 1 <= len(devices) <= MOST_WORKERS:
        raise UsageError(
            f"`--devices {text}` names {'no' if not devices else 'too many'} workers; "
            f"there can be from 1 to {MOST_WORKERS}"
        )
    return devices


def _check_gpus(text: str, devices: Sequence[str], machine: Machine) -> None:
    known = [f"cuda:{gpu.index}" for gpu in machine.gpus]
    strange = [each for each in devices if each.startswith("cuda") and each not in known]
    if strange and not known:
        raise UsageError(
            f"`--devices {text}`: this machine has no CUDA device",
            hint="`--devices cpu:2` runs two workers on the processor",
        )
    if strange and strange != ["cuda"]:
        raise UsageError(
            f"`--devices {text}`: this machine has no `{strange[0]}`",
            hint=f"it has {', '.join(known)}",
        )


def _plans(
    invocation: Invocation, devices: Sequence[str], machine: Machine, facts: ModelFacts
) -> tuple[Plan, ...]:
    settings = invocation.settings
    plans: dict[str, Plan] = {}
    for device in dict.fromkeys(devices):
        # All workers must write the same captions, so the others follow the first one.
        first = next(iter(plans.values()), None)
        chosen = replace(settings, device=device)
        if first is not None:
            spec = first.spec
            chosen = replace(chosen, dtype=spec.dtype, quantization=spec.quantization)
        resolved = replace(invocation.resolved, settings=chosen)
        plan = plan_for(replace(invocation, resolved=resolved), machine, facts)
        if first is not None and plan.spec.splitting != first.spec.splitting:
            raise PlanError(
                f"`{device}` would cut pictures in another way than `{devices[0]}`",
                hint="`--splitting` or `--no-splitting` decides for all",
            )
        plans[device] = plan
    return tuple(_shared(plans[device], devices, machine, settings.threads) for device in devices)


def _shared(plan: Plan, devices: Sequence[str], machine: Machine, threads: int | None) -> Plan:
    """Return *plan* with the part of the processor and its memory that one worker may use."""
    count = len(devices)
    in_ram = sum(device in ("cpu", "mps") for device in devices)
    part = max(1, (threads or machine.cores) // count)
    former = plan.spec.threads
    spec = replace(plan.spec, threads=part if former is None else min(former, part))
    needs = []
    for need in plan.needs:
        if need.is_in_ram and in_ram > 1:
            usable = need.usable // in_ram
            if need.total > usable:
                is_smallest = plan.spec.quantization == "4bit"
                ways = "" if is_smallest else ", `--quantization 4bit`"
                raise PlanError(
                    f"{counted(in_ram, 'worker')} need {format_size(need.total)} of memory each, "
                    f"and {format_size(need.usable)} are usable",
                    hint=f"take fewer workers{ways} or a smaller model",
                )
            need = replace(need, usable=usable)
        needs.append(need)
    shared = replace(plan, spec=spec, needs=tuple(needs))
    amount = counted(machine.cores, "core") if threads is None else counted(threads, "thread")
    return _with_shared_reasons(shared, plan, f"{amount}, divided among {count} workers")


def _with_shared_reasons(shared: Plan, whole: Plan, why_threads: str) -> Plan:
    """Return *shared* with reasons that tell its own threads and memory, not those of *whole*."""
    from idefics_cli.models.planning.needs import describe_fit

    before, now = describe_fit(whole.needs), describe_fit(shared.needs)
    reasons = []
    for reason in shared.reasons:
        if reason.subject == "threads" and shared.spec.threads != whole.spec.threads:
            reason = replace(reason, choice=f"{shared.spec.threads}", why=why_threads)
        reasons.append(replace(reason, why=reason.why.replace(before, now)))
    return replace(shared, reasons=tuple(reasons))
