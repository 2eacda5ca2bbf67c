"""Checkpoints of random weights."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
from transformers import AutoModelForImageTextToText, AutoTokenizer

from idefics_cli.bench.random_model import make
from idefics_cli.bench.shapes import SHAPES, RealShape
from idefics_cli.caption.executors.degenerate import degeneracy
from idefics_cli.core.errors import IdeficsError

NARROW = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 4,
    "num_hidden_layers": 3,
}


def narrow(name: str) -> RealShape:
    """Return the shape of the model *name* with narrow layers, which make megabytes of weights."""
    config = cast("dict[str, Any]", copy.deepcopy(SHAPES[name].config))
    config["text_config"] |= NARROW | {"num_key_value_heads": 2}
    config["vision_config"] |= NARROW
    return replace(SHAPES[name], config=config)


@pytest.mark.parametrize("name", ["smolvlm-256m", "idefics2-8b"])
def test_random_weights_that_were_kept_are_used_again(name: str, tmp_path: Path) -> None:
    folder, shape = tmp_path / "kept", narrow(name)
    count = make(folder, shape, dtype="float32", layers=1)
    (weights,) = folder.glob("model-*.safetensors")
    written = weights.stat().st_mtime_ns

    assert make(folder, shape, dtype="float32", layers=1) == count
    assert weights.stat().st_mtime_ns == written
    with pytest.raises(IdeficsError, match="something else"):
        make(folder, shape, dtype="bfloat16", layers=1)


def test_the_library_loads_random_weights_of_the_shape_and_the_cut(tmp_path: Path) -> None:
    count = make(tmp_path, narrow("smolvlm-256m"), dtype="float32", layers=1, vision_layers=2)
    model = AutoModelForImageTextToText.from_pretrained(tmp_path)

    assert model.num_parameters() == count
    assert len(model.model.text_model.layers) == 1
    assert len(model.model.vision_model.encoder.layers) == 2


@pytest.mark.parametrize("name", ["smolvlm-256m", "idefics2-8b"])
def test_a_text_of_random_tokens_is_no_circle(name: str, tmp_path: Path) -> None:
    """A run asks again for a caption that goes in circles, and so would not measure one caption."""
    make(tmp_path, narrow(name), dtype="float32", layers=1)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    words = [tokenizer.decode([token]).strip() for token in range(1000, 31_000)]
    assert len(set(words)) == len(words)
    assert degeneracy(tokenizer.decode(range(1000, 1040))) is None
