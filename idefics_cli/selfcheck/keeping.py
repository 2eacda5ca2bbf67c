"""Verdicts that are kept for plans, and the check of attention at the first use of a new GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from idefics_cli.core.paths import display_path
from idefics_cli.core.types import DtypeName
from idefics_cli.hardware.machine import Gpu, Machine
from idefics_cli.models.families.spec import Shape
from idefics_cli.models.kernels.table import ATTENTION_KERNELS, KERNELS
from idefics_cli.models.planning.verdicts import Verdict, Verdicts, read_verdicts, write_verdict
from idefics_cli.selfcheck.attention import AttentionTarget, check_attention
from idefics_cli.selfcheck.results import CheckResult, ProbeRow, faults_of

IsHere = Callable[[str], bool]


def keep_results(
    folder: Path,
    results: Sequence[CheckResult],
    machine: Machine,
    *,
    is_whole: bool = True,
    speeds: Mapping[str, tuple[float, float]] | None = None,
) -> None:
    """Keep a verdict for every device of *results*, in place of the earlier one.

    Args:
        folder: Folder of the verdicts.
        results: Results of a check.
        machine: This machine.
        is_whole: Whether all ways were checked; False if only attention was.
        speeds: As `Machine.measured_speeds`; None keeps those of the earlier verdict.

    Raises:
        OSError: If a file cannot be written.
    """
    former = read_verdicts(folder, machine).by_device
    answered = [
        result
        for result in results
        # The reference runs on the CPU even if only another device is checked, so it gives no
        # verdict on the CPU.
        if result.status != "refused" and not _is_reference(result)
    ]
    devices = {r.device if isinstance(r, ProbeRow) else r.way.spec.device for r in answered}
    for device in sorted(devices):
        heads = [r.heads for r in answered if isinstance(r, ProbeRow) and r.device == device]
        made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M")
        faults = faults_of(results, device)
        fresh = Verdict(device, made, is_whole, tuple(dict.fromkeys(heads)), faults)
        if device == "cpu":
            fresh = replace(fresh, speeds=speeds or {})
        verdict = _joined(fresh, former[device]) if device in former else fresh
        write_verdict(folder, verdict, machine)


def _joined(fresh: Verdict, former: Verdict) -> Verdict:
    """Return *fresh* with what still holds of an earlier verdict on the same device."""
    # Faults that an earlier check found for other shapes still hold, so they are kept.
    faults = tuple(
        fault
        for fault in former.faults
        if fault not in fresh.faults
        and (not fresh.is_whole or fault.heads is not None)
        and fault.heads not in fresh.heads
    )
    return replace(
        fresh,
        is_whole=fresh.is_whole or former.is_whole,
        heads=tuple(dict.fromkeys(fresh.heads + former.heads)),
        faults=fresh.faults + faults,
        speeds=fresh.speeds or former.speeds,
    )


def _is_reference(result: CheckResult) -> bool:
    return not isinstance(result, ProbeRow) and result.way.is_reference


def probe_new_gpus(
    folder: Path, verdicts: Verdicts, machine: Machine, shape: Shape, *, is_here: IsHere
) -> Verdicts:
    """Check the attention of the GPUs for which no verdict covers the heads of *shape*.

    This happens once for each shape of a model, driver and version.

    Args:
        folder: Folder of the verdicts.
        verdicts: The verdicts in it.
        machine: This machine.
        shape: The shape of the model.
        is_here: Whether torch can use a device.

    Returns:
        *verdicts*, with those of the new GPUs.
    """
    heads = f"{shape.heads}x{shape.kv_heads}x{shape.head_dim}"
    gpus = [
        gpu
        for gpu in machine.gpus
        if not _is_known(verdicts, f"cuda:{gpu.index}", heads) and is_here(f"cuda:{gpu.index}")
    ]
    if not gpus:
        return verdicts
    rows = list(check_attention((target for gpu in gpus for target in _targets(gpu)), shape))
    notes = tuple(_refusal(row) for row in rows if row.status == "refused")
    try:
        keep_results(folder, rows, machine, is_whole=False)
    except OSError as error:
        # The cache is read-only. Without a verdict on disk, the next start checks again.
        devices = dict.fromkeys(row.device for row in rows if row.status != "refused")
        fresh = {d: Verdict(d, "", False, (heads,), faults_of(rows, d)) for d in devices}
        why = getattr(error, "strerror", None) or error
        notes += (f"the check of attention is not kept in {display_path(folder)}: {why}",)
        return Verdicts({**verdicts.by_device, **fresh}, (*verdicts.notes, *notes))
    kept = read_verdicts(folder, machine)
    return Verdicts(kept.by_device, (*kept.notes, *notes))


def _refusal(row: ProbeRow) -> str:
    return (
        f"{row.attention} in {row.dtype} was not checked on {row.device}: {row.reason}; "
        "`idefics doctor --check` tries again"
    )


def _is_known(verdicts: Verdicts, device: str, heads: str) -> bool:
    known = verdicts.by_device.get(device)
    return known is not None and heads in known.heads


def _targets(gpu: Gpu) -> Iterator[AttentionTarget]:
    dtype: DtypeName = "bfloat16" if gpu.has_native_bf16 else "float16"
    kernels = [name for name in ATTENTION_KERNELS if KERNELS[name].device == "cuda"]
    for name in ("sdpa", *kernels):
        yield AttentionTarget(f"cuda:{gpu.index}", dtype, name)
