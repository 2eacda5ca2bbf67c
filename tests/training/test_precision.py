"""In which formats a model is trained."""

from __future__ import annotations

import pytest

from idefics_cli.core.errors import PlanError
from idefics_cli.core.types import LoadSpec
from idefics_cli.training import precision
from idefics_cli.training.precision import training_spec


@pytest.mark.parametrize(
    ("device", "is_native", "dtype", "full", "loaded", "computed"),
    [
        ("cpu", True, "auto", False, "float32", "float32"),
        ("cpu", True, "bfloat16", False, "bfloat16", "bfloat16"),
        ("cuda:1", True, "auto", False, "bfloat16", "bfloat16"),
        ("cuda", False, "auto", False, "float32", "float32"),
        ("cuda", True, "float32", False, "float32", "float32"),
        ("cuda", True, "auto", True, "float32", "bfloat16"),
    ],
)
def test_bfloat16_where_a_gpu_has_it_else_float32(
    device: str,
    is_native: bool,
    dtype: str,
    full: bool,
    loaded: str,
    computed: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(precision, "is_bfloat16_native", lambda kind: is_native)
    spec, found = training_spec(
        LoadSpec("a/b", "idefics2", device=device, dtype="float16"), dtype=dtype, full=full
    )
    assert (spec.dtype, found) == (loaded, computed)
    assert spec.attention == ("eager" if device == "cpu" else "sdpa")


@pytest.mark.parametrize(
    ("spec", "full", "message"),
    [
        (LoadSpec("a/b", "idefics2", name="b", device_map="auto"), False, "`b` does not fit one"),
        (LoadSpec("a/b", "idefics2", quantization="8bit"), False, "8bit cannot be trained"),
        (LoadSpec("a/b", "idefics2", quantization="4bit"), True, "4bit cannot be trained"),
    ],
)
def test_formats_that_cannot_be_trained_are_refused(
    spec: LoadSpec, full: bool, message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        training_spec(spec, full=full)
