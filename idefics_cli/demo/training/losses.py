"""The losses of the training.

The main loss is that of the answers. Two auxiliary losses make the model recognise the content of
each patch and of each image token.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Protocol, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from idefics_cli.demo.build import LATENTS, TEXT_WIDTH, VISION_WIDTH
from idefics_cli.demo.training.dataset import Batch
from idefics_cli.demo.training.truth import CLASSES, FACETS
from idefics_cli.training.labels import IGNORED

# Factor for the loss of the image tokens ("slots"). Nearly all of their targets are 0 and only a
# few are 1, so the mean is only a tenth of the other losses.
_SLOT_SCALE = 5.0


class _ImageFeatures(Protocol):
    """The part of `BaseModelOutputWithPooling` of transformers that this module uses."""

    last_hidden_state: Tensor
    pooler_output: Tensor | Sequence[Tensor]


class AuxiliaryHeads(nn.Module):
    """Linear classifiers for the auxiliary losses. They are not part of the saved model."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Linear(VISION_WIDTH, CLASSES)
        self.slots = nn.Linear(TEXT_WIDTH, CLASSES)


@dataclass(frozen=True, slots=True)
class Losses:
    """The losses of one batch, each a scalar; *language* is None if only vision is learned."""

    patches: Tensor
    slots: Tensor
    language: Tensor | None

    def total(self, auxiliary_weight: float) -> Tensor:
        """Return the weighted sum of the losses, which training minimizes."""
        auxiliary = auxiliary_weight * (self.patches + _SLOT_SCALE * self.slots)
        return auxiliary if self.language is None else auxiliary + self.language


def compute_losses(
    model: nn.Module, heads: AuxiliaryHeads, batch: Batch, *, with_language: bool = True
) -> Losses:
    """Return the losses of *model* (an `Idefics2ForConditionalGeneration`) for *batch*."""
    device = next(model.parameters()).device
    features = cast(
        _ImageFeatures,
        model.model.get_image_features(  # type: ignore[union-attr, operator]  # an Idefics2Model
            batch.pixel_values.to(device), batch.pixel_mask.to(device), return_dict=True
        ),
    )
    patches = patch_loss(heads.patches(features.last_hidden_state), batch.patches.to(device))
    logits = heads.slots(_pooled(features).reshape(-1, LATENTS, TEXT_WIDTH)).float()
    slots = F.binary_cross_entropy_with_logits(logits, batch.slots.to(device))
    language = _language_loss(model, features, batch, device) if with_language else None
    return Losses(patches, slots, language)


def patch_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Return the mean cross entropy over patches, summed over the facets (see `truth.FACETS`).

    Args:
        logits: Logits (F, patches, classes of all facets).
        targets: Classes (F, patches, facets), int64. Entries of -1 are ignored.
    """
    flat = torch.split(logits.float().reshape(-1, CLASSES), list(FACETS), dim=-1)
    wanted = targets.reshape(-1, len(FACETS)).unbind(-1)
    losses = [F.cross_entropy(a, b, ignore_index=-1) for a, b in zip(flat, wanted, strict=True)]
    return torch.stack(losses).sum()


def _pooled(features: _ImageFeatures) -> Tensor:
    """Return the latents of all pictures (N * latents, width).

    transformers 5.17 has them in one tensor; newer versions have a tensor for each picture.
    """
    pooled = features.pooler_output
    return pooled if isinstance(pooled, Tensor) else torch.cat(tuple(pooled))


def _language_loss(
    model: nn.Module, features: _ImageFeatures, batch: Batch, device: torch.device
) -> Tensor:
    """Return the mean cross entropy of the labelled tokens.

    The language head computes logits only at the positions that have a label.
    """
    tokens = batch.tokens
    inputs: dict[str, object] = {"mm_encoder_outputs": {"image": features}}
    if "mm_encoder_outputs" not in signature(type(model.model).forward).parameters:  # type: ignore[union-attr]  # an Idefics2Model
        inputs = {"image_hidden_states": _pooled(features)}  # transformers 5.17
    hidden = model.model(  # type: ignore[operator]  # an Idefics2Model
        input_ids=tokens.input_ids.to(device),
        attention_mask=tokens.attention_mask.to(device),
        **inputs,
        use_cache=False,
    ).last_hidden_state
    next_labels = tokens.labels[:, 1:].to(device)
    counts = next_labels != IGNORED
    logits = model.lm_head(hidden[:, :-1][counts])  # type: ignore[operator]  # a Linear
    return F.cross_entropy(logits.float(), next_labels[counts])
