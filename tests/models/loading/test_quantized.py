"""Quantization leaves everything else as it is: most of what is not the text model."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from idefics_cli.models.families.spec import find_family
from idefics_cli.models.kernels.int4.compiled import CompiledInt4Linear
from idefics_cli.models.kernels.int4.linear import Int4Linear
from idefics_cli.models.kernels.int8.linear import Int8Linear
from idefics_cli.models.loading.loader import load
from tests.support import tiny
from tests.support.kernels import spec_of

bitsandbytes = pytest.importorskip("bitsandbytes")


def linear_names(model: nn.Module, kind: type[nn.Module] | tuple[type[nn.Module], ...]) -> set[str]:
    return {name for name, module in model.named_modules() if isinstance(module, kind)}


@pytest.mark.parametrize(
    ("quantization", "layer"),
    [
        ("nf4", (bitsandbytes.nn.Linear4bit,)),
        ("int4", (CompiledInt4Linear, Int4Linear, Int8Linear)),
        ("8bit", (Int8Linear,)),
    ],
)
@pytest.mark.parametrize("kind", tiny.CHATTING)
def test_no_more_is_quantized_than_the_plan_says(
    kind: str,
    quantization: str,
    layer: tuple[type[nn.Module], ...],
    checkpoint: Callable[[str], Path],
) -> None:
    spec = spec_of(
        checkpoint(kind),
        quantization="8bit" if quantization == "8bit" else "4bit",
        format_4bit="int4" if quantization == "int4" else "nf4",
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # bitsandbytes warns about its CPU kernels
        model = load(spec).model
    assert isinstance(model, nn.Module)
    quantized = linear_names(model, layer)
    spared = ("model.vision_model", "model.connector", "model.perceiver_resampler", "lm_head")
    assert quantized
    if quantization != "nf4" and spec.family != "idefics":
        assert isinstance(model.get_submodule("lm_head"), Int8Linear)
        quantized.remove("lm_head")
    patches = find_family(spec.family).patch_modules
    others = {name for name in quantized if name.startswith(spared)}
    assert all(name.startswith(patches) for name in others)
    assert bool(others) == ("int8_patches" in spec.kernels.vision)
    plain = {n for n in linear_names(model, nn.Linear) - quantized if not n.startswith(spared)}
    assert not plain
