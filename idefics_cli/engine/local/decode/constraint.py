"""Constraints on replies: which tokens may come next, by the grammars of llguidance."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock
from typing import TYPE_CHECKING, cast

import numpy as np
import torch
from torch import Tensor

from idefics_cli.core.errors import ModelError
from idefics_cli.core.types import Constraint, Mode
from idefics_cli.engine.schema.grammar import compiled_grammar, not_usable
from idefics_cli.models.families.base import Family

if TYPE_CHECKING:
    from llguidance import LLMatcher, LLTokenizer
    from transformers import PreTrainedTokenizerFast

# Number of compiled grammars that are kept. A grammar takes some hundred kilobytes.
_KNOWN_GRAMMARS = 32
_WORD_BITS = 32


class Guide:
    """Says which tokens may follow in one reply. The inference thread owns it.

    Args:
        matcher: The grammar, at the beginning of the reply.
        vocabulary: Number of tokens that the grammar knows.

    Attributes:
        agrees: Whether the grammar allowed the token that the model preferred last.
    """

    def __init__(self, matcher: LLMatcher, vocabulary: int) -> None:
        self._matcher = matcher
        self.mask_words = -(-vocabulary // _WORD_BITS)
        self.agrees = True

    @property
    def is_over(self) -> bool:
        """Whether the reply is complete, and nothing can follow."""
        return self._matcher.is_stopped()

    def fill_mask(self, address: int) -> None:
        """Set the bits of the tokens that may come next, `mask_words` numbers of int32.

        Bit *i* of them, counted from the lowest bit of the first number, is token *i*.

        Args:
            address: Where the numbers begin in memory.

        Raises:
            ModelError: If the grammar has become too complex.
        """
        self._matcher.unsafe_compute_mask_ptr(address, self.mask_words * _WORD_BITS // 8)
        self._check()

    def agrees_on(self, token: int) -> bool:
        """Return whether *token*, which the model prefers, may come next.

        This is much quicker than a mask. It is not asked, and the answer is False, while the model
        prefers what the grammar does not allow.
        """
        self.agrees = self.agrees and self._matcher.validate_tokens([token]) == 1
        return self.agrees

    def accept(self, token: int) -> None:
        """Add *token* to the reply.

        Raises:
            ModelError: If the grammar does not allow it.
        """
        if not self._matcher.consume_token(token):
            self._check()

    def _check(self) -> None:
        if self._matcher.is_error():
            reason = self._matcher.get_error().partition("\n")[0][:200]
            raise ModelError(
                f"the schema or pattern cannot be followed any further: {reason}",
                hint="make it simpler: fewer alternatives, shorter strings and lists",
            )


class Grammars:
    """Compiles constraints, and keeps them for later replies; safe in any thread.

    Args:
        family: The family of the model, whose tokenizer and stop tokens the grammars use.
        vocabulary: Number of columns of the logits.
    """

    def __init__(self, family: Family, vocabulary: int) -> None:
        self._family = family
        # The logits of base checkpoints lack columns for some tokens of the tokenizer, but
        # llguidance needs a column for each token.
        self._vocabulary = max(vocabulary, len(family.tokenizer))
        self._lock = Lock()
        self._tokenizer: LLTokenizer | None = None
        self._matchers: dict[tuple[Constraint, Mode], LLMatcher] = {}

    def start(self, constraint: Constraint, mode: Mode) -> Guide:
        """Return the guide of a new reply.

        The first call takes a second or two for a large vocabulary.

        Args:
            constraint: What the reply must match.
            mode: In chats, a reply begins with a space, which is no part of its text.

        Raises:
            UsageError: If llguidance is not installed, or cannot compile the constraint.
        """
        key = constraint, mode
        with self._lock:
            if (matcher := self._matchers.pop(key, None)) is None:
                matcher = self._compile(constraint, mode)
            self._matchers[key] = matcher
            if len(self._matchers) > _KNOWN_GRAMMARS:
                del self._matchers[next(iter(self._matchers))]
            return Guide(matcher.deep_copy(), self._vocabulary)

    def _compile(self, constraint: Constraint, mode: Mode) -> LLMatcher:
        grammar = compiled_grammar(constraint, mode)
        from llguidance import LLMatcher

        if self._tokenizer is None:
            self._tokenizer = _tokenizer(self._family, self._vocabulary)
        # By default, llguidance writes warnings to stderr.
        matcher = LLMatcher(self._tokenizer, grammar, log_level=0)
        if matcher.is_error():
            raise not_usable(constraint, matcher.get_error())
        return matcher


def refused_tokens(guides: Sequence[Guide], columns: int, device: torch.device) -> Tensor:
    """Return a mask (rows, columns), True for each token that must not come next in its reply.

    Args:
        guides: One for each row.
        columns: Number of columns of the logits.
        device: The device of the result; the copy to a GPU does not block the host.
    """
    known = guides[0].mask_words
    # Logits may have more columns than the grammar knows. Their bits stay 0, so these tokens are
    # refused.
    width = max(known, -(-columns // _WORD_BITS))
    words = np.zeros((len(guides), width), dtype=np.int32)
    start, step = words.ctypes.data, words.strides[0]
    for number, guide in enumerate(guides):
        guide.fill_mask(start + number * step)
    packed = ~words.view(np.uint8)
    if device.type != "cuda":
        # On a CPU, each bit becomes a byte 0 or 1, because an array of bool has one byte for each
        # value.
        bits = np.unpackbits(packed, axis=1, count=columns, bitorder="little")
        return torch.from_numpy(bits.view(np.bool_)).to(device)
    # Only one bit for each token is copied to a GPU, which unpacks the bits itself.
    staged = torch.from_numpy(packed).pin_memory().to(device, non_blocking=True)
    unpacked = staged[:, :, None] >> torch.arange(8, dtype=torch.uint8, device=device) & 1
    return unpacked.flatten(1)[:, :columns].bool()


def _tokenizer(family: Family, vocabulary: int) -> LLTokenizer:
    """Return the tokenizer of *family* in the form of llguidance."""
    from llguidance.hf import from_tokenizer

    tokenizer = cast("PreTrainedTokenizerFast", family.tokenizer)
    return from_tokenizer(tokenizer, n_vocab=vocabulary, eos_token=sorted(family.stop_ids))
