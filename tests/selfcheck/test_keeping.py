"""What a check found is kept for plans; a new GPU is probed once for each shape."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from idefics_cli.models.hub.facts import find_facts
from idefics_cli.models.kernels import attention_probe
from idefics_cli.models.kernels.attention_probe import AttentionError, HeadShape
from idefics_cli.models.planning.verdicts import read_verdicts
from idefics_cli.selfcheck.attention import AttentionTarget, check_attention
from idefics_cli.selfcheck.keeping import keep_results, probe_new_gpus
from idefics_cli.selfcheck.results import ProbeRow
from tests.support.machines import RTX_4090, apple, gpus

WRONG = ("cuda:1", "sdpa")
ATTENTIONS = ("bfloat16 sdpa", "bfloat16 cuda_split_keys")
MACHINE = gpus(RTX_4090, RTX_4090)
SMALL, LARGE = (find_facts(name).shape for name in ("smolvlm-256m", "idefics2-8b"))


@pytest.fixture
def probed(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str]]:
    """Replace the probe: torch's attention is wrong on cuda:1. Return what is probed."""
    found: list[tuple[str, str, str]] = []

    def probe(attention: str, *, device: str, dtype: str, text: HeadShape) -> list[AttentionError]:
        found.append((device, f"{dtype} {attention}", str(text)))
        return [AttentionError("decode", 0.5 if (device, attention) == WRONG else 1e-4)]

    monkeypatch.setattr(attention_probe, "probe_attention", probe)
    return found


def first_use(folder: Path, machine: Any = MACHINE, shape: Any = SMALL) -> Any:
    verdicts = read_verdicts(folder, machine)
    return probe_new_gpus(folder, verdicts, machine, shape, is_here=lambda device: True)


def test_a_new_gpu_is_probed_once_for_each_shape(
    tmp_path: Path, probed: list[tuple[str, str, str]]
) -> None:
    found = first_use(tmp_path)
    assert probed == [(f"cuda:{n}", name, "9x3x64") for n in (0, 1) for name in ATTENTIONS]
    assert [verdict.is_whole for verdict in found.by_device.values()] == [False, False]
    (fault,) = found.faults
    assert fault.subject == "bfloat16 sdpa on cuda:1"
    assert fault.found == "decode is off by 0.5, and 0.03 is allowed"
    assert fault.heads == "9x3x64"
    assert first_use(tmp_path) == found
    assert len(probed) == 4
    later = first_use(tmp_path, shape=LARGE)
    assert [heads for _, _, heads in probed[4:]] == ["32x8x128"] * 4
    assert later.by_device["cuda:0"].heads == ("32x8x128", "9x3x64")
    assert [fault.heads for fault in later.faults] == ["32x8x128", "9x3x64"]


def test_another_driver_is_probed_again(tmp_path: Path, probed: list[object]) -> None:
    first_use(tmp_path)
    first_use(tmp_path, machine=replace(MACHINE, driver="581.0"))
    assert len(probed) == 8


def test_nothing_runs_without_a_gpu_or_for_a_gpu_that_torch_lacks(
    tmp_path: Path, probed: list[object]
) -> None:
    first_use(tmp_path, machine=apple(32))
    verdicts = read_verdicts(tmp_path, MACHINE)
    probe_new_gpus(tmp_path, verdicts, MACHINE, SMALL, is_here=lambda device: False)
    assert probed == []
    assert list(tmp_path.iterdir()) == []


def test_a_cache_that_cannot_be_written_keeps_the_result_for_this_run(
    tmp_path: Path, probed: list[object]
) -> None:
    (tmp_path / "file").touch()
    found = first_use(tmp_path / "file" / "checks")
    assert len(found.faults) == 1
    assert len(probed) == 4


def test_what_cannot_run_is_refused_and_no_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def probe(*arguments: object, **options: object) -> list[AttentionError]:
        raise RuntimeError("CUDA error: out of memory\nmore")

    monkeypatch.setattr(attention_probe, "probe_attention", probe)
    (row,) = check_attention([AttentionTarget("cuda:0", "float16", "sdpa")], SMALL)
    assert (row.status, row.reason) == ("refused", "CUDA error: out of memory")
    assert first_use(tmp_path).by_device == {}


def test_a_wrong_kernel_is_a_fault_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def probe(attention: str, *, device: str, **more: object) -> list[AttentionError]:
        return [AttentionError("decode", 0.0 if attention == "sdpa" else 0.5)]

    monkeypatch.setattr(attention_probe, "probe_attention", probe)
    faults = first_use(tmp_path).faults
    assert [(fault.device, fault.kernel) for fault in faults] == [
        ("cuda:0", "cuda_split_keys"),
        ("cuda:1", "cuda_split_keys"),
    ]
    # Another model does not make the device forget it.
    monkeypatch.setattr(attention_probe, "probe_attention", lambda *a, **b: [])
    assert set(faults) <= set(first_use(tmp_path, shape=LARGE).faults)


def row(heads: str, error: float) -> ProbeRow:
    status = "wrong" if error else "right"
    return ProbeRow("cuda:0", "float16", "sdpa", heads, status, "off", 0, 1, error, 0.1)  # type: ignore[arg-type] # one of the Literal


def kept_heads(folder: Path, results: Sequence[ProbeRow], *, is_whole: bool) -> list[str | None]:
    keep_results(folder, results, MACHINE, is_whole=is_whole)
    return [fault.heads for fault in read_verdicts(folder, MACHINE).faults]


def kept_speeds(folder: Path, speeds: dict[str, tuple[float, float]] | None) -> Any:
    rows = [replace(row("9x3x64", 0), device="cpu")]
    keep_results(folder, rows, MACHINE, speeds=speeds)
    return read_verdicts(folder, MACHINE).with_speeds(MACHINE).measured_speeds


def test_speeds_are_kept_until_others_are_measured(tmp_path: Path) -> None:
    assert kept_speeds(tmp_path, None) == {}
    assert kept_speeds(tmp_path, {"int4": (7.0, 4.5)}) == {"int4": (7.0, 4.5)}
    # A later check was disturbed.
    assert kept_speeds(tmp_path, None) == {"int4": (7.0, 4.5)}
    assert kept_speeds(tmp_path, {"int4": (6.0, 4.0)}) == {"int4": (6.0, 4.0)}


def test_a_later_check_replaces_what_it_covers_and_keeps_the_rest(tmp_path: Path) -> None:
    assert kept_heads(tmp_path, [row("a", 0.5)], is_whole=False) == ["a"]
    assert kept_heads(tmp_path, [row("b", 0.5)], is_whole=True) == ["b", "a"]
    assert kept_heads(tmp_path, [row("a", 0)], is_whole=True) == ["b"]
    verdict = read_verdicts(tmp_path, MACHINE).by_device["cuda:0"]
    assert (verdict.is_whole, verdict.heads) == (True, ("a", "b"))
