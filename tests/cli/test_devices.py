"""`--devices` names workers, which divide threads and memory, and must all say the same."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from idefics_cli.caption.executors.warm import WarmProcesses
from idefics_cli.cli.commands.caption.devices import list_devices
from idefics_cli.cli.services import Services
from idefics_cli.core.errors import UsageError
from idefics_cli.core.units import GIB
from idefics_cli.hardware.machine import Machine
from tests.support.commands import MACHINE, Ran, World, run
from tests.support.fakes import FakeEngine
from tests.support.machines import RTX_4090, gpus
from tests.support.photo_folder import describe_photo

TWO_GPUS = gpus(RTX_4090, RTX_4090)


@pytest.fixture(autouse=True)
def _photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.jpg").write_bytes(b"a")


def services(machine: Machine, *, json: str = "1") -> Services:
    world = World(FakeEngine(describe_photo), IDEFICS_JSON=json)
    return replace(
        world.services,
        probe=lambda: machine,
        probe_gpus=lambda folder, verdicts, machine, shape: verdicts,
    )


def dry_run(machine: Machine, *arguments: str) -> Ran:
    words = ("caption", "a.jpg", "-o", "out.jsonl", "--dry-run", *arguments)
    return run(*words, services=services(machine))


@pytest.mark.parametrize(
    ("text", "machine", "devices"),
    [
        ("cpu", MACHINE, ["cpu"]),
        ("cpu:3", MACHINE, ["cpu", "cpu", "cpu"]),
        ("all", TWO_GPUS, ["cuda:0", "cuda:1"]),
        ("cuda:1,cuda:0", TWO_GPUS, ["cuda:1", "cuda:0"]),
        ("cuda:0,cpu:2", TWO_GPUS, ["cuda:0", "cpu", "cpu"]),
        ("mps", MACHINE, ["mps"]),
    ],
)
def test_a_list_of_devices_is_a_worker_for_each(
    text: str, machine: Machine, devices: list[str]
) -> None:
    assert list_devices(text, machine) == devices


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("all", "`--devices all`: this machine has no CUDA device"),
        ("cpu:1,cuda:0", "`--devices cpu:1,cuda:0`: this machine has no CUDA device"),
        ("cpu:0", "`--devices cpu:0` names no workers; there can be from 1 to 64"),
        *(
            (text, f"`--devices {text}` names too many workers; there can be from 1 to 64")
            for text in ("cpu:65", "cpu:32,cpu:33", "cpu:999999999", f"cpu:{10**30}")
        ),
        ("cuda:0,cuda:0", "`--devices cuda:0,cuda:0` names `cuda:0` twice"),
    ],
)
def test_a_list_that_names_no_workers_is_refused(text: str, error: str) -> None:
    with pytest.raises(UsageError) as caught:
        list_devices(text, MACHINE)
    assert str(caught.value) == error


def test_a_gpu_that_is_not_there_is_named() -> None:
    with pytest.raises(UsageError, match="`--devices cuda:1,cuda:2`: this machine has no `cuda:2`"):
        list_devices("cuda:1,cuda:2", TWO_GPUS)


class Started(WarmProcesses):
    """Notes which processes should start, and starts none."""

    def __init__(self, devices: Sequence[str]) -> None:
        super().__init__(0)
        self.devices, self.is_closed = devices, False

    def close(self) -> None:
        """Note the call."""
        self.is_closed = True


def test_processes_start_before_the_plan_and_end_with_the_command() -> None:
    started: list[Started] = []

    def warm_up(devices: Sequence[str]) -> WarmProcesses:
        started.append(Started(devices))
        return started[-1]

    def start(*arguments: str) -> Ran:
        words = ("caption", "a.jpg", "-o", "out.jsonl", *arguments)
        return run(*words, services=replace(services(MACHINE), warm_up=warm_up))

    assert start("--devices", "cuda:0,cpu:2").code == 2  # this machine has no GPU
    assert [(each.devices, each.is_closed) for each in started] == [
        (["cuda:0", "cpu", "cpu"], True)
    ]
    assert start("--devices", "all").code == 2
    assert start("--devices", "cpu:65").code == 2
    assert start("--devices", "cpu:2", "--dry-run").code == 0
    assert start("--device", "cuda:0").code == 2
    assert len(started) == 1, "nothing more has started"


def test_each_gpu_has_a_plan_of_its_own_and_a_part_of_the_threads() -> None:
    ran = dry_run(TWO_GPUS, "--devices", "all")
    assert (ran.code, ran.record["device"], ran.record["threads"]) == (0, "cuda", 4)
    assert ran.record["device_map"] is None
    second = dry_run(TWO_GPUS, "--devices", "cuda:1,cuda:0")
    assert second.record["device"] == "cuda:1"
    assert ran.err.endswith("note: each worker has this plan: cuda:0, cuda:1\n")
    one = dry_run(TWO_GPUS, "--device", "cuda:0")
    assert ran.record["batch_size"] == one.record["batch_size"]
    assert ran.record["dtype"] == one.record["dtype"]


def test_workers_on_a_processor_divide_its_threads_and_its_memory() -> None:
    machine = replace(MACHINE, cores=8, ram_bytes=64 * GIB, free_ram_bytes=48 * GIB)
    one = dry_run(machine, "--device", "cpu").record
    four = dry_run(machine, "--devices", "cpu:4").record
    assert four["threads"] == min(one["threads"], 2)
    assert dry_run(machine, "--devices", "cpu:2", "--threads", "6").record["threads"] == 3
    need, shared = one["memory"][0], four["memory"][0]
    assert shared["usable_bytes"] == need["usable_bytes"] // 4
    assert four["batch_size"] <= one["batch_size"]


def test_the_plan_of_a_worker_tells_its_own_threads_and_memory() -> None:
    machine = replace(MACHINE, cores=2, ram_bytes=64 * GIB, free_ram_bytes=48 * GIB)

    def plan(*arguments: str) -> str:
        words = ("caption", "a.jpg", "-o", "out.jsonl", "--dry-run", *arguments)
        ran = run(*words, services=services(machine, json="0"))
        return " ".join(ran.out.split())

    def fit_and_need(text: str) -> tuple[str, ...]:
        found = re.search(r"fits: (.+?) usable .* answer cpu (\S+ \S+ of \S+ \S+) weights", text)
        assert found, text
        return found.groups()

    shared = plan("--devices", "cpu:2")
    assert "threads 1 2 cores, divided among 2 workers" in shared
    assert len({*fit_and_need(shared)}) == 1
    assert {*fit_and_need(plan("--device", "cpu"))}.isdisjoint(fit_and_need(shared))
    three = plan("--devices", "cpu:2", "--threads", "3")
    assert "threads 1 3 threads, divided among 2 workers" in three
    assert "threads 1 asked for" in plan("--devices", "cpu:2", "--threads", "1")
    assert "threads 2 both cores" in plan("--devices", "cpu")


def test_workers_that_do_not_fit_into_the_memory_are_refused() -> None:
    machine = replace(MACHINE, cores=64, free_ram_bytes=12 * GIB)
    assert dry_run(machine, "--devices", "cpu:2").code == 0
    ran = dry_run(machine, "--devices", "cpu:40")
    assert ran.code == 2
    assert ran.err.startswith("error: 40 workers need ")
    assert "of memory each" in ran.err
    hint = "\nhint: take fewer workers, `--quantization 4bit` or a smaller model\n"
    assert ran.err.endswith(hint)
    smallest = dry_run(machine, "--devices", "cpu:60", "--quantization", "4bit")
    assert smallest.err.endswith("\nhint: take fewer workers or a smaller model\n")
    assert not Path("out.jsonl").exists()


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            ["a.jpg", "--device", "cpu", "--devices", "cpu:2"],
            "error: --device and --devices exclude each other\nhint: `--devices cuda:0,cuda:1`\n",
        ),
        (
            ["-", "--devices", "cpu:2"],
            "error: --devices shares files among workers, and stdin is one picture\n"
            "hint: leave `--devices` out\n",
        ),
        (
            ["clipboard:", "--devices", "cpu:2"],
            "error: --devices shares files among workers, and the clipboard is one picture\n"
            "hint: leave `--devices` out\n",
        ),
        (
            ["a.jpg", "--devices", "gpu"],
            "error: --devices must be devices with commas, such as cuda:0,cuda:1, or cpu:2 for two "
            "workers, or all, not `gpu`\n",
        ),
    ],
)
def test_what_contradicts_devices_is_told(arguments: list[str], error: str) -> None:
    with open("a.jpg", "rb") as stdin:
        world = World(FakeEngine(describe_photo), stdin=stdin)
        ran = run("caption", *arguments, services=world.services)
    assert tuple(ran) == (2, "", error)
