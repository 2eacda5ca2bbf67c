"""`idefics doctor --check`: it passes here, names a broken kernel, and plans read its verdict."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from idefics_cli.cli.commands.doctor import check as check_module
from idefics_cli.cli.commands.doctor.check import draw_pictures
from idefics_cli.cli.services import Services
from idefics_cli.hardware.machine import probe_machine
from idefics_cli.models.kernels.rms_norm import CpuRMSNorm
from idefics_cli.models.loading import speed_probe
from idefics_cli.models.loading.speed_probe import SpeedProbe
from idefics_cli.models.planning.speeds import SPEEDS, Speed
from idefics_cli.models.planning.verdicts import (
    NO_VERDICTS,
    Fault,
    Verdict,
    Verdicts,
    write_verdict,
)
from idefics_cli.selfcheck import run as run_module
from idefics_cli.selfcheck import ways as ways_module
from idefics_cli.selfcheck.asking import KnownPicture
from idefics_cli.selfcheck.speeds import SpeedCheck
from tests.support import machines
from tests.support.commands import Ran, run
from tests.support.fakes import FakeEngine
from tests.support.kernels import FLOAT32_WAY

# The fewest pictures for which rows come and go in four slots; and those of other tests.
FEW, FEWEST = 5, 1
SPEEDS_HERE = SpeedCheck(
    SPEEDS[0], 2, {name: Speed(1.0, 1.0) for name in ("float32", "bfloat16", "8bit", "int4")}
)


def check(
    cache: Path, *arguments: str, speeds: SpeedCheck | None = SPEEDS_HERE, **more: Any
) -> Ran:
    # Two threads wait for each other most of the time while another process keeps a core busy.
    services = Services(
        environ={"XDG_CACHE_HOME": str(cache)}, probe=lambda: replace(probe_machine(), cores=1)
    )
    if speeds is not None:
        services = replace(services, check_speeds=lambda machine, broken: speeds)
    return run("doctor", "-m", "demo", *arguments, services=services, **more)


@pytest.fixture(autouse=True)
def few_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> int:
    """Let each way answer questions about the first pictures only; return their number.

    All but the first are only captioned.
    """
    count: int = getattr(request, "param", FEWEST)

    def draw(folder: Path) -> list[KnownPicture]:
        first, *others = draw_pictures(folder)[:count]
        return [first, *(replace(each, turns=each.turns[:1]) for each in others)]

    monkeypatch.setattr(check_module, "draw_pictures", draw)
    return count


@pytest.fixture
def one_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave one way besides the reference, so that a check takes a second."""
    every = ways_module.list_ways

    def first(*arguments: Any, **options: Any) -> list[ways_module.Way]:
        return [next(iter(every(*arguments, **options)))]

    monkeypatch.setattr(run_module, "list_ways", first)
    monkeypatch.setattr(ways_module, "list_ways", first)


