"""Our norms give the results of the norms of transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import nn

from idefics_cli.core.types import KernelChoice
from idefics_cli.models.families.classes import model_class
from idefics_cli.models.kernels import rms_norm
from idefics_cli.models.loading.loader import load, load_config
from tests.support import tiny
from tests.support.kernels import spec_of


@pytest.mark.parametrize("kind", tiny.LAYERED)
def test_every_norm_of_a_model_is_ours_and_gives_what_the_librarys_gives(
    kind: str, checkpoint: Callable[[str], Path]
) -> None:
    spec = spec_of(checkpoint(kind))
    plain = replace(spec, kernels=KernelChoice())
    ours, theirs = (
        dict(cast("nn.Module", load(each).model).named_modules()) for each in (spec, plain)
    )
    norms = [name for name, module in theirs.items() if type(module).__name__.endswith("RMSNorm")]
    assert norms
    torch.manual_seed(0)
    for name in norms:
        assert isinstance(ours[name], rms_norm.CpuRMSNorm)
        torch.nn.init.normal_(ours[name].weight)
        theirs[name].weight.data = ours[name].weight.data
        for scale in (0.0, 1e-3, 1.0, 1e4):
            activations = torch.randn(2, 3, len(ours[name].weight)) * scale
            with torch.inference_mode():
                expected, given = theirs[name](activations), ours[name](activations)
            torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", ["idefics", "idefics2"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_16_bits_they_are_rounded_where_the_librarys_are(
    kind: str, dtype: torch.dtype, checkpoint: Callable[[str], Path]
) -> None:
    (norm_class,) = {
        type(module)
        for module in model_class(kind)(load_config(checkpoint(kind))).modules()
        if type(module).__name__ in ("MistralRMSNorm", "IdeficsRMSNorm")
    }
    torch.manual_seed(0)
    theirs = norm_class(512).to(dtype)
    torch.nn.init.normal_(theirs.weight)
    ours = rms_norm.CpuRMSNorm(theirs)
    for scale in (0.0, 1e-3, 1.0, 1e2):
        activations = (torch.randn(20, 512) * scale).to(dtype)
        with torch.inference_mode():
            expected, given = theirs(activations), ours(activations)
        assert given.dtype == expected.dtype == dtype
        # A result between two numbers may be rounded to the other one, but rarely is.
        assert (given == expected).float().mean() > 0.999
        torch.testing.assert_close(given, expected, rtol=0.008, atol=1e-6)
