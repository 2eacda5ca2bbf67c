"""Packed bfloat16 weights: torch's functions are tried before they are trusted."""

from __future__ import annotations

import pytest
import torch

from idefics_cli.models.kernels.packed import PackedLinear
from tests.support.kernels import refusing, zeros


def test_functions_that_are_missing_or_wrong_fail_the_self_test(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for function in (refusing, zeros):
        monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", function)
        assert not PackedLinear.passes_self_test()
