"""The memory of training, before it is taken."""

from __future__ import annotations

import pytest

from idefics_cli.core.types import LoadSpec, Quantization
from idefics_cli.models.hub.facts import find_facts
from idefics_cli.training.tuning.estimate import TrainingMemory, estimate_usual, micro_tokens_on

GIB = 2**30


def usual(model: str, device: str = "cpu", quantization: Quantization = "none") -> TrainingMemory:
    facts = find_facts(model)
    spec = LoadSpec(
        facts.repo, facts.family, device=device, dtype="bfloat16", quantization=quantization
    )
    return estimate_usual(
        spec,
        facts.shape,
        facts.parameters,
        splitting=True,
        computed="bfloat16",
    )


def test_the_matrices_of_the_usual_adapter_are_counted_without_the_model() -> None:
    assert usual("demo").trained == 16 * 221_184  # the number that a run tells


def test_a_larger_model_and_a_gpu_take_more_and_four_bits_take_less() -> None:
    assert usual("smolvlm-256m").total < usual("smolvlm-500m").total < usual("idefics2-8b").total
    assert usual("idefics2-8b", quantization="4bit").weights < usual("idefics2-8b").weights / 2
    on_gpu = usual("idefics2-8b", "cuda:0")
    assert on_gpu.activations > usual("idefics2-8b").activations
    assert usual("idefics2-8b", "cuda:0", quantization="4bit").total < 24 * GIB < on_gpu.total


@pytest.mark.parametrize(("device", "tokens"), [("cpu", 512), ("mps", 512), ("cuda:1", 16384)])
def test_a_gpu_computes_more_tokens_at_once(device: str, tokens: int) -> None:
    assert micro_tokens_on(device) == tokens
