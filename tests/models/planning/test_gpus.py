"""Plans for GPUs: tiles in one forward, pictures at a time, and small, old and Apple GPUs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from idefics_cli.cli.commands.caption.inputs import automatic_batch
from idefics_cli.core.units import GIB
from idefics_cli.hardware.machine import Machine
from idefics_cli.models.hub.facts import registry_facts
from idefics_cli.models.planning.plan import Plan, PlanChoices, make_plan
from tests.support import machines
from tests.support.machines import A100, H100, RTX_2080_TI, RTX_3070, RTX_4090

FACTS = {facts.name: facts for facts in registry_facts(root=Path("/nowhere"))}
RTX_3060 = ("RTX 3060", 12, (8, 6))


def plan(model: str, machine: Machine, **choices: object) -> Plan:
    return make_plan(FACTS[model], PlanChoices(**choices), machine)  # type: ignore[arg-type] # Literals


@pytest.mark.parametrize(
    ("card", "tiles", "pictures"),
    [(RTX_3060, 3, 8), (RTX_4090, 4, 11), (A100, 4, 64), (H100, 4, 64)],
)
def test_tiles_share_the_memory_with_pictures_that_are_answered_together(
    card: tuple[str, int, tuple[int, int]], tiles: int, pictures: int
) -> None:
    made = plan("idefics2-8b", machines.gpus(card, ram=128))
    assert made.spec.vision_tiles == tiles
    assert automatic_batch(made) == pictures
    (need,) = made.needs
    assert need.picture is not None
    assert need.total + (pictures - 1) * need.picture <= need.usable
    reasons = {reason.subject: reason.choice for reason in made.reasons}
    assert reasons["vision"] == f"{tiles} tiles at a time"


def test_a_plan_without_a_gpu_leaves_the_tiles_of_a_forward_to_the_engine() -> None:
    for machine in (machines.cpu(64), machines.apple(64)):
        made = plan("idefics2-8b", machine)
        assert made.spec.vision_tiles is None
        assert "vision" not in {reason.subject for reason in made.reasons}


def test_pictures_that_wait_fit_into_the_ram_beside_a_gpu() -> None:
    def batch(ram: int) -> int:
        return automatic_batch(plan("smolvlm-500m", machines.gpus(RTX_4090, ram=ram)))

    assert [batch(2), batch(4), batch(5), batch(64)] == [1, 31, 51, 64]


@pytest.mark.parametrize(
    ("free_gib", "expected"),
    [
        (7.4, ("cuda", "4bit", None)),
        # A desktop takes the rest of the card.
        (7.3, ("cuda", "4bit", False)),
        (7.0, ("cpu", "4bit", None)),
    ],
)
def test_four_bits_come_before_weights_that_stay_in_ram(
    free_gib: float, expected: tuple[str, str, bool | None]
) -> None:
    machine = machines.gpus(RTX_3070, ram=32)
    card = replace(machine.gpus[0], free_bytes=int(free_gib * GIB))
    spec = plan("idefics2-8b", replace(machine, gpus=(card,))).spec
    assert (spec.device, spec.quantization, spec.splitting) == expected
    assert spec.device_map is None


def test_a_plan_for_an_apple_gpu_counts_the_scores_of_one_tile() -> None:
    made = plan("idefics2-8b", machines.apple(64))
    (need,) = made.needs
    # Of 3068 queries at a time, in float32.
    assert need.working > 2 * 16 * 3068 * 4900 * 4


def test_a_gpu_without_bfloat16_computes_the_connector_of_idefics2_in_float32() -> None:
    made = plan("idefics2-8b", machines.gpus(RTX_2080_TI))
    spec, why = made.spec, {reason.subject: reason.why for reason in made.reasons}
    assert (spec.device, spec.dtype) == ("cuda", "float16")
    assert spec.float32_modules == ("model.connector",)
    assert why["dtype"].endswith("; the connector needs float32")
    assert not any("float16" in warning for warning in made.warnings)
    # Its 743 million weights take two bytes more each.
    wide = plan("idefics2-8b", machines.gpus(RTX_4090), dtype="float16").needs[0]
    narrow = plan("idefics2-8b", machines.gpus(RTX_4090), dtype="bfloat16").needs[0]
    assert wide.weights - narrow.weights == pytest.approx(2 * 743_219_200, rel=0.001)


def test_only_float16_on_one_or_more_gpus_has_modules_in_float32() -> None:
    two = machines.gpus(RTX_2080_TI, RTX_2080_TI)
    assert plan("idefics2-8b", two, quantization="none").spec.float32_modules
    for model, machine, choices in (
        ("idefics2-8b", machines.gpus(RTX_4090), {}),
        ("idefics2-8b", machines.cpu(64), {"dtype": "float16"}),
        ("idefics3-8b", machines.gpus(RTX_2080_TI), {}),
    ):
        assert plan(model, machine, **choices).spec.float32_modules == ()


def test_bfloat16_counts_its_scores_on_a_gpu_that_lacks_kernels_for_it() -> None:
    # T4: 14.4 GiB are free. The scores of one tile take 1.4 GiB, twice.
    t4 = replace(machines.gpus(("T4", 15, (7, 5))).gpus[0], free_bytes=int(14.4 * GIB))
    machine = replace(machines.gpus(RTX_2080_TI), gpus=(t4,))
    made = plan("idefics2-8b", machine, dtype="bfloat16")
    assert made.needs[0].working > 2 * 4 * 16 * 4900**2
    assert any("`--dtype float16` is fast" in warning for warning in made.warnings)
