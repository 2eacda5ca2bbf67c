"""The plans for many machines, and the choices that are refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from idefics_cli.core.errors import PlanError
from idefics_cli.core.units import GIB
from idefics_cli.hardware.machine import Machine
from idefics_cli.models.hub.facts import ModelFacts, registry_facts
from idefics_cli.models.planning.plan import Plan, PlanChoices, make_plan
from tests.support import machines
from tests.support.machines import A100, H100, RTX_2080_TI, RTX_3070, RTX_4090, VERSIONS

FACTS = {facts.name: facts for facts in registry_facts(root=Path("/nowhere"))}
MACHINES = {
    "24 GiB": machines.cpu(24),
    "24 GiB, bf16": machines.cpu(24, "avx512_bf16"),
    "without AVX2": machines.machine(24, flags=()),
    "compiler": machines.cpu(
        24, "fma", "avx512f", "avx512_bf16", versions={**VERSIONS, "llvmlite": "0.50"}
    ),
    "24 GiB, AVX2 and compiler": machines.cpu(24, "fma", versions={**VERSIONS, "llvmlite": "0.50"}),
    "8 GiB": machines.cpu(8),
    "8 GiB, bf16": machines.cpu(8, "avx512_bf16"),
    "64 GiB, bf16": machines.cpu(64, "avx512_bf16"),
    "256 GiB": machines.cpu(256),
    "3070": machines.gpus(RTX_3070),
    "3070, 16 GiB": machines.gpus(RTX_3070, ram=16),
    "3070, no bitsandbytes": machines.gpus(RTX_3070, versions={**VERSIONS, "bitsandbytes": None}),
    "2080 Ti": machines.gpus(RTX_2080_TI),
    "4090": machines.gpus(RTX_4090),
    "H100": machines.gpus(H100),
    "two 4090": machines.gpus(RTX_4090, RTX_4090),
    "two A100": machines.gpus(A100, A100),
    "Mac": machines.apple(32),
}


def plan(model: str, machine: Machine, **choices: object) -> Plan:
    return make_plan(FACTS[model], PlanChoices(**choices), machine)  # type: ignore[arg-type] # Literals


def planned(model: str, machine: str) -> Plan | PlanError:
    try:
        return plan(model, MACHINES[machine])
    except PlanError as error:
        return error


def refusal(model: str, machine: Machine, **choices: object) -> PlanError:
    with pytest.raises(PlanError) as caught:
        plan(model, machine, **choices)
    assert caught.value.exit_code == 2
    assert caught.value.hint
    return caught.value


def summary(made: Plan) -> str:
    spec = made.spec
    tiles = {True: " tiles", False: " whole", None: ""}[spec.splitting]
    spread = f" over {'+'.join(need.device for need in made.needs)}" if spec.device_map else ""
    return f"{spec.device} {spec.dtype} {spec.quantization}{tiles}{spread}"


@pytest.mark.parametrize(
    ("machine", "model", "expected"),
    [
        ("24 GiB", "demo", "cpu float32 none"),
        ("24 GiB", "smolvlm-500m", "cpu float32 none"),
        ("24 GiB", "smolvlm-2.2b", "cpu float32 none"),
        ("24 GiB", "idefics2-8b", "cpu bfloat16 none"),
        # Their files are in bfloat16 and in float32. Only the former surely fit in 12 bits.
        ("24 GiB, AVX2 and compiler", "idefics3-8b", "cpu float32 none"),
        ("24 GiB, AVX2 and compiler", "idefics2-8b", "cpu bfloat16 none"),
        ("24 GiB, bf16", "demo", "cpu float32 none"),
        ("24 GiB, bf16", "smolvlm-500m", "cpu bfloat16 none"),
        ("24 GiB, bf16", "idefics2-8b", "cpu bfloat16 none"),
        # 8 bit is more exact than 4 bit, and pictures keep their tiles.
        ("8 GiB", "smolvlm-2.2b", "cpu bfloat16 8bit"),
        ("8 GiB, bf16", "smolvlm-2.2b", "cpu bfloat16 8bit"),
        ("64 GiB, bf16", "idefics-80b", "cpu bfloat16 4bit"),
        ("256 GiB", "idefics2-8b", "cpu float32 none"),
        ("256 GiB", "idefics-80b", "cpu bfloat16 none"),
        ("3070", "smolvlm-2.2b", "cuda bfloat16 none"),
        ("3070", "idefics2-8b", "cuda bfloat16 4bit"),
        ("3070", "idefics3-8b", "cuda bfloat16 4bit whole"),
        ("3070", "idefics-9b-instruct", "cuda bfloat16 4bit"),
        ("3070", "idefics-80b", "cpu bfloat16 4bit"),
        ("2080 Ti", "smolvlm-500m", "cuda float16 none"),
        ("2080 Ti", "idefics2-8b", "cuda float16 4bit"),
        ("4090", "demo", "cuda float32 none"),
        ("4090", "idefics2-8b", "cuda bfloat16 none"),
        ("4090", "idefics-80b", "cpu bfloat16 4bit"),
        ("H100", "idefics-80b", "cuda bfloat16 4bit"),
        ("two 4090", "idefics2-8b", "cuda bfloat16 none"),
        ("two 4090", "idefics-80b", "cuda bfloat16 4bit over cuda:0+cuda:1"),
        ("two A100", "idefics2-8b", "cuda bfloat16 none"),
        ("two A100", "idefics-80b", "cuda bfloat16 4bit"),
        ("Mac", "idefics2-8b", "mps bfloat16 none"),
    ],
)
def test_left_alone_a_plan_takes_the_best_that_fits(
    machine: str, model: str, expected: str
) -> None:
    assert summary(plan(model, MACHINES[machine])) == expected


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("model", FACTS)
def test_a_plan_fits_or_is_refused_with_what_would(machine: str, model: str) -> None:
    made = planned(model, machine)
    if isinstance(made, PlanError):
        assert "GiB" in str(made)
        assert "models that fit: " in str(made.hint)
        return
    assert made.needs
    for need in made.needs:
        assert 0 < need.total <= need.usable <= need.free
    subjects = [reason.subject for reason in made.reasons]
    assert subjects[:5] == ["files", "device", "dtype", "quantization", "attention"]
    assert all(reason.choice and reason.why for reason in made.reasons)
    assert "None" not in " ".join(reason.why for reason in made.reasons)


@pytest.mark.parametrize("machine", MACHINES)
def test_what_a_refusal_says_would_fit_fits(machine: str) -> None:
    refused = planned("idefics-80b", machine)
    if isinstance(refused, PlanError):
        names = str(refused.hint).split("models that fit: ")[1].split(", ")
        assert 1 <= len(names) <= 3
        assert not any(isinstance(planned(name, machine), PlanError) for name in names)


def test_the_whole_model_comes_before_the_quantized_and_several_gpus_before_fewer_bits() -> None:
    three = machines.gpus(A100, A100, A100)
    made = plan("idefics-80b", three)
    assert summary(made) == "cuda bfloat16 none over cuda:0+cuda:1+cuda:2"
    assert made.spec.device_map == "auto"
    limits = made.spec.max_memory
    assert limits is not None
    assert list(limits) == ["0", "1", "2"]
    # The limits hold all weights, and are below the memory of the cards.
    assert sum(limits.values()) >= 149 * GIB
    assert all(limit < 80 * GIB for limit in limits.values())


def test_what_the_gpu_cannot_hold_stays_in_ram_when_four_bits_are_not_wanted() -> None:
    made = plan("idefics2-8b", machines.gpus(RTX_3070, ram=32), quantization="none")
    assert summary(made) == "cuda bfloat16 none over cuda:0+cpu"
    gpu, ram = made.needs
    weights = 8_402_768_112 * 2
    assert abs(gpu.weights + ram.weights - weights) < 100
    limits = made.spec.max_memory
    assert limits is not None
    assert limits["0"] >= gpu.weights
    assert limits["cpu"] >= ram.weights
    assert any("stay in RAM" in warning for warning in made.warnings)


def test_without_bitsandbytes_a_plan_avoids_four_bits_instead_of_failing() -> None:
    bare = machines.gpus(RTX_3070, versions={**VERSIONS, "bitsandbytes": None})
    assert summary(plan("idefics2-8b", bare, device="cuda")) == "cuda bfloat16 none over cuda:0+cpu"
    # The CPU has 4-bit kernels of its own, which are faster than weights that cross the bus.
    assert summary(plan("idefics2-8b", bare)) == "cpu bfloat16 4bit"


def test_if_only_bitsandbytes_is_missing_the_refusal_says_so() -> None:
    bare = machines.gpus(RTX_4090, versions={**VERSIONS, "bitsandbytes": None})
    error = refusal("idefics2-8b", bare, device="cuda:0", quantization="4bit")
    assert "pip install bitsandbytes" in str(error.hint)


def test_a_broken_bitsandbytes_counts_as_missing() -> None:
    broken = machines.gpus(RTX_4090, broken={"bitsandbytes": "no libcudart"})
    error = refusal("idefics2-8b", broken, device="cuda:0", quantization="4bit")
    assert "no libcudart" in str(error)


@pytest.mark.parametrize(
    ("machine", "format_4bit"),
    [
        (machines.cpu(24, "avx512_bf16"), "nf4"),
        (machines.cpu(24, "avx512f", "avx2"), "int4"),
        (machines.cpu(24, "avx512_bf16", versions={**VERSIONS, "bitsandbytes": None}), "int4"),
        (machines.cpu(24, "avx512_bf16", broken={"accelerate": "no torch"}), "int4"),
        (machines.cpu(24, "avx512_bf16", "fma", versions={**VERSIONS, "llvmlite": "0.50"}), "int4"),
        (machines.gpus(RTX_4090), "nf4"),
    ],
)
def test_four_bits_are_what_decodes_fastest(machine: Machine, format_4bit: str) -> None:
    made = plan("smolvlm-500m", machine, quantization="4bit")
    assert made.spec.format_4bit == made.to_dict()["format_4bit"] == format_4bit
    assert plan("smolvlm-500m", machine).to_dict()["format_4bit"] is None


def test_four_bits_are_nf4_where_int4_does_not_fit() -> None:
    def choose(free_bytes: int) -> str:
        compiling = machines.cpu(
            24,
            *("avx512_bf16", "fma"),
            versions={**VERSIONS, "llvmlite": "0.50"},
            free_ram_bytes=free_bytes,
        )
        return plan("idefics2-8b", compiling, quantization="4bit").spec.format_4bit

    assert choose(9 * GIB) == "nf4"
    assert choose(20 * GIB) == "int4"


def test_what_is_stored_in_nf4_stays_nf4_on_any_processor() -> None:
    stored = replace(FACTS["smolvlm-500m"], stored="4bit", stored_dtype="bfloat16")
    made = make_plan(stored, PlanChoices(), machines.cpu(24, "avx2"))
    assert made.spec.format_4bit == "nf4"
    assert any("lacks AVX512_BF16" in warning for warning in made.warnings)


def test_int4_takes_more_memory_than_nf4() -> None:
    small, large = (
        plan("idefics2-8b", machines.cpu(64, *flags), quantization="4bit", dtype="bfloat16")
        for flags in (["avx512_bf16"], [])
    )
    # 0.109 bytes more for each of the 7.0e9 weights of the text model.
    assert 0.7e9 < large.needs[0].weights - small.needs[0].weights < 0.8e9


def test_the_gpu_with_most_free_memory_is_taken() -> None:
    two = machines.gpus(RTX_4090, RTX_4090)
    busy = replace(two, gpus=(replace(two.gpus[0], free_bytes=2 * GIB), two.gpus[1]))
    assert plan("smolvlm-2.2b", busy).spec.device == "cuda:1"


def test_a_named_gpu_is_alone() -> None:
    two = machines.gpus(RTX_4090, RTX_4090)
    assert plan("smolvlm-2.2b", two, device="cuda:1").spec.device == "cuda:1"
    # Neither the second GPU nor RAM is used.
    error = refusal("idefics-80b", two, device="cuda:1")
    assert "on cuda:1" in str(error)
    assert "would fit" in str(error.hint)


def test_free_memory_counts_and_not_the_total() -> None:
    card = machines.gpus(RTX_4090)
    busy = replace(card, gpus=(replace(card.gpus[0], free_bytes=12 * GIB),))
    assert summary(plan("idefics2-8b", card)) == "cuda bfloat16 none"
    assert summary(plan("idefics2-8b", busy)) == "cuda bfloat16 4bit"


REFUSED: list[tuple[str, Machine, dict[str, object], str, str]] = [
    ("idefics2-8b", machines.cpu(64), {"device": "cuda"}, "built for the CPU", "pytorch.org"),
    (
        "idefics2-8b",
        machines.cpu(64, torch_build="cuda 13.0"),
        {"device": "cuda"},
        "finds no GPU",
        "nvidia-smi",
    ),
    (
        "idefics2-8b",
        machines.cpu(64, torch_build="cuda 13.0", notes=("the driver is too old",)),
        {"device": "cuda:0"},
        "finds no GPU",
        "the driver is too old",
    ),
    ("idefics2-8b", MACHINES["4090"], {"device": "cuda:1"}, "no `cuda:1`", "cuda:0 (RTX 4090)"),
    ("idefics2-8b", MACHINES["4090"], {"device": "mps"}, "no Apple GPU", "auto"),
    ("idefics2-8b", MACHINES["4090"], {"device": "gpu"}, "unknown device", "cuda:N"),
    ("idefics2-8b", MACHINES["4090"], {"dtype": "fp8"}, "unknown dtype", "bfloat16"),
    ("idefics2-8b", MACHINES["4090"], {"quantization": "2bit"}, "unknown quant", "4bit"),
    ("idefics2-8b", MACHINES["4090"], {"attention": "flash"}, "unknown attention", "sdpa"),
    ("idefics2-8b", MACHINES["Mac"], {"quantization": "4bit", "device": "mps"}, "Apple", "none"),
    ("smolvlm-500m", MACHINES["Mac"], {"quantization": "8bit", "device": "mps"}, "Apple", "none"),
    (
        "idefics2-8b",
        machines.gpus(RTX_4090, versions={**VERSIONS, "bitsandbytes": None}),
        {"quantization": "4bit"},
        "needs the package bitsandbytes",
        "pip install bitsandbytes",
    ),
    (
        "idefics2-8b",
        MACHINES["4090"],
        {"attention": "flash_attention_2"},
        "needs the package flash-attn",
        "pip install --no-build-isolation 'idefics-cli[flash]'",
    ),
    (
        "idefics2-8b",
        machines.gpus(RTX_4090, versions={**VERSIONS, "flash-attn": "2.1.0"}),
        {"attention": "flash_attention_2"},
        "flash-attn 2.3.3 or newer",
        "idefics-cli[flash]",
    ),
    (
        "idefics2-8b",
        machines.gpus(RTX_2080_TI, versions={**VERSIONS, "flash-attn": "2.8.3"}),
        {"attention": "flash_attention_2"},
        "Ampere",
        "sdpa",
    ),
    (
        "idefics2-8b",
        machines.gpus(RTX_4090, versions={**VERSIONS, "flash-attn-3": "3.0"}),
        {"attention": "flash_attention_3"},
        "Hopper",
        "sdpa",
    ),
    (
        "idefics-9b",
        machines.gpus(H100, versions={**VERSIONS, "flash-attn-4": "4.0.0b36"}),
        {"attention": "flash_attention_4"},
        "IDEFICS-1 does not support",
        "sdpa",
    ),
    ("smolvlm-500m", MACHINES["24 GiB"], {"attention": "flash_attention_2"}, "CUDA GPU", "sdpa"),
    (
        "demo",
        machines.gpus(RTX_4090, versions={**VERSIONS, "flash-attn": "2.8.3"}),
        {"attention": "flash_attention_2"},
        "16 bit only",
        "--dtype bfloat16",
    ),
    (
        "idefics2-8b",
        MACHINES["3070"],
        {"device": "cuda:0", "quantization": "none"},
        "with `--quantization none` needs",
        "--quantization 4bit",
    ),
    ("idefics-80b", MACHINES["24 GiB"], {}, "needs 51.6", "idefics-9b-instruct"),
    (
        "smolvlm-500m",
        machines.cpu(8, broken={"torch": "libtorch.so is missing"}),
        {},
        "libtorch.so is missing",
        "pip install",
    ),
]


@pytest.mark.parametrize(("model", "machine", "choices", "message", "hint"), REFUSED)
def test_a_wish_that_the_machine_cannot_grant_is_refused_with_the_way_out(
    model: str, machine: Machine, choices: dict[str, object], message: str, hint: str
) -> None:
    error = refusal(model, machine, **choices)
    assert message in str(error)
    assert hint in str(error.hint)


# Warnings without a remedy: the memory forces the choice, or the wait happens once.
WITHOUT_REMEDY = ("this processor lacks bfloat16", "2 min the first time")


OFFLOADED = {"device": "cuda", "dtype": "float16", "quantization": "none"}


@pytest.mark.parametrize(
    ("model", "machine", "choices", "warning"),
    [
        ("idefics-80b", "two A100", {"dtype": "float16"}, "leaves the range of float16"),
        ("idefics2-8b", "3070", OFFLOADED, "leave the range of float16"),
        ("smolvlm-500m", "24 GiB", {"dtype": "float16"}, "float16 is slow on processors"),
        ("smolvlm-500m", "without AVX2", {"dtype": "bfloat16"}, "this processor lacks bfloat16"),
        ("smolvlm-500m", "2080 Ti", {"dtype": "bfloat16"}, "emulates bfloat16"),
        ("smolvlm-500m", "compiler", {"quantization": "8bit"}, "4bit` is faster"),
        ("idefics2-8b", "64 GiB, bf16", {"quantization": "4bit"}, "2 min the first time"),
        ("idefics3-8b", "3070", {}, "small print may be missed"),
        ("idefics2-8b", "3070, no bitsandbytes", {}, "would fit the GPU, but `4bit` needs"),
        ("idefics-9b", "4090", {"splitting": True}, "does not cut pictures"),
        ("smolvlm-500m", "4090", {"offline": True}, "`idefics models pull smolvlm-500m`"),
    ],
)
def test_a_warning_says_what_to_do(
    model: str, machine: str, choices: dict[str, object], warning: str
) -> None:
    made = plan(model, MACHINES[machine], **choices)
    [found] = [text for text in made.warnings if warning in text]
    assert "`" in found or warning in WITHOUT_REMEDY


def test_bfloat16_is_no_warning_where_it_is_not_slower() -> None:
    assert plan("smolvlm-500m", MACHINES["24 GiB"], dtype="bfloat16").warnings == ()


@pytest.mark.parametrize("machine", ["24 GiB, bf16", "4090", "H100", "Mac"])
def test_a_good_machine_gets_no_warnings(machine: str) -> None:
    assert plan("smolvlm-2.2b", MACHINES[machine]).warnings == ()


def test_the_demo_is_exact_everywhere() -> None:
    assert {plan("demo", machine).spec.dtype for machine in MACHINES.values()} == {"float32"}


@pytest.mark.parametrize("version", ["2", "3", "4"])
def test_flash_attention_is_only_taken_when_asked_for(version: str) -> None:
    package = {"2": "flash-attn", "3": "flash-attn-3", "4": "flash-attn-4"}[version]
    card = machines.gpus(H100, versions={**VERSIONS, package: "4.0"})
    name = f"flash_attention_{version}"
    assert plan("idefics2-8b", card).spec.attention == "sdpa"
    made = plan("idefics2-8b", card, attention=name)
    assert made.spec.attention == name
    assert any("perceiver" in warning for warning in made.warnings)
    (warning,) = plan("idefics3-8b", card, attention=name).warnings
    assert "decodes without CUDA graphs, which is slower than `--attention sdpa`" in warning


def test_eager_attention_needs_memory_for_its_scores() -> None:
    # Its scores of one tile of Idefics2: once in bfloat16 and twice in float32.
    scores = 5 * 2 * 16 * 4900**2
    card = machines.gpus(("a GPU that is just large enough", 23, (8, 0)))
    sdpa = plan("idefics2-8b", card).needs[0]
    eager = plan("idefics2-8b", card, attention="eager").needs[0]
    assert sdpa.usable == eager.usable < eager.total + scores
    assert eager.working > scores


def test_every_choice_of_the_user_is_kept_and_said_to_be_his() -> None:
    choices = {
        "device": "cuda",
        "dtype": "float16",
        "quantization": "8bit",
        "attention": "eager",
        "splitting": False,
        "threads": 3,
    }
    made = plan("idefics2-8b", MACHINES["4090"], **choices)
    assert {name: getattr(made.spec, name) for name in choices} == choices
    why = {reason.subject: reason.why for reason in made.reasons}
    assert {why[name] for name in choices} == {"asked for"}


@pytest.mark.parametrize("word", [None, "auto"])
def test_auto_is_the_same_as_no_choice(word: str | None) -> None:
    choices = dict.fromkeys(("device", "dtype", "quantization", "attention"), word)
    assert plan("idefics2-8b", MACHINES["4090"], **choices) == plan("idefics2-8b", MACHINES["4090"])


@pytest.mark.parametrize(("cores", "threads"), [(1, 1), (2, 2), (3, 2), (4, 3), (16, 15)])
def test_one_core_of_three_or_more_is_left_free(cores: int, threads: int) -> None:
    made = plan("smolvlm-500m", machines.cpu(24, cores=cores))
    assert made.spec.threads == threads
    assert plan("demo", machines.cpu(24, cores=cores)).spec.threads == min(2, max(1, cores - 1))


def test_on_a_gpu_threads_are_left_to_torch() -> None:
    assert plan("smolvlm-500m", MACHINES["4090"]).spec.threads is None


def test_weights_that_are_stored_quantized_stay_so() -> None:
    stored = replace(FACTS["idefics2-8b"], stored="4bit", stored_bytes=6 * GIB)
    made = make_plan(stored, PlanChoices(), MACHINES["4090"])
    assert made.spec.quantization == "4bit"
    assert made.needs[0].weights == 6 * GIB
    with pytest.raises(PlanError, match="stored in 4bit"):
        make_plan(stored, PlanChoices(quantization="none"), MACHINES["4090"])


def test_layers_that_the_packed_kernels_cannot_take_are_not_in_nf4() -> None:
    odd = replace(FACTS["smolvlm-500m"], shape=replace(FACTS["smolvlm-500m"].shape, hidden=1000))
    packed = machines.cpu(24, "avx512_bf16")
    stored = replace(odd, stored="4bit", stored_dtype="bfloat16")
    with pytest.raises(PlanError, match="packs only layers"):
        make_plan(stored, PlanChoices(quantization="4bit"), packed)
    made = make_plan(odd, PlanChoices(quantization="4bit"), packed)
    assert made.spec.format_4bit == "int4"
    assert make_plan(odd, PlanChoices(quantization="4bit"), machines.gpus(RTX_4090)).spec


def test_a_plan_is_json_without_the_home_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    folder = Path("/home/somebody/models/mine")
    mine = replace(FACTS["idefics2-8b"], name=str(folder), repo=str(folder), folder=folder)
    made = make_plan(mine, PlanChoices(), MACHINES["two 4090"])
    text = json.dumps(made.to_dict())
    assert "somebody" not in text
    record = json.loads(text)
    assert record["repo"] == record["folder"] == "~/models/mine"
    assert record["memory"][0]["device"] == "cuda:0"
    assert record["reasons"][0] == {
        "subject": "files",
        "choice": "present",
        "why": "~/models/mine",
    }


def test_a_full_disk_is_reported_before_a_download() -> None:
    tight = replace(MACHINES["4090"], cache_free_bytes=10 * GIB)
    (warning,) = plan("idefics2-8b", tight).warnings
    assert warning == "the download takes 31.3 GiB, and 10.0 GiB are free in ."


def test_facts_of_the_registry_are_those_of_the_table() -> None:
    assert all(isinstance(facts, ModelFacts) for facts in FACTS.values())
    assert FACTS["idefics-80b"].parameters == 79_967_843_624


@pytest.mark.parametrize(
    ("model", "machine", "quantization", "choice", "why"),
    [
        ("idefics2-8b", "H100", None, "CUDA graphs", "replaces a thousand kernel launches"),
        ("idefics2-8b", "H100", "4bit", "CUDA graphs", "replaces a thousand kernel launches"),
        ("idefics2-8b", "H100", "8bit", "one kernel at a time", "8bit reads numbers back"),
        ("idefics-80b", "two 4090", None, "one kernel at a time", "spread over several"),
    ],
)
def test_a_plan_tells_whether_steps_are_recorded(
    model: str, machine: str, quantization: str | None, choice: str, why: str
) -> None:
    made = plan(model, MACHINES[machine], quantization=quantization)
    (reason,) = [reason for reason in made.reasons if reason.subject == "decoding"]
    assert reason.choice == choice
    assert why in reason.why


@pytest.mark.parametrize(
    ("model", "choices", "why"),
    [
        ("smolvlm-500m", {}, None),
        ("smolvlm-500m", {"quantization": "8bit"}, None),
        ("idefics-9b", {}, "there is no compiled step for the layers of IDEFICS-1"),
        ("smolvlm-500m", {"attention": "eager"}, "there is no compiled step with the attention"),
        ("smolvlm-500m", {"dtype": "float16"}, "there is no compiled step in float16"),
    ],
)
def test_a_plan_for_a_processor_tells_how_a_token_is_computed(
    model: str, choices: dict[str, str], why: str | None
) -> None:
    versions = {**VERSIONS, "llvmlite": "0.50.0"}
    made = plan(model, machines.cpu(256, "avx2", "fma", versions=versions), **choices)
    (reason,) = [reason for reason in made.reasons if reason.subject == "decoding"]
    if why is None:
        assert reason.choice == "text_step"
        assert reason.why == "one call of compiled code computes each token of a reply"
    else:
        assert (reason.choice, reason.why[: len(why)]) == ("layer by layer", why)
    without = plan(model, machines.cpu(256, "avx2", "fma"), **choices)
    (reason,) = [reason for reason in without.reasons if reason.subject == "decoding"]
    assert reason.choice == "layer by layer"
    assert (why or "the package llvmlite is not installed") in reason.why
