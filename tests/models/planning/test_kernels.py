"""Which kernels a plan names for which machine."""

from __future__ import annotations

import pickle
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from idefics_cli.core.types import KernelChoice, LoadSpec
from idefics_cli.hardware.machine import Machine
from idefics_cli.models.hub.facts import registry_facts
from idefics_cli.models.kernels.table import KERNELS, Kernel
from idefics_cli.models.planning.kernels import choose_kernels
from idefics_cli.models.planning.plan import PlanChoices, make_plan
from idefics_cli.models.planning.self_tests import without_failing
from tests.support import machines
from tests.support.machines import RTX_4090, VERSIONS

FACTS = {facts.name: facts for facts in registry_facts(root=Path("/nowhere"))}
COMPILER = {"versions": {**VERSIONS, "llvmlite": "0.46.0"}}
MACHINES = {
    "bf16, compiler": machines.cpu(64, "fma", "avx512f", "avx512_bf16", **COMPILER),
    "bf16": machines.cpu(64, "fma", "avx512f", "avx512_bf16"),
    "AVX512, compiler": machines.cpu(64, "fma", "avx512f", **COMPILER),
    "AVX512": machines.cpu(64, "fma", "avx512f"),
    "AVX2, compiler": machines.cpu(64, "fma", **COMPILER),
    "AVX2": machines.cpu(64, "fma"),
    # Neither flags nor AVX2 in torch: an old x86.
    "none": machines.machine(64, flags=(), **COMPILER),
    "ARM, bf16": machines.machine(64, flags=("bf16",), platform="Linux aarch64", **COMPILER),
    "Windows": machines.cpu(64, "fma", "avx512f", platform="Windows AMD64", **COMPILER),
}
NATIVE = ("bf16, compiler", "bf16")
COMPILING = ("bf16, compiler", "AVX512, compiler", "AVX2, compiler")
IMITATING = ("AVX512, compiler", "AVX512", "AVX2, compiler", "AVX2", "Windows")
VECTORS = (*NATIVE, *IMITATING)


def chosen(machine: str, **choices: str) -> KernelChoice:
    spec = LoadSpec(repo="demo", family="idefics2", **choices)  # type: ignore[arg-type] # Literals
    return choose_kernels(spec, MACHINES[machine])


def expected_text(machine: str, dtype: str, quantization: str) -> tuple[str, ...]:
    """The kernels of the text model, as they were chosen before plans named them."""
    eight: tuple[str, ...] = ("int8_compiled", "int8_torch", "int8_widened")
    eight = eight if machine in COMPILING else eight[1:]
    if quantization == "8bit":
        return eight
    if quantization == "int4":
        compiled = ("int4_compiled",) if machine in COMPILING else ()
        return (*compiled, *(("int4_torch",) if machine in VECTORS else ()), "int4_widened", *eight)
    if quantization == "none" and dtype == "bfloat16":
        compiled = ("bf16_12bit",) if machine in COMPILING else ()
        if machine in NATIVE:
            return (*compiled, "bf16_packed")
        return (*compiled, *(("bf16_widened",) if machine in IMITATING else ()))
    if quantization == "none" and dtype == "float32" and machine in COMPILING:
        return () if machine in NATIVE else ("float32_12bit",)
    return ()


def expected_plain(machine: str, dtype: str) -> tuple[str, ...]:
    """The kernels of what is neither quantized nor gets a row for each patch."""
    if dtype != "bfloat16" or machine not in IMITATING:
        return ()
    return (*(("bf16_12bit_connector",) if machine in COMPILING else ()), "bf16_widened")


