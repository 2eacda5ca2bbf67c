"""Errors that are known before the machine is probed: the probe imports torch, for seconds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from idefics_cli.models.planning.plan import Machine
from tests.support.commands import World, run
from tests.support.fakes import FakeEngine
from tests.support.pictures import encoded, noise


def refuse_to_probe() -> Machine:
    raise AssertionError("the machine is probed")


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_bytes(encoded(noise(), "PNG"))
    Path("a.txt").write_text("noise")


MISSING = (
    "ask What? -i a.png",
    "caption a.png",
    "caption a.png --devices cpu:2",
    "serve",
    "tune . -o style",
    "bench decode",
)


@pytest.mark.parametrize("line", MISSING)
def test_a_model_that_is_not_here_is_told_first_without_a_network(line: str) -> None:
    world = World(FakeEngine(), is_cached=False)
    services = replace(world.services, probe=refuse_to_probe)

    ran = run(*line.split(), "-m", "smolvlm-256m", "--offline", services=services)

    assert (ran.code, ran.out) == (1, "")
    assert "is not in the cache" in ran.err


def test_a_benchmark_tells_first_that_its_model_is_not_downloaded() -> None:
    services = replace(World(FakeEngine(), is_cached=False).services, probe=refuse_to_probe)

    ran = run("bench", "decode", "-m", "smolvlm-256m", services=services)

    hint = "hint: `idefics models pull smolvlm-256m` first"
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == f"error: `smolvlm-256m` is not downloaded\n{hint}\n"


@pytest.mark.parametrize("devices", ["cpu:0", "cpu:65", "cuda:0,cuda:0"])
def test_devices_that_no_machine_can_have_are_told_first(devices: str) -> None:
    services = replace(World(FakeEngine()).services, probe=refuse_to_probe)

    ran = run("caption", "a.png", "--dry-run", "--devices", devices, services=services)

    assert (ran.code, ran.out) == (2, "")
    assert f"error: `--devices {devices}` names " in ran.err


GPU = (
    "ask What? -i a.png --device cuda",
    "ask What? --device cuda:1 --dry-run",
    "caption a.png --device cuda",
    "caption a.png --devices cuda:0,cuda:1",
    "caption a.png --devices cpu,cuda:0",
    "caption a.png --devices all",
    "serve --device cuda",
    "tune . -o style --device cuda",
    "bench decode --device cuda",
    "bench decode --shape idefics2-8b --layers 1 --device cuda",
)


@pytest.mark.parametrize("line", GPU)
def test_a_torch_for_the_cpu_cannot_use_a_gpu_and_this_is_told_first(line: str) -> None:
    world = World(FakeEngine())
    services = replace(world.services, probe=refuse_to_probe, torch_version=lambda: "2.13.0+cpu")

    ran = run(*line.split(), services=services)

    option, _, rest = line.partition(" --device")[2].partition(" ")
    asked = f"--device{option} {rest.split()[0]}"
    assert (ran.code, ran.out) == (2, "")
    assert f"error: `{asked}` needs another torch: 2.13.0+cpu is built for the CPU\n" in ran.err


@pytest.mark.parametrize("version", ["2.13.0", "2.13.0+cu130", None])
def test_another_torch_is_asked_itself(version: str | None) -> None:
    services = replace(World(FakeEngine()).services, torch_version=lambda: version)

    ran = run("ask", "What?", "--device", "cuda", services=services)

    assert (ran.code, ran.out) == (2, "")
    assert "`--device cuda` needs another torch: 2.13.0 is built for the CPU" in ran.err
