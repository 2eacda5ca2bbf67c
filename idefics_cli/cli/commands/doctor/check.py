"""`idefics doctor --check`: every way of this machine answers what is known."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from idefics_cli.cli.invocation import Invocation
from idefics_cli.core.errors import EXIT_FAILURE, ModelError
from idefics_cli.core.paths import display_path, verdict_folder

if TYPE_CHECKING:
    from idefics_cli.hardware.machine import Machine
    from idefics_cli.selfcheck.asking import KnownPicture
    from idefics_cli.selfcheck.results import CheckResult
    from idefics_cli.selfcheck.speeds import SpeedCheck
    from idefics_cli.ui.views.check import CheckProgress

# No picture of this seed is in the training data. If a device computes correctly, all answers about
# these pictures are right.
_SEED, _PICTURES = 7, 12
_QUESTIONS = 2
# The models whose speeds are measured take 0.6 GB together.
_SPEED_BYTES = 2**30


def check_machine(invocation: Invocation, machine: Machine) -> int:
    """Check every way of *machine*, show the results, keep the verdict; return the exit code.

    Raises:
        ModelError: If torch or transformers cannot be imported, or a model is not known.
    """
    for package in ("torch", "transformers"):
        if package in machine.broken:
            raise ModelError(
                f"{package} cannot be imported: {machine.broken[package]}",
                hint=f"pip install --force-reinstall {package}",
            )
    from idefics_cli.selfcheck.results import is_sound
    from idefics_cli.ui.views import check as view

    console = invocation.console
    progress = view.CheckProgress(console)
    results: list[CheckResult] = []
    with tempfile.TemporaryDirectory(prefix="idefics-check-") as folder:
        try:
            for result in _results(invocation, machine, Path(folder), progress):
                results.append(result)
                progress.show(result)
            speeds = _speeds(invocation, results, machine, progress)
        finally:
            progress.clear()
    note = _keep(invocation, results, machine, speeds)
    if invocation.settings.json:
        console.json(view.check_record(results, note, speeds))
    else:
        view.show_check(console, results, note, speeds)
    return 0 if is_sound(results) else EXIT_FAILURE


def _results(
    invocation: Invocation, machine: Machine, folder: Path, progress: CheckProgress
) -> Iterator[CheckResult]:
    """Yield the results of attention, which takes the least time, and then of all ways."""
    from idefics_cli.models.hub.registry import DEMO
    from idefics_cli.selfcheck.attention import check_attention, targets_of
    from idefics_cli.selfcheck.run import Examination, check_ways
    from idefics_cli.selfcheck.ways import list_ways

    settings, find_facts = invocation.settings, invocation.services.find_facts
    built_in = find_facts(DEMO, revision=None, offline=True)
    named = find_facts(settings.model, revision=settings.revision, offline=settings.offline)
    examination = Examination(
        built_in,
        machine,
        draw_pictures(folder),
        device=settings.device,
        open_engine=lambda spec: invocation.services.make_factory(spec)(),
        clock=invocation.services.clock,
        say=progress.say,
    )
    targets = targets_of(list_ways(built_in, machine, device=settings.device))
    progress.say(f"attention of {named.name}", 0)
    yield from check_attention(targets, named.shape)
    yield from check_ways(examination)


def _speeds(
    invocation: Invocation, results: list[CheckResult], machine: Machine, progress: CheckProgress
) -> SpeedCheck | None:
    """Measure the formats of weights on the processor; None if only another device is checked."""
    from idefics_cli.models.planning.verdicts import find_kernel_faults
    from idefics_cli.selfcheck.results import faults_of, has_reference

    is_checked = (invocation.settings.device or "auto") in ("auto", "cpu")
    if not is_checked or not has_reference(results) or machine.free_ram_bytes < _SPEED_BYTES:
        return None
    progress.say("speeds of the formats of weights", 0.99)
    broken = find_kernel_faults(faults_of(results, "cpu"), "cpu")
    return invocation.services.check_speeds(machine, broken)


def draw_pictures(folder: Path) -> list[KnownPicture]:
    """Draw the pictures of the check into *folder*, and return them with their right answers."""
    from idefics_cli.demo.samples import write_samples
    from idefics_cli.selfcheck.asking import KnownPicture

    return [
        KnownPicture(
            folder / sample.file_name,
            (
                ("Describe this image.", sample.caption),
                *((q.question, q.answer) for q in sample.questions[:_QUESTIONS]),
            ),
        )
        for sample in write_samples(folder, count=_PICTURES, seed=_SEED)
    ]


def _keep(
    invocation: Invocation,
    results: list[CheckResult],
    machine: Machine,
    speeds: SpeedCheck | None,
) -> str:
    """Keep the verdict of *results*; return where, or why not."""
    from idefics_cli.selfcheck.keeping import keep_results
    from idefics_cli.selfcheck.results import has_reference

    if not has_reference(results):
        return "no verdict is kept, because the reference is wrong"
    folder = verdict_folder(invocation.services.environ)
    try:
        measured = None if speeds is None else speeds.trusted
        keep_results(folder, results, machine, speeds=measured)
    except OSError as error:
        return f"the verdict cannot be kept in {display_path(folder)}: {error.strerror or error}"
    return f"plans read the verdict in {display_path(folder)}"
