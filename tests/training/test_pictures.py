"""Kept features are those that would be computed, in memory and in a file."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from idefics_cli.core.types import Attachment
from idefics_cli.models.families.internals import attention_of
from idefics_cli.models.families.picture import PictureTensors
from idefics_cli.models.families.protocols import Model
from idefics_cli.training.pictures import FeatureStore, KeptFeatures, LearnedFeatures
from tests.support.training import load_tiny, make_examples, preprocessor


@pytest.mark.parametrize("memory_bytes", [0, 2000, 10**9])
def test_a_picture_is_encoded_once_and_its_features_stay_the_same(
    memory_bytes: int, tmp_path: Path
) -> None:
    loaded = load_tiny(tmp_path / "model", "idefics2-split")
    examples = make_examples(loaded.family, 6)
    opened: list[str] = []
    preprocess = preprocessor(loaded.family)

    def noted(attachment: Attachment) -> PictureTensors:
        opened.append(attachment.source)
        return preprocess(attachment)

    kept = KeptFeatures(
        loaded.model, loaded.family, noted, folder=tmp_path, memory_bytes=memory_bytes
    )
    first = kept.features_of(examples)
    second = kept.features_of(list(reversed(examples)))[::-1]
    learned = LearnedFeatures(loaded.model, loaded.family, preprocess).features_of(examples)

    assert opened == [str(number) for number in range(6)]
    for one, two, three in zip(first, second, learned, strict=True):
        assert torch.equal(one[0], two[0])
        assert torch.allclose(one[0], three[0], atol=1e-4)
        assert three[0].requires_grad
        assert not one[0].requires_grad
    kept.close()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("kind", ["idefics", "idefics2", "idefics3", "smolvlm2"])
def test_a_tower_without_gradients_gets_sdpa_and_the_text_model_stays_eager(
    kind: str, tmp_path: Path
) -> None:
    loaded = load_tiny(tmp_path / "model", kind)
    preprocess = preprocessor(loaded.family)
    examples = make_examples(loaded.family, 2)
    model = cast("nn.Module", loaded.model)
    eager = LearnedFeatures(loaded.model, loaded.family, preprocess).features_of(examples)
    kept = KeptFeatures(loaded.model, loaded.family, preprocess, folder=tmp_path)

    tower = model.get_submodule("model.vision_model").config
    # The tower of IDEFICS-1 is no model of its own in transformers.
    assert attention_of(tower) == ("eager" if kind == "idefics" else "sdpa")
    assert attention_of(loaded.model.config.get_text_config()) == "eager"
    for one, other in zip(kept.features_of(examples), eager, strict=True):
        assert torch.allclose(one[0], other[0], atol=1e-5)


def test_the_tiles_of_a_picture_are_encoded_in_groups_of_a_fixed_size(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_tiny(tmp_path / "model", "idefics2-split")
    family = loaded.family
    examples = make_examples(family, 2)
    ((height, width), *others) = examples[0].pictures[0].tile_sizes
    assert len(others) == 4
    encode_tiles, seen = family.encode_tiles, list[int]()

    def noted(model: Model, tiles: Tensor) -> Tensor:
        seen.append(len(tiles))
        return encode_tiles(model, tiles)

    monkeypatch.setattr(family, "encode_tiles", noted)

    def features(most_pixels: int) -> list[Tensor]:
        kept = KeptFeatures(
            loaded.model,
            family,
            preprocessor(family),
            folder=tmp_path,
            most_pixels=most_pixels,
        )
        return [row[0] for row in kept.features_of(examples)]

    together = features(10**9)
    assert max(seen) > 2
    for most_pixels, most_tiles in ((2 * height * width, 2), (1, 1)):
        seen.clear()
        for one, other in zip(features(most_pixels), together, strict=True):
            assert torch.allclose(one, other, atol=1e-5)
        assert max(seen) == most_tiles
        assert sum(seen) == 10


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_tensor_of_any_float_dtype_comes_back_from_the_file(
    dtype: torch.dtype, tmp_path: Path
) -> None:
    store = FeatureStore(tmp_path, memory_bytes=40)
    tensors = {bytes([n]): torch.randn(n + 1, 3).to(dtype) for n in range(5)}
    for digest, tensor in tensors.items():
        store.keep(digest, tensor)
    for digest, tensor in tensors.items():
        found = store.find(digest)
        assert found is not None
        assert found.dtype == dtype
        assert torch.equal(found, tensor)
    assert store.find(b"other") is None
    store.close()
    assert store.find(b"\1") is None
