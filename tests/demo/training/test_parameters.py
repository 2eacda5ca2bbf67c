"""Each parameter of the built-in model gets the update that suits it."""

from __future__ import annotations

from torch import nn

from idefics_cli.demo.build import build_model
from idefics_cli.demo.training.losses import AuxiliaryHeads
from idefics_cli.demo.training.parameters import HEADS, language_names, matrix_names
from idefics_cli.models.families.protocols import Processor


def parameters(processor: Processor) -> dict[str, nn.Parameter]:
    model = build_model(processor.tokenizer)
    heads = {HEADS + name: each for name, each in AuxiliaryHeads().named_parameters()}
    return dict(model.named_parameters()) | heads


def test_layers_are_matrices_but_embeddings_latents_and_heads_are_not(processor: Processor) -> None:
    found = parameters(processor)
    matrices = matrix_names(found)

    assert all(found[name].dim() == 2 for name in matrices)
    others = {name for name, each in found.items() if each.dim() == 2} - matrices
    assert {name.split(".")[-2] for name in others if not name.startswith(HEADS)} == {
        "embed_tokens",
        "perceiver_resampler",
        "position_embedding",
    }
    assert {name for name in others if name.startswith(HEADS)} == {
        "heads.patches.weight",
        "heads.slots.weight",
    }


def test_the_language_is_the_text_model(processor: Processor) -> None:
    found = parameters(processor)
    others = found.keys() - language_names(found)

    assert {name.split(".")[1] for name in language_names(found)} == {"text_model"}
    assert {name.split(".")[1] for name in others} == {
        "connector",
        "patches",
        "slots",
        "vision_model",
    }
