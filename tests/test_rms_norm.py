"""Our norms give what the library's give."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from idefics_cli.models import rms_norm
from tests import tiny
from tests.test_parity import open_engine


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_every_norm_of_a_model_is_ours_and_gives_what_the_librarys_gives(
    kind: str, checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    with open_engine(checkpoint(kind), kind) as engine:
        ours = dict(engine._require().model.named_modules())
    monkeypatch.setattr(rms_norm, "replace", lambda model: None)
    with open_engine(checkpoint(kind), kind) as engine:
        theirs = dict(engine._require().model.named_modules())
    norms = [name for name, module in theirs.items() if type(module).__name__.endswith("RMSNorm")]
    assert norms
    torch.manual_seed(0)
    for name in norms:
        assert isinstance(ours[name], rms_norm.FloatRMSNorm)
        torch.nn.init.normal_(ours[name].weight)
        torch.nn.init.normal_(theirs[name].weight)
        theirs[name].weight.data = ours[name].weight.data
        width = len(ours[name].weight)
        for scale in (0.0, 1e-3, 1.0, 1e4):
            states = torch.randn(2, 3, width) * scale
            with torch.inference_mode():
                expected, given = theirs[name](states), ours[name](states)
            torch.testing.assert_close(given, expected, rtol=1e-5, atol=1e-6)
