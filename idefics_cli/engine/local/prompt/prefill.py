"""Prefill: a prompt runs through the model in pieces, from where a cache ends."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import Cache

from idefics_cli.models.families.base import Family, Inputs
from idefics_cli.models.families.kv_cache import extend
from idefics_cli.models.families.protocols import Model
from idefics_cli.models.families.token_rows import left_padded_positions
from idefics_cli.models.kernels.text_step.step import TextStep

# A prompt is computed in pieces, because a forward cannot be interrupted. On a CPU, a piece has at
# most this many operations: with an 8B model, 512 tokens of all rows together take about 7 s on 4
# cores. Smaller pieces would read the weights more often. A piece of a smaller model has more
# tokens, but at most `_MOST_TOKENS`.
_CPU_OPERATIONS, _MOST_TOKENS = 7e12, 8192
# A piece has at least this many tokens of each row. Smaller pieces would read the weights too
# often.
_FEWEST_TOKENS = 64
# While other replies are generated, a piece should take this time, so that those replies pause only
# shortly. The first piece has this many tokens, because its time is not known before.
_BESIDE_SECONDS, _FIRST_BESIDE_TOKENS = 0.1, 512


@dataclass(frozen=True, slots=True)
class Prompt:
    """B prompts on the model's device.

    Attributes:
        inputs: The result of `Family.encode`.
        image_features: The result of `Family.place_features`.
        lengths: Number of tokens of each row without padding. The host needs them, and would have
            to wait for a GPU if it read them from the mask.
    """

    inputs: Inputs
    image_features: Tensor | None
    lengths: Sequence[int]

    @property
    def mask(self) -> Tensor | None:
        """The attention mask (B, T); None if no row is padded, because then no mask is needed."""
        mask = self.inputs["attention_mask"]
        return None if min(self.lengths) == mask.shape[1] else mask


def join_prompts(
    prompts: Sequence[Inputs], replies: Sequence[Sequence[int]], pad_id: int
) -> Inputs:
    """Return one left-padded batch of prompts, each followed by the beginning of its reply.

    Args:
        prompts: The result of `Family.encode` for each prompt alone: tensors (1, T, ...).
        replies: Ids of the tokens that each reply has already; most often none.
        pad_id: Id of the token that pads prompts.

    Returns:
        Tensors (B, T of the longest, ...); those of the only prompt, if nothing follows it.
    """
    if len(prompts) == 1 and not replies[0]:
        return prompts[0]
    longest = max(
        prompt["input_ids"].shape[1] + len(reply)
        for prompt, reply in zip(prompts, replies, strict=True)
    )
    joined = {}
    for name, first in prompts[0].items():
        # The image masks of IDEFICS-1 (1, T, N) can differ in N. The batch gets the largest N.
        rest = [max(sizes) for sizes in zip(*(p[name].shape[2:] for p in prompts), strict=True)]
        is_ids = name == "input_ids"
        batch = first.new_full((len(prompts), longest, *rest), pad_id if is_ids else 0)
        for row, prompt, reply in zip(batch, prompts, replies, strict=True):
            (tensor,), end = prompt[name], longest - len(reply)
            inner = tuple(map(slice, tensor.shape[1:]))
            row[(slice(end - len(tensor), end), *inner)] = tensor
            # A reply attends to the same pictures as the end of its prompt, so the last values are
            # repeated.
            row[(slice(end, None), *inner)] = torch.tensor(reply) if is_ids else tensor[-1:]
        joined[name] = batch
    return joined


def prefill_pieces(
    model: Model,
    family: Family,
    prompt: Prompt,
    cache: Cache,
    *,
    piece_tokens: Callable[[], int],
    text_step: TextStep | None = None,
) -> Generator[None, None, Tensor]:
    """Run the tokens of *prompt* that *cache* does not hold, and pause between pieces.

    Args:
        model: In eval mode.
        family: The family of the model.
        prompt: B prompts of T tokens; *cache* holds fewer than T.
        cache: Grows by every piece.
        piece_tokens: Returns the number of tokens of each row for the next piece.
        text_step: Runs the short pieces of a single prompt; None runs the layers of the model.

    Yields:
        None after each piece but the last.

    Returns:
        Logits (B, 1, V) of the last tokens.
    """
    mask, rows = prompt.mask, len(prompt.lengths)
    length, start = prompt.inputs["input_ids"].shape[1], cache.get_seq_length()
    while True:
        end = min(start + piece_tokens(), length)
        inputs = family.text_inputs(model, prompt.inputs, prompt.image_features, start, end)
        if text_step is not None and rows == 1 and end - start <= text_step.MOST_ROWS:
            logits = _run_step(text_step, inputs, start, cache)
        else:
            seen = None if mask is None else mask[:, :end]
            here = left_padded_positions(prompt.inputs["attention_mask"])[:, start:end]
            logits = family.forward(model, inputs, cache, mask=seen, positions=here).logits
        if end == length:
            return logits
        start = end
        yield


def _run_step(step: TextStep, inputs: Inputs, start: int, cache: Cache) -> Tensor:
    """Run the tokens of one prompt from *start* on; return the logits (1, 1, V) of the last."""
    (states,) = inputs["inputs_embeds"]
    layers = extend(cache, len(states), layers=step.layers, empty=step.empty_states)
    return step.run_prompt(states, start, layers)[:, None]


class PieceSize:
    """The number of prompt tokens in one forward.

    Nothing else runs during a forward. So a prompt runs in short pieces while a user waits for
    another reply. Otherwise the pieces are as large as the device can use efficiently.

    Args:
        model: The model that runs the pieces.
        tokens: Tokens of each row in one forward; None chooses by device and model.
    """

    def __init__(self, model: Model, tokens: int | None = None) -> None:
        self._fixed = tokens
        self._most = _forward_tokens(model)
        self._is_cpu = model.device.type == "cpu"
        self._beside = min(self._most, _FIRST_BESIDE_TOKENS)

    def tokens(self, rows: int, *, has_company: bool) -> int:
        """Return the number of tokens of each of *rows* for the next piece.

        Args:
            rows: Number of prompts that run together.
            has_company: Whether a user waits for another reply.
        """
        if self._fixed is not None:
            return self._fixed
        most = self._beside if has_company else self._most
        return max(_FEWEST_TOKENS, most // rows)

    def learn_from(self, seconds: float) -> None:
        """Adapt to the *seconds* that a whole piece beside other replies took."""
        # A GPU runs a piece long after the call, so its time is not known here.
        if not self._is_cpu:
            return
        if seconds > 2 * _BESIDE_SECONDS:
            self._beside = max(_FEWEST_TOKENS, self._beside // 2)
        elif seconds < _BESIDE_SECONDS / 2:
            self._beside = min(self._most, self._beside * 2)


def _forward_tokens(model: Model) -> int:
    """Return the maximum number of tokens, of all rows together, for one forward of *model*."""
    if model.device.type != "cpu":
        return _MOST_TOKENS
    text = model.config.get_text_config()
    layer = 4 * text.hidden_size**2 + 3 * text.hidden_size * text.intermediate_size
    return min(_MOST_TOKENS, int(_CPU_OPERATIONS / (2 * text.num_hidden_layers * layer)))