@pytest.fixture
def broken_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the kernel for norms be off by 2 %."""
    sound: Callable[..., Tensor] = CpuRMSNorm.forward

    def forward(norm: CpuRMSNorm, activations: Tensor) -> Tensor:
        out = sound(norm, activations)
        return out + 0.02 * out.roll(1, -1)

    monkeypatch.setattr(CpuRMSNorm, "forward", forward)


@pytest.mark.parametrize(
    "few_pictures", [FEW, pytest.param(12, marks=pytest.mark.slow)], indirect=True
)
def test_every_way_of_this_computer_is_sound(
    tmp_path: Path, few_pictures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Six layers are for speeds that are worth knowing, and take much longer.
    monkeypatch.setattr(speed_probe, "SpeedProbe", partial(SpeedProbe, layers=1))
    ran = check(tmp_path, "--check", "--json", speeds=None)
    assert (ran.code, ran.err) == (0, "")
    record, speeds = ran.record, ran.record["speeds"]
    wrong = [row for row in record["ways"] + record["attention"] if row["status"] == "wrong"]
    assert wrong == []
    assert record["sound"] is True
    right = [row for row in record["ways"] if row["status"] == "right"]
    assert {row["dtype"] for row in right} == {"float32", "bfloat16", "float16"}
    assert {row["quantization"] for row in right} == {"none", "8bit", "4bit"}
    for row in right:
        manners = {m["manner"]: (m["right"], m["total"]) for m in row["manners"]}
        assert manners["one by one"] == (few_pictures, few_pictures)
        assert manners["chat"] == (5, 5)  # three turns about one picture, and one about two
    assert record["verdict"].startswith("sound: ")
    assert {"float32", "bfloat16", "8bit", "int4"} <= speeds["measured"].keys()
    assert all(pair["decode"] > 0 and pair["prompt"] > 0 for pair in speeds["measured"].values())
    assert len(speeds["claims"]) == 2 * (len(speeds["measured"]) - 1)
    (kept,) = check(tmp_path, "--json").record["checks"]
    assert (kept["device"], kept["is_whole"], kept["faults"]) == ("cpu", True, [])
    assert kept["speeds"] == (
        {}
        if speeds["disturbance"]
        else {name: [s["decode"], s["prompt"]] for name, s in speeds["measured"].items()}
    )
    shown = check(tmp_path).out
    assert f"  cpu  {kept['made']} UTC, every way  nothing wrong" in shown.splitlines()


def test_a_check_has_twelve_pictures_with_three_questions_each(tmp_path: Path) -> None:
    pictures = draw_pictures(tmp_path)
    assert [len(each.turns) for each in pictures] == [3] * 12
    assert len({each.path.read_bytes() for each in pictures}) == 12


@pytest.mark.usefixtures("one_way", "broken_norm")
def test_a_broken_kernel_fails_the_check_is_named_and_left_out_of_plans(tmp_path: Path) -> None:
    ran = check(tmp_path, "--check")
    assert ran.code == 1
    lines = ran.out.splitlines()
    (row,) = (line for line in lines if line.startswith(f"  {FLOAT32_WAY}"))
    assert "wrong: without rms_norm it is right: logits: 0 of 1 right; off by 0.0" in row
    # A busy machine adds that a way was slower.
    assert lines[-1].split(", 1 slower")[0] == (
        f"not sound: 1 of 3 ways wrong, and plans leave them out, first {FLOAT32_WAY}"
    )
    told = [line for line in ran.err.splitlines() if ": logits" in line]
    assert told[0].startswith(f"warning: {FLOAT32_WAY}: logits")

    later = check(tmp_path)
    assert later.code == 0
    assert "! left out: the kernel `rms_norm` computes wrongly here (logits" in later.out
    assert "wrong: the kernel `rms_norm`" in later.out
    assert "rms_norm" not in check(tmp_path, "--json").record["plan"]["kernels"]["norm"]


@pytest.mark.usefixtures("one_way")
def test_a_person_reads_a_table_on_a_terminal_and_lines_in_a_pipe(tmp_path: Path) -> None:
    piped = check(tmp_path, "--check")
    assert piped.code == 0
    head, *rows = piped.out.splitlines()
    title = rows.index("speeds on 2 threads of the processor; table: measured on AMD Zen 5")
    told = rows[title + 1 : -2]
    assert told[0] == "  bf16 decodes 1.0x as fast as float32 here (the table says 2.8x): off"
    assert told[2] == "  8 bit decodes 1.0x as fast as bf16 here (the table says 1.3x)"
    assert len(told) == len(SPEEDS_HERE.claims) == 6
    assert check(tmp_path, "--json").record["checks"][0]["speeds"]["int4"] == [1.0, 1.0]
    assert head.split() == ["way", "right", "measured", "result"]
    assert rows[0].split()[:4] == ["attention", "cpu", "float32", "cpu_sdpa"]
    assert rows[-2] == f"plans read the verdict in {tmp_path / 'idefics' / 'checks'}"
    assert rows[-1].startswith("sound: 3 ways right")
    assert piped.err == ""
    shown = check(tmp_path, "--check", terminal=True)
    assert "\x1b[" in shown.err  # progress, which is erased
    assert shown.out.splitlines()[-1].startswith("sound: 3 ways right")


def test_plans_take_the_format_that_a_check_measured_as_faster(tmp_path: Path) -> None:
    versions = {**machines.VERSIONS, "llvmlite": "0.50.0"}
    machine = machines.cpu(24, "fma", "avx512f", "avx512_bf16", versions=versions)
    services = Services(environ={"XDG_CACHE_HOME": str(tmp_path)}, probe=lambda: machine)

    def planned() -> str:
        ran = run(
            "doctor", "-m", "smolvlm-500m", "--quantization=4bit", "--json", services=services
        )
        return str(ran.record["plan"]["format_4bit"])

    assert planned() == "int4"
    speeds = {"int4": (2.0, 2.0), "nf4": (3.0, 3.0)}
    folder = tmp_path / "idefics" / "checks"
    write_verdict(folder, Verdict("cpu", "2026-11-29 01:30", True, speeds=speeds), machine)
    assert planned() == "nf4"


@pytest.mark.usefixtures("one_way")
def test_a_wrong_reference_is_told_and_no_verdict_is_kept(tmp_path: Path) -> None:
    services = Services(
        environ={"XDG_CACHE_HOME": str(tmp_path)},
        make_factory=lambda spec: lambda *, progress=None: FakeEngine(lambda request: "A cat."),
    )
    ran = run("doctor", "--check", "-m", "demo", services=services)
    assert ran.code == 1
    *_, note, verdict = ran.out.splitlines()
    assert note == "no verdict is kept, because the reference is wrong"
    assert verdict.startswith("not sound: plain float32 on the processor is wrong: 'A cat.', not ")
    assert not (tmp_path / "idefics").exists()


def test_a_check_of_a_missing_device_says_nothing_about_the_processor(tmp_path: Path) -> None:
    ran = check(tmp_path, "--check", "--device", "cuda")
    assert ran.code == 0
    assert "refused: " in ran.out
    assert not (tmp_path / "idefics").exists()


@pytest.mark.usefixtures("one_way")
def test_a_verdict_that_cannot_be_kept_is_told(tmp_path: Path) -> None:
    (tmp_path / "idefics").touch()
    ran = check(tmp_path, "--check")
    assert ran.code == 0
    assert "the verdict cannot be kept in " in ran.out


def test_a_damaged_verdict_is_a_warning_and_no_error(tmp_path: Path) -> None:
    services = Services(
        environ={"XDG_CACHE_HOME": str(tmp_path)}, probe=lambda: machines.gpus(machines.RTX_4090)
    )
    folder = tmp_path / "idefics" / "checks"
    write_verdict(folder, Verdict("cuda:0", "", True), services.probe())
    (path,) = folder.iterdir()
    path.write_text("{")
    ran = run("doctor", "-m", "demo", services=services)
    assert ran.code == 0
    assert ran.err.startswith("warning: the check of cuda:0 in ")


def doctor_on_new_gpu(found: Verdicts, *arguments: str) -> tuple[Ran, list[object]]:
    probed: list[object] = []

    def probe(folder: Path, verdicts: Verdicts, machine: object, shape: object) -> Verdicts:
        probed.append(shape)
        return found

    services = Services(
        environ={}, probe=lambda: machines.gpus(machines.RTX_4090), probe_gpus=probe
    )
    return run("doctor", *arguments, services=services), probed


def test_a_plan_for_a_new_gpu_uses_what_its_probe_finds() -> None:
    fault = Fault("cuda:0", "decode with a mask is off by 0.7", attention="sdpa")
    found = Verdicts({"cuda:0": Verdict("cuda:0", "", False, (), (fault,))})
    ran, probed = doctor_on_new_gpu(found, "-m", "idefics2-8b", "--json")
    assert len(probed) == 1
    assert ran.record["plan"]["attention"] == "eager"
    assert any("decode with a mask is off" in text for text in ran.record["plan"]["warnings"])


def test_attention_of_a_new_gpu_that_was_not_checked_is_told() -> None:
    found = Verdicts({}, ("sdpa in bfloat16 was not checked on cuda:0: out of memory",))
    ran, _ = doctor_on_new_gpu(found, "-m", "idefics2-8b")
    assert ran.err.startswith("warning: sdpa in bfloat16 was not checked on cuda:0: out of memory")


def test_nothing_is_probed_for_a_plan_on_the_processor() -> None:
    _, probed = doctor_on_new_gpu(NO_VERDICTS, "-m", "idefics2-8b", "--device", "cpu")
    assert probed == []


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_a_broken_library_is_one_error(package: str) -> None:
    services = Services(
        environ={},
        probe=lambda: machines.cpu(24),
        broken_packages=lambda: {package: "libfoo.so is missing"},
    )
    ran = run("doctor", "--check", services=services)
    assert ran.code == 1
    assert ran.err.startswith(f"error: {package} cannot be imported: libfoo.so is missing")
