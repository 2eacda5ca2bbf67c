"""Loading without random weights gives the model that loading with them gives."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from idefics_cli.models.families.classes import model_class
from idefics_cli.models.hub.files import read_json
from idefics_cli.models.loading.unfilled import Unfilled
from tests.support.tiny import KINDS


@pytest.mark.parametrize("kind", KINDS)
def test_all_weights_and_buffers_are_those_of_the_library(
    kind: str, checkpoint: Callable[[str], Path]
) -> None:
    folder = checkpoint(kind)
    kind_of_model = model_class(str(read_json(folder / "config.json", kind)["model_type"]))
    plain = kind_of_model.from_pretrained(folder)
    with Unfilled():
        ours = kind_of_model.from_pretrained(folder)
    for name in ("named_parameters", "named_buffers"):
        theirs = dict(getattr(plain, name)())
        found = dict(getattr(ours, name)())
        assert list(found) == list(theirs)
        assert theirs or name == "named_buffers"
        for key, tensor in theirs.items():
            assert (found[key].dtype, found[key].device) == (tensor.dtype, tensor.device)
            assert torch.equal(found[key], tensor), key


def test_only_tensors_without_numbers_are_left_as_they_are() -> None:
    with Unfilled():
        filled = torch.nn.Embedding(200, 50).weight.detach()
        with torch.device("meta"):
            empty = torch.nn.Embedding(200, 50).weight
            numbers = torch.arange(4)
    assert filled.std().item() > 0.9
    assert (empty.is_meta, numbers.tolist()) == (True, [0, 1, 2, 3])
    torch.nn.init.normal_(filled, std=0.0)
    assert not filled.any()
