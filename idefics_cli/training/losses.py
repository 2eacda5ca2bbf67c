"""The loss of a batch of conversations, for every family."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from idefics_cli.models.families.base import Family
from idefics_cli.models.families.protocols import Model
from idefics_cli.training.labels import IGNORED, LabelledBatch


def sum_of_losses(
    model: Model, family: Family, batch: LabelledBatch, features: Sequence[Sequence[Tensor]]
) -> Tensor:
    """Return the cross entropy of the labelled tokens, summed, in float32.

    The head computes logits at the places with a label only. All logits of a vocabulary of 50,000
    would take 23 times the memory if every twentieth token has a label.

    Args:
        model: The model; the caller decides what has gradients.
        family: The family of the model.
        batch: B conversations.
        features: Image features (tokens, D) of each picture of each row, on any device.
    """
    device = model.device
    ids, labels = batch.input_ids.to(device), batch.labels[:, 1:].to(device)
    rows = family.row_inputs(ids, max(map(len, features)))
    image_features = family.place_features(model, features)
    inputs = family.text_inputs(
        model,
        {name: tensor.to(device) for name, tensor in rows.items()},
        image_features,
        0,
        ids.shape[1],
    )
    hidden = model.model(
        **family.library_inputs(inputs),
        attention_mask=batch.attention_mask.to(device),
        use_cache=False,
        return_dict=True,
    ).last_hidden_state
    is_labelled = labels != IGNORED
    logits = model.get_output_embeddings()(hidden[:, :-1][is_labelled])
    return F.cross_entropy(logits.float(), labels[is_labelled], reduction="sum")
