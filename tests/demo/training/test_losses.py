"""The losses, compared with those of transformers."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForImageTextToText

from idefics_cli.demo.training.dataset import BatchSource, Pictures
from idefics_cli.demo.training.encoding import Encoder
from idefics_cli.demo.training.evaluate import WEIGHTS
from idefics_cli.demo.training.losses import AuxiliaryHeads, compute_losses, patch_loss
from idefics_cli.demo.training.truth import CLASSES, FACETS
from idefics_cli.models.families.protocols import Processor


def test_the_loss_of_the_answers_is_that_of_the_library(data: Path, processor: Processor) -> None:
    torch.manual_seed(0)
    model = AutoModelForImageTextToText.from_pretrained(WEIGHTS, dtype=torch.float32)
    source = BatchSource(Pictures(data, "train"), Encoder(processor), seed=0)
    batch = source.next_batch(6)
    with torch.no_grad():
        ours = compute_losses(model, AuxiliaryHeads(), batch).language
        library = model(
            input_ids=batch.tokens.input_ids,
            attention_mask=batch.tokens.attention_mask,
            pixel_values=batch.pixel_values,
            pixel_attention_mask=batch.pixel_mask,
            labels=batch.tokens.labels,
        ).loss

    assert ours is not None
    assert torch.isclose(ours, library, rtol=1e-4)


def test_patches_outside_the_picture_do_not_count() -> None:
    logits = torch.randn(2, 5, CLASSES)
    targets = torch.stack([torch.randint(0, n, (2, 5)) for n in FACETS], dim=-1)
    shorter = patch_loss(logits[:, :4], targets[:, :4])
    targets[:, 4] = -1

    assert torch.isclose(patch_loss(logits, targets), shorter)
