"""Loss and gradients are those of plain transformers with labels made by hand."""

from __future__ import annotations

from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from idefics_cli.models.families.spec import PartName
from idefics_cli.training.data.row import TrainingRow
from idefics_cli.training.labels import IGNORED
from idefics_cli.training.pictures import LearnedFeatures
from idefics_cli.training.steps import TrainingSteps, count_labels
from idefics_cli.training.targets import train_weights
from tests.support.reference import Content, Reference, load_reference
from tests.support.training import draw, load_tiny, make_examples, make_rows, preprocessor

KINDS = ("idefics", "idefics2", "idefics2-split", "idefics3", "smolvlm", "smolvlm2")
PARTS: tuple[PartName, ...] = ("text", "connector", "vision")


@pytest.mark.parametrize("kind", KINDS)
def test_loss_and_gradients_are_those_of_transformers(kind: str, tmp_path: Path) -> None:
    loaded = load_tiny(tmp_path, kind)
    examples = make_examples(loaded.family, 4)
    model = cast("nn.Module", loaded.model)
    targets = train_weights(model, loaded.family.spec, PARTS)
    gradients: dict[str, Tensor] = {}
    steps = TrainingSteps(
        loaded.model,
        loaded.family,
        targets,
        LearnedFeatures(loaded.model, loaded.family, preprocessor(loaded.family)),
        on_gradients=lambda: gradients.update(_gradients(model)),
    )

    outcome = steps.step(examples, number=0, learning_rate=0.0)

    reference = load_reference(tmp_path, kind)
    losses = torch.stack([_library_loss(reference, row) for row in make_rows(4)])
    loss = losses.sum() / sum(count_labels(each) for each in examples)
    loss.backward()  # type: ignore[no-untyped-call]  # torch 2.13 has no annotation
    assert outcome.loss == pytest.approx(loss.item(), rel=1e-5)
    expected = _gradients(reference.model)
    assert gradients.keys() == expected.keys()
    largest = max(float(each.abs().max()) for each in expected.values())
    for name, each in expected.items():
        assert float((gradients[name] - each).abs().max()) <= 1e-5 * largest, name


def _gradients(model: nn.Module) -> dict[str, Tensor]:
    return {
        name: parameter.grad.clone()
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and parameter.grad.any()
    }


def _library_loss(reference: Reference, row: TrainingRow) -> Tensor:
    """Return the summed loss of *row*, with the label of each token set by hand."""
    turns: list[Content] = [
        (m.role, [p if isinstance(p, str) else draw(p.source) for p in m.parts])
        for m in row.messages
    ]
    end = reference.processor.tokenizer.convert_tokens_to_ids("<end_of_utterance>")
    inputs = reference.content_inputs(turns)
    ids = inputs["input_ids"][0].tolist()
    labels = torch.full((1, len(ids)), IGNORED)
    last = 0
    for number, (role, _) in enumerate(turns):
        if role == "assistant":
            start = reference.content_inputs(turns[:number])["input_ids"].shape[1]
            last = ids.index(end, start)
            labels[0, start : last + 1] = inputs["input_ids"][0, start : last + 1]
    for name in ("input_ids", "attention_mask", "image_attention_mask"):
        if name in inputs:
            inputs[name] = inputs[name][:, : last + 1]
    inputs.pop("mm_token_type_ids", None)
    labels = labels[:, : last + 1]
    if reference.kind == "idefics":
        # transformers 5.24 cannot compute the loss of IDEFICS-1: it forgets the second table.
        logits = reference.model(**inputs).logits[0, :-1]
        return nn.functional.cross_entropy(logits, labels[0, 1:], reduction="sum")
    loss: Tensor = reference.model(**inputs, labels=labels).loss
    return loss * int((labels != IGNORED).sum())
