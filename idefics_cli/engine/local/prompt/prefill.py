"""A prompt through the model in pieces, from where a cache ends."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache

from idefics_cli.engine.local.cancel import Flag
from idefics_cli.models.families.base import Family, Inputs, left_padded_positions
from idefics_cli.models.families.protocols import Model, StepOutput

# Tokens of all rows in one forward, which cannot be interrupted. On 4 cores 512 take an 8B model
# about 7 s, and much smaller pieces read the weights too often; small models can do more in that
# time, and to begin a forward costs them more than some tokens.
_CPU_OPERATIONS, _MOST_TOKENS = 7e12, 8192
_FEWEST = 64


@dataclass(frozen=True, slots=True)
class Prompt:
    """B prompts on the model's device.

    Attributes:
        inputs: Of `Family.encode`.
        image_features: Of `Family.place_features`.
    """

    inputs: Inputs
    image_features: Tensor | None

    @property
    def mask(self) -> Tensor | None:
        """The attention mask (B, T); None where no row is padded, so that kernels need none."""
        mask = self.inputs["attention_mask"]
        return None if bool(mask.all()) else mask


@torch.inference_mode()
def prefill(
    model: Model,
    family: Family,
    prompt: Prompt,
    cache: Cache,
    *,
    cancel: Flag | None = None,
    piece: int | None = None,
) -> StepOutput | None:
    """Run what *cache* does not hold yet of *prompt*, and return its last output.

    Args:
        model: In eval mode.
        family: Of the model.
        prompt: B prompts of T tokens, of which *cache* holds fewer than T.
        cache: Grows by every piece.
        cancel: Looked at before each piece.
        piece: Tokens of a row in one forward; None goes by device and model.

    Returns:
        Logits (B, 1, V) of the last tokens; None when cancelled, with *cache* as far as it came.
    """
    ids, mask = prompt.inputs["input_ids"], prompt.mask
    positions = left_padded_positions(prompt.inputs["attention_mask"])
    rows, length = ids.shape
    if piece is None:
        piece = max(_FEWEST, _tokens(model) // rows)
    start = cache.get_seq_length()
    while cancel is None or not cancel.is_set():
        end = min(start + piece, length)
        output = family.forward(
            model,
            family.text_inputs(model, prompt.inputs, prompt.image_features, start, end),
            cache,
            mask=None if mask is None else mask[:, :end],
            positions=positions[:, start:end],
        )
        if end == length:
            return output
        start = end
    return None


def _tokens(model: Model) -> int:
    """Return how many tokens one forward of *model* may have."""
    if model.device.type != "cpu":
        return _MOST_TOKENS
    text = model.config.get_text_config()
    layer = 4 * text.hidden_size**2 + 3 * text.hidden_size * text.intermediate_size
    return min(_MOST_TOKENS, int(_CPU_OPERATIONS / (2 * text.num_hidden_layers * layer)))
