"""Plans leave out what a check found to be wrong; files that hold no verdict are ignored."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from idefics_cli.core.errors import PlanError
from idefics_cli.hardware.machine import Machine
from idefics_cli.models.hub.facts import ModelFacts, registry_facts
from idefics_cli.models.planning.plan import Plan, PlanChoices, make_plan
from idefics_cli.models.planning.verdicts import Fault, Verdict, read_verdicts, write_verdict
from tests.support.machines import RTX_2080_TI, RTX_4090, VERSIONS, cpu, gpus

GPU = gpus(RTX_4090)
CPU = cpu(
    24, "fma", "avx512f", "avx512_bf16", "avx512_vnni", versions={**VERSIONS, "llvmlite": "0.50.0"}
)


def facts(name: str) -> ModelFacts:
    return next(each for each in registry_facts() if each.name == name)


def plan(
    *faults: Fault, machine: Machine = GPU, model: str = "idefics2-8b", **choices: str
) -> Plan:
    return make_plan(facts(model), PlanChoices(**choices), machine, faults=faults)  # type: ignore[arg-type] # texts only


def told(made: Plan) -> list[str]:
    return [warning for warning in made.warnings if warning.startswith("left out: ")]


def test_without_faults_nothing_is_left_out() -> None:
    assert told(plan()) == []
    assert plan() == plan(Fault("cuda:1", "wrong", attention="sdpa"))
    assert plan() == plan(Fault("cuda:0", "wrong", dtype="float16"))


def test_wrong_attention_is_replaced_by_eager_and_told() -> None:
    made = plan(Fault("cuda:0", "decode is off by 0.7", dtype="bfloat16", attention="sdpa"))
    assert (made.spec.device, made.spec.attention) == ("cuda", "eager")
    assert told(made) == [
        "left out: bfloat16 sdpa on cuda:0 computes wrongly here (decode is off by 0.7); "
        "`idefics doctor --check` tests it again"
    ]


def test_a_fault_of_other_heads_does_not_matter() -> None:
    fault = Fault("cuda:0", "off", attention="sdpa", heads="9x3x64")
    assert plan(fault).spec.attention == "sdpa"
    assert plan(replace(fault, heads="32x8x128")).spec.attention == "eager"
    assert plan(fault, model="smolvlm-256m").spec.attention == "eager"


def test_a_gpu_that_is_wrong_in_every_way_leaves_the_model_to_the_processor() -> None:
    made = plan(Fault("cuda:0", "nonsense"))
    assert made.spec.device == "cpu"
    assert told(made)


def test_wrong_graphs_are_switched_off_alone() -> None:
    made = plan(Fault("cuda:0", "a recording is off", dtype="bfloat16", with_graphs=True))
    assert (made.spec.device, made.spec.attention, made.spec.uses_graphs) == ("cuda", "sdpa", False)
    (decoding,) = (reason for reason in made.reasons if reason.subject == "decoding")
    assert decoding.why == "CUDA graphs gave wrong results on this computer"
    assert len(told(made)) == 1
    assert plan().spec.uses_graphs


@pytest.mark.parametrize("kernel", ["int4_compiled", "cpu_sdpa_tiled", "rms_norm"])
def test_a_wrong_kernel_is_left_out_alone(kernel: str) -> None:
    sound = plan(machine=CPU, quantization="4bit")
    made = plan(Fault("cpu", "off", kernel=kernel), machine=CPU, quantization="4bit")
    assert kernel in sound.spec.kernels.names
    assert kernel not in made.spec.kernels.names
    rest = [name for name in sound.spec.kernels.names if name != kernel]
    assert set(rest) <= set(made.spec.kernels.names)
    assert told(made) == [
        f"left out: the kernel `{kernel}` computes wrongly here (off); "
        "`idefics doctor --check` tests it again"
    ]


@pytest.mark.parametrize("device", ["cuda", "cuda:0"])
def test_wrong_attention_with_divided_keys_leaves_a_gpu_that_of_torch(device: str) -> None:
    fault = Fault("cuda:0", "decode is off by 0.5", kernel="cuda_split_keys")
    made = plan(fault, device=device)
    assert plan(device=device).spec.kernels.attention == "cuda_split_keys"
    assert (made.spec.attention, made.spec.kernels.attention) == ("sdpa", None)
    assert told(made) == [
        "left out: the kernel `cuda_split_keys` computes wrongly here (decode is off by 0.5); "
        "`idefics doctor --check` tests it again"
    ]
    assert told(plan(replace(fault, device="cuda:1"), device=device)) == []


def test_a_wrong_kernel_that_no_plan_would_take_is_not_told() -> None:
    assert told(plan(Fault("cpu", "off", kernel="int4_compiled"))) == []


def test_what_a_user_asks_for_and_is_wrong_is_an_error_that_names_it() -> None:
    fault = Fault("cuda:0", "11 of 12 right", quantization="4bit", format_4bit="nf4")
    with pytest.raises(PlanError) as error:
        plan(fault, device="cuda:0", quantization="4bit")
    assert "4bit nf4 on cuda:0 computes wrongly here (11 of 12 right)" in str(error.value)
    assert "idefics doctor --check" in str(error.value.hint)
    # It asks for no package, and runs on the CPU.
    assert plan(fault, quantization="4bit").spec.device == "cpu"


def test_every_gpu_of_a_spread_model_counts() -> None:
    machine = gpus(RTX_2080_TI, RTX_2080_TI)
    spread = plan(machine=machine)
    assert spread.spec.device_map == "auto"
    made = plan(Fault("cuda:1", "wrong", dtype="float16", quantization="none"), machine=machine)
    assert made.spec != spread.spec
    assert told(made)


VERDICT = Verdict(
    "cuda:0",
    "2026-11-29 01:30",
    True,
    ("32x8x128",),
    (Fault("cuda:0", "off", dtype="bfloat16", attention="sdpa", heads="32x8x128"),),
)


def test_a_verdict_is_read_as_it_was_written(tmp_path: Path) -> None:
    folder = tmp_path / "checks"
    assert read_verdicts(folder, GPU).by_device == {}
    write_verdict(folder, VERDICT, GPU)
    speeds = {"float32": (1.0, 1.0), "int4": (7.0, 4.5)}
    write_verdict(folder, Verdict("cpu", "2026-11-29 01:31", True, speeds=speeds), GPU)
    found = read_verdicts(folder, GPU)
    assert found.by_device["cuda:0"] == VERDICT
    assert found.faults == VERDICT.faults
    assert found.notes == ()
    assert found.with_speeds(GPU) == replace(GPU, measured_speeds=speeds)
    write_verdict(folder, replace(VERDICT, faults=()), GPU)
    assert read_verdicts(folder, GPU).faults == ()


@pytest.mark.parametrize(
    "other",
    [
        replace(GPU, driver="580.65"),
        replace(GPU, versions={**VERSIONS, "torch": "2.14.0"}),
        replace(GPU, versions={**VERSIONS, "idefics-cli": "9.0"}),
        gpus(("H100", 80, (9, 0))),
        replace(GPU, torch_build="cuda 12.8"),
    ],
)
def test_a_verdict_holds_for_one_gpu_driver_and_version(other: Machine, tmp_path: Path) -> None:
    write_verdict(tmp_path, VERDICT, GPU)
    assert read_verdicts(tmp_path, other).by_device == {}


def test_a_verdict_on_a_processor_depends_on_its_flags(tmp_path: Path) -> None:
    write_verdict(tmp_path, Verdict("cpu", "now", True), cpu(24, "avx512f"))
    assert "cpu" in read_verdicts(tmp_path, cpu(48, "avx512f")).by_device
    assert read_verdicts(tmp_path, cpu(24, "avx512f", "avx512_bf16")).by_device == {}


def test_a_verdict_of_an_earlier_version_has_no_speeds(tmp_path: Path) -> None:
    write_verdict(tmp_path, VERDICT, GPU)
    (path,) = tmp_path.iterdir()
    record = json.loads(path.read_text())
    del record["verdict"]["speeds"]
    path.write_text(json.dumps(record))
    assert read_verdicts(tmp_path, GPU).by_device["cuda:0"] == VERDICT


def edited(change: Callable[[dict[str, object]], object]) -> Callable[[bytes], bytes]:
    def edit(content: bytes) -> bytes:
        record = json.loads(content)
        change(record)
        return json.dumps(record).encode()

    return edit


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "empty": lambda content: b"",
    "torn": lambda content: content[: len(content) // 2],
    "not text": lambda content: b"\xff\xfe\x00",
    "a list": lambda content: b"[]",
    "deep": lambda content: b"[" * 100_000,
    "huge": lambda content: b" " * (2**20 + 1),
    "a later format": edited(lambda r: r.update(format=2)),
    "another machine": edited(lambda r: r.update(key={"device": "cuda:0"})),
    "no verdict": edited(lambda r: r.update(verdict=None)),
    "another device": edited(lambda r: r["verdict"].update(device="cpu")),  # type: ignore[attr-defined] # a dict
    "odd heads": edited(lambda r: r["verdict"].update(heads=[3])),  # type: ignore[attr-defined] # a dict
    "odd faults": edited(lambda r: r["verdict"].update(faults=[{}])),  # type: ignore[attr-defined] # a dict
    "odd fault": edited(lambda r: r["verdict"]["faults"][0].update(dtype=4)),  # type: ignore[index] # a dict
    "odd speeds": edited(lambda r: r["verdict"].update(speeds=[1.0])),  # type: ignore[attr-defined] # a dict
    "odd speed": edited(lambda r: r["verdict"].update(speeds={"int4": [0.0, 1.0]})),  # type: ignore[attr-defined] # a dict
    "tiny speed": edited(lambda r: r["verdict"].update(speeds={"8bit": [1e-300, 1.0]})),  # type: ignore[attr-defined] # a dict
    "one speed": edited(lambda r: r["verdict"].update(speeds={"int4": [1.0]})),  # type: ignore[attr-defined] # a dict
    "odd flag": edited(lambda r: r["verdict"].update(is_whole="yes")),  # type: ignore[attr-defined] # a dict
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_or_foreign_file_is_ignored_with_a_note(damage: str, tmp_path: Path) -> None:
    write_verdict(tmp_path, VERDICT, GPU)
    (path,) = tmp_path.iterdir()
    path.write_bytes(DAMAGES[damage](path.read_bytes()))
    found = read_verdicts(tmp_path, GPU)
    assert found.by_device == {}
    (note,) = found.notes
    assert note.startswith(f"the check of cuda:0 in {path} is ignored: ")
    assert note.endswith("`idefics doctor --check` makes a new one")


def test_a_folder_in_the_place_of_the_file_is_ignored_with_a_note(tmp_path: Path) -> None:
    write_verdict(tmp_path, VERDICT, GPU)
    (path,) = tmp_path.iterdir()
    path.unlink()
    path.mkdir()
    assert len(read_verdicts(tmp_path, GPU).notes) == 1
