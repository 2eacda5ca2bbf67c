"""Prefill: the part of a prompt that a KV cache lacks runs through the model, in chunks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache

from idefics_cli.engine.local.cancel import Flag
from idefics_cli.models.families.base import Family, Inputs, left_padded_positions
from idefics_cli.models.families.protocols import Model, StepOutput

# A forward cannot be interrupted, so its operations are limited on a CPU. On 4 cores, an 8B model
# takes about 7 s for 512 tokens of all rows together. Smaller chunks would read the weights more
# often. A smaller model gets more tokens, up to a maximum.
_CPU_OPERATIONS, _MOST_TOKENS = 7e12, 8192
# A chunk has at least so many tokens of each row.
_FEWEST_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Prompt:
    """B prompts on the model's device.

    Attributes:
        inputs: The result of `Family.encode`.
        image_features: The result of `Family.place_features`.
    """

    inputs: Inputs
    image_features: Tensor | None

    @property
    def mask(self) -> Tensor | None:
        """The attention mask (B, T); None if no row is padded, because then no mask is needed."""
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
    chunk_tokens: int | None = None,
) -> StepOutput | None:
    """Run the tokens of *prompt* that *cache* does not hold, and return the last output.

    Args:
        model: In eval mode.
        family: The family of the model.
        prompt: B prompts of T tokens; *cache* holds fewer than T.
        cache: Each chunk appends its states.
        cancel: Checked before each chunk.
        chunk_tokens: Number of tokens of each row in one forward; None chooses by device and model.

    Returns:
        Logits (B, 1, V) of the last tokens. None when cancelled; *cache* then holds the chunks
        that were run.
    """
    mask, positions = prompt.mask, left_padded_positions(prompt.inputs["attention_mask"])
    (rows, length), start = positions.shape, cache.get_seq_length()
    chunk_tokens = chunk_tokens or max(_FEWEST_TOKENS, _forward_tokens(model) // rows)
    while cancel is None or not cancel.is_set():
        end = min(start + chunk_tokens, length)
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


def _forward_tokens(model: Model) -> int:
    """Return the maximum number of tokens, of all rows together, for one forward of *model*."""
    if model.device.type != "cpu":
        return _MOST_TOKENS
    text = model.config.get_text_config()
    layer = 4 * text.hidden_size**2 + 3 * text.hidden_size * text.intermediate_size
    return min(_MOST_TOKENS, int(_CPU_OPERATIONS / (2 * text.num_hidden_layers * layer)))
