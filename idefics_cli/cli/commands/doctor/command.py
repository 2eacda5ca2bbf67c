"""`idefics doctor`: this machine, what would run on it, and why."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from idefics_cli.cli import options
from idefics_cli.cli.commands.doctor.check import check_machine
from idefics_cli.cli.commands.doctor.server import check_server
from idefics_cli.cli.invocation import Invocation, begin_command
from idefics_cli.cli.model_choice import plan_for, with_base_model
from idefics_cli.core.errors import EXIT_DONE, EXIT_FAILURE, IdeficsError, ModelError, PlanError
from idefics_cli.core.paths import verdict_folder
from idefics_cli.core.units import format_size
from idefics_cli.models.hub.facts import check_name

if TYPE_CHECKING:
    from idefics_cli.models.planning.plan import Machine, Plan


Check = Annotated[
    bool,
    typer.Option(
        "--check",
        help="Compute known answers in every way that this machine has, and compare.",
        rich_help_panel=options.MODEL_PANEL,
        show_default=False,
    ),
]


def doctor(
    context: typer.Context,
    model: options.Model = None,
    server: options.Server = None,
    api_key_file: options.ServerKeyFile = None,
    revision: options.Revision = None,
    adapter: options.AdapterName = None,
    device: options.Device = None,
    dtype: options.Dtype = None,
    quantization: options.QuantizationName = None,
    attention: options.AttentionName = None,
    splitting: options.Splitting = None,
    longest_edge: options.LongestEdge = None,
    offline: options.Offline = None,
    threads: options.Threads = None,
    check: Check = False,
    json: options.Json = None,
    verbose: options.Verbose = None,
    quiet: options.Quiet = None,
) -> None:
    """Show this machine, what would run on it, and why.

    `idefics doctor -m idefics2-8b`

    `idefics doctor --check -m idefics2-8b`, or `--server http://127.0.0.1:8000`

    The last line says whether the model can run; if it cannot, the exit code is 1. With --check,
    the exit code is 1 if a way to compute that a plan may choose gives wrong results.
    """
    invocation = begin_command(context)
    if invocation.settings.server is not None and not check:
        raise typer.Exit(check_server(invocation))
    # A misspelt name is an error like that of any command, and not a property of this machine.
    check_name(with_base_model(invocation).settings.model)
    machine = _machine(invocation)
    if check:
        raise typer.Exit(check_machine(invocation, machine))
    raise typer.Exit(_report(invocation, machine))


def _report(invocation: Invocation, machine: Machine) -> int:
    """Show the machine and the plan, and return the exit code."""
    plan, problem = _plan(invocation, machine)
    if invocation.settings.json:
        record = _record(machine, plan, problem) | {"checks": _checks(invocation, machine)}
        invocation.console.json(_anonymized(record))
    else:
        _show(invocation, machine, plan, problem)
    return EXIT_DONE if problem is None else EXIT_FAILURE


def _machine(invocation: Invocation) -> Machine:
    """Return this machine, with the packages that cannot be imported."""
    with invocation.console.status("checking this machine"):
        machine = invocation.services.probe()
        broken = {**machine.broken, **invocation.services.broken_packages()}
        return replace(machine, broken=broken)


def _plan(invocation: Invocation, machine: Machine) -> tuple[Plan | None, IdeficsError | None]:
    for package in ("torch", "transformers"):
        if package in machine.broken:
            return None, ModelError(
                f"{package} cannot be imported: {machine.broken[package]}",
                hint=f"pip install --force-reinstall {package}",
            )
    from idefics_cli.models.planning.downloads import find_lack_of_room
    from idefics_cli.models.planning.self_tests import without_failing

    try:
        plan = plan_for(invocation, machine)
    except IdeficsError as error:
        return None, error
    with invocation.console.status("testing the kernels"):
        plan = without_failing(plan, invocation.services.failing_kernels(plan.spec))
    if plan.facts.folder is None and plan.spec.offline:
        return plan, ModelError(
            f"`{plan.facts.name}` is not in the cache, and the network is switched off",
            hint=f"`idefics models pull {plan.facts.name}` with the network",
        )
    if lack := find_lack_of_room(plan.facts, machine):
        return plan, ModelError(lack, hint="make room there, or set HF_HOME to a larger disk")
    return plan, None


def _show(
    invocation: Invocation, machine: Machine, plan: Plan | None, problem: IdeficsError | None
) -> None:
    from idefics_cli.models.planning.verdicts import read_verdicts
    from idefics_cli.ui.views.check import render_verdicts
    from idefics_cli.ui.views.machine import render_machine
    from idefics_cli.ui.views.plan import render_picture_costs, render_plan

    console = invocation.console
    console.report(render_machine(machine))
    if verdicts := read_verdicts(verdict_folder(invocation.services.environ), machine).by_device:
        console.report(render_verdicts(verdicts))
    console.line("")
    if plan is not None:
        console.report(render_plan(plan))
        console.report(render_picture_costs(plan))
        console.report(_training(plan))
        console.line("")
    console.report(_verdict(plan, problem))


def _training(plan: Plan) -> str:
    """Return the memory that `idefics tune` takes with this plan."""
    from idefics_cli.training.precision import training_spec
    from idefics_cli.training.tuning.estimate import estimate_usual

    facts, name = plan.facts, "training of an adapter (`idefics tune`)"
    try:
        spec, computed = training_spec(plan.spec)
    except PlanError as error:
        return f"{name}: {error}"
    splitting = plan.spec.splitting if plan.spec.splitting is not None else bool(facts.splitting)
    memory = estimate_usual(
        spec, facts.shape, facts.parameters, splitting=splitting, computed=computed
    )
    size = format_size(memory.total)
    return f"{name}\n  takes about {size} in {computed}, if each row has one picture"


def _checks(invocation: Invocation, machine: Machine) -> list[dict[str, object]]:
    from idefics_cli.models.planning.verdicts import read_verdicts

    verdicts = read_verdicts(verdict_folder(invocation.services.environ), machine)
    return [asdict(verdict) for verdict in verdicts.by_device.values()]


def _verdict(plan: Plan | None, problem: IdeficsError | None) -> str:
    if problem is not None or plan is None:
        hint = getattr(problem, "hint", None)
        return f"not ready: {problem}" + (f" ({hint})" if hint else "")
    line = f"ready: {plan.facts.name} runs on {plan.spec.device}"
    if plan.facts.folder is None:
        size = plan.facts.download_bytes
        line += f", after a download{f' of about {format_size(size)}' if size else ''}"
    return line


def _anonymized(value: object) -> object:
    """Return *value* without the home folder and the name of the user, for a public bug report."""
    if isinstance(value, Mapping):
        return {key: _anonymized(item) for key, item in value.items()}
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [_anonymized(item) for item in value]
    if not isinstance(value, str):
        return value
    home = os.path.expanduser("~").rstrip(os.sep)
    for folder in {home, os.path.realpath(home)} - {"", os.sep}:
        value = re.sub(rf"{re.escape(folder)}(?=$|[^\w.-])", "~", value)
    # The name of the user is also replaced where it is a folder in another path, such as one on a
    # network drive.
    user = re.escape(os.path.basename(home))
    return re.sub(rf"(?<=[/\\]){user}(?=[/\\])", "USER", value) if user else value


def _record(machine: Machine, plan: Plan | None, problem: IdeficsError | None) -> dict[str, object]:
    from idefics_cli.ui.views.machine import machine_record

    return {
        "ready": problem is None,
        "error": None if problem is None else {"message": str(problem), "hint": problem.hint},
        "machine": machine_record(machine),
        "plan": None if plan is None else plan.to_dict(),
    }
