"""The probe finds attention that is wrong, in the calls that the engine makes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from idefics_cli.core.types import DtypeName
from idefics_cli.models.kernels import attention_probe
from idefics_cli.models.kernels.attention_probe import TOLERANCE, HeadShape, probe_attention
from idefics_cli.models.kernels.table import ATTENTION_KERNELS

TEXT = HeadShape(6, 3, 32)


@pytest.fixture
def few_heads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the vision tower and the connector fewer heads of the same widths."""
    monkeypatch.setattr(attention_probe, "VISION", HeadShape(4, 4, 72))
    monkeypatch.setattr(attention_probe, "PERCEIVER", HeadShape(4, 1, 96))


def wrong_calls(name: str, dtype: DtypeName = "float32", text: HeadShape = TEXT) -> list[str]:
    errors = probe_attention(name, device="cpu", dtype=dtype, text=text)
    assert len(errors) == 9
    return [each.call for each in errors if not each.error <= TOLERANCE[dtype]]


@pytest.mark.parametrize("name", ["sdpa", *ATTENTION_KERNELS])
def test_attention_that_is_right_is_within_the_tolerance(name: str) -> None:
    assert wrong_calls(name) == []


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
@pytest.mark.parametrize("name", ["sdpa", *ATTENTION_KERNELS])
def test_attention_in_16_bits_is_within_the_tolerance(
    name: str, dtype: DtypeName, few_heads: None
) -> None:
    assert wrong_calls(name, dtype) == []


def test_eager_attention_is_right_with_shared_and_with_own_keys(few_heads: None) -> None:
    assert wrong_calls("eager") == []
    assert wrong_calls("eager", text=HeadShape(4, 4, 64)) == []


def swap_heads(out: Tensor) -> Tensor:
    """Swap two heads of the last row, as a kernel that misreads shared keys would."""
    out = out.clone()
    out[-1, [0, -1]] = out[-1, [-1, 0]]
    return out


@pytest.mark.parametrize(
    ("name", "kind", "expected"),
    [
        ("sdpa", "masked", ["decode with a mask", "decode in whole buffers"]),
        ("cpu_sdpa", "masked", ["decode with a mask", "decode in whole buffers"]),
        ("sdpa", "vision", ["vision", "padded vision"]),
        ("cpu_sdpa", "vision", ["vision", "padded vision"]),
        ("sdpa", "perceiver", ["perceiver"]),
    ],
)
def test_a_kernel_that_is_wrong_in_one_kind_of_call_is_found_there(
    name: str, kind: str, expected: list[str], few_heads: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = functional.scaled_dot_product_attention

    def attend(query: Tensor, *rest: Any, **more: Any) -> Tensor:
        out = sound(query, *rest, **more)
        is_kind = {
            "masked": query.shape[2] <= 2 and more.get("attn_mask") is not None,
            "vision": query.shape[2] > 1000,
            "perceiver": query.shape[2] == 64,
        }
        return swap_heads(out) if is_kind[kind] else out

    monkeypatch.setattr(functional, "scaled_dot_product_attention", attend)
    assert wrong_calls(name, "bfloat16") == expected


def test_nan_is_an_error_and_not_a_small_number(monkeypatch: pytest.MonkeyPatch) -> None:
    def attend(query: Tensor, *rest: object, **more: object) -> Tensor:
        return torch.full_like(query, torch.nan)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", attend)
    assert len(wrong_calls("sdpa")) == 9


def test_the_probe_leaves_the_kernels_of_cudnn_out_as_engines_do() -> None:
    before = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]  # of torch
    torch.backends.cuda.enable_cudnn_sdp(True)
    try:
        assert wrong_calls("sdpa") == []
        assert not torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]  # of torch
    finally:
        torch.backends.cuda.enable_cudnn_sdp(before)