@pytest.mark.parametrize("quantization", ["none", "8bit", "int4", "nf4"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16"])
@pytest.mark.parametrize("machine", MACHINES)
def test_every_machine_dtype_and_quantization_gets_what_is_fastest_there(
    machine: str, dtype: str, quantization: str
) -> None:
    choices = {"quantization": quantization}
    if quantization in ("int4", "nf4"):
        choices = {"quantization": "4bit", "format_4bit": quantization}
    given = chosen(machine, dtype=dtype, **choices)
    plain, is_own = expected_plain(machine, dtype), quantization in ("8bit", "int4")
    eight = expected_text(machine, dtype, "8bit")
    widened = machine in IMITATING and dtype == "bfloat16"
    native = machine in NATIVE and dtype == "bfloat16"
    unquantized = expected_text(machine, dtype, "none") if quantization == "none" else plain
    compiles = machine in COMPILING
    patches = ("int8_patches",) if is_own and compiles and machine in IMITATING else ()
    gelu = ("compiled_gelu_mlp",) if compiles else ()
    has_step = compiles and quantization != "nf4" and dtype != "float16"
    assert given == KernelChoice(
        text=expected_text(machine, dtype, quantization),
        head=eight if is_own else unquantized,
        connector=plain,
        vision=(*patches, *(("bf16_widened",) if widened else ())),
        mlp=(*(("bf16_gelu_mlp",) if native else ()), *gelu),
        patches=("bf16_widened_patches",) if widened else (),
        norm=("rms_norm",),
        step=("text_step",) if has_step else (),
        attention="cpu_sdpa_tiled" if native else "cpu_sdpa",
        product_dtype="bfloat16" if native else "float32",
    )
    assert all(KERNELS[name].problem(MACHINES[machine]) is None for name in given.names)


@pytest.mark.parametrize(
    "changes",
    [
        {"device": "mps"},
        {"device": "cpu", "device_map": "auto"},
        {"device": "cuda", "device_map": "auto"},
        {"device": "cuda", "attention": "eager"},
        {"device": "cuda", "attention": "flash_attention_2"},
        # Steps that are not recorded.
        {"device": "cuda", "quantization": "8bit"},
        {"device": "cuda", "uses_graphs": False},
    ],
)
def test_only_a_model_that_is_on_one_device_as_a_whole_gets_kernels(
    changes: dict[str, Any],
) -> None:
    assert chosen("bf16, compiler", **changes) == KernelChoice()


@pytest.mark.parametrize("quantization", ["none", "4bit"])
def test_a_model_on_a_gpu_gets_attention_that_divides_the_keys(quantization: str) -> None:
    expected = KernelChoice(attention="cuda_split_keys")
    for device in ("cuda", "cuda:1"):
        assert chosen("AVX2", device=device, quantization=quantization) == expected
    choices = PlanChoices(quantization=quantization)
    plan = make_plan(FACTS["smolvlm-500m"], choices, machines.gpus(RTX_4090))
    assert plan.spec.kernels == expected
    (attention,) = (reason for reason in plan.reasons if reason.subject == "attention")
    assert attention.choice == "sdpa"
    assert attention.why == (
        "exact; recorded decode steps divide the keys over the whole GPU, and torch computes the "
        "rest"
    )


def test_doctor_shows_torchs_attention_if_the_kernel_fails_its_self_test() -> None:
    plan = make_plan(FACTS["smolvlm-500m"], PlanChoices(), machines.gpus(RTX_4090))
    left = without_failing(plan, ["cuda_split_keys"])
    assert left.spec == replace(plan.spec, kernels=KernelChoice())
    (attention,) = (reason for reason in left.reasons if reason.subject == "attention")
    assert attention.why == "the kernel `cuda_split_keys` fails its self-test"
    assert left.warnings == (
        *plan.warnings,
        "the kernel `cuda_split_keys` fails its self-test on this computer; `sdpa` replaces it",
    )


@pytest.mark.parametrize("attention", ["eager", "flash_attention_2"])
def test_an_attention_that_was_asked_for_is_the_librarys(attention: str) -> None:
    assert chosen("bf16, compiler", attention=attention).attention is None


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_weights_that_are_stored_quantized_are_left_to_bitsandbytes(quantization: str) -> None:
    stored = replace(FACTS["smolvlm-500m"], stored=quantization, stored_dtype="bfloat16")  # type: ignore[arg-type] # a Literal
    kernels = make_plan(stored, PlanChoices(), MACHINES["AVX2, compiler"]).spec.kernels
    assert (kernels.text, kernels.head) == ((), ("bf16_12bit_connector", "bf16_widened"))


def test_a_plan_names_its_kernels_and_goes_to_another_process() -> None:
    plan = make_plan(FACTS["smolvlm-500m"], PlanChoices(quantization="4bit"), MACHINES["AVX2"])
    assert plan.spec.kernels.text[0] == "int4_torch"
    assert pickle.loads(pickle.dumps(plan.spec)) == plan.spec
    assert plan.to_dict()["kernels"] == asdict(plan.spec.kernels)


def test_a_kernel_is_added_by_one_row() -> None:
    def needs_vnni(machine: Machine) -> str | None:
        return None if "avx512_vnni" in machine.cpu_flags else "no VNNI"

    new = Kernel(
        name="int8_vnni",
        path="tests:nothing",
        parts=frozenset({"text"}),
        weights="int8",
        requirements=(needs_vnni,),
        tolerance=0.01,
        summary="by VNNI",
    )
    kernels = {new.name: new, **KERNELS}
    spec = LoadSpec(repo="demo", family="idefics2", quantization="8bit")
    with_vnni = machines.cpu(24, "avx512_vnni")
    assert choose_kernels(spec, with_vnni, kernels=kernels).text[0] == "int8_vnni"
    assert choose_kernels(spec, machines.cpu(24), kernels=kernels).text[0] == "int8_torch"


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.parametrize("quantization", ["none", "8bit", "4bit"])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_what_a_plan_says_of_products_and_attention_is_what_it_names(
    machine: str, quantization: str, dtype: str
) -> None:
    choices = PlanChoices(quantization=quantization, dtype=dtype)
    plan = make_plan(FACTS["smolvlm-500m"], choices, MACHINES[machine])
    said = {reason.subject: reason for reason in plan.reasons}
    kernels = plan.spec.kernels
    if kernels.text:
        assert said["products"].choice == kernels.text[0]
        assert said["products"].why == KERNELS[kernels.text[0]].summary
    else:
        assert said["products"].choice in ("torch", "bitsandbytes")
    assert kernels.attention is not None
    assert said["attention"].why == KERNELS[kernels.attention].summary
