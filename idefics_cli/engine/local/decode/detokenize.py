"""A detokenizer for streams: it turns token ids into text as they arrive, in whole characters."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol


class TokenDecoder(Protocol):
    """The part of a tokenizer that `Detokenizer` uses."""

    def decode(
        self,
        token_ids: Sequence[int],
        *,
        skip_special_tokens: bool,
        clean_up_tokenization_spaces: bool,
    ) -> str:
        """Return the text of *token_ids*."""
        ...


class Detokenizer:
    """Returns the text of a growing reply in pieces, which join to the text of the whole reply.

    Args:
        tokenizer: Decodes ids.
        strip: Whether to remove white space around the reply. Chat formats put a space before it.
        hidden: The ids that the text leaves out; None leaves out all special tokens.
    """

    def __init__(
        self, tokenizer: TokenDecoder, *, strip: bool, hidden: Collection[int] | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._hidden = hidden
        self._strip = strip
        self._start = 0
        self._read = 0
        self._held = ""
        self._has_text = False

    def whole(self, tokens: Sequence[int]) -> str:
        """Return the text of a complete reply, equal to its streamed pieces joined.

        One decode of all tokens gives the same text, except for bytes that are not UTF-8. These
        are fed token by token, because a SentencePiece decoder replaces or accepts a run of bytes
        as a whole, and a stream cannot wait for the end of the run.
        """
        text = self._decode(tokens)
        if "\ufffd" not in text:
            return text.strip() if self._strip else text
        ends = range(1, len(tokens) + 1)
        return "".join(self.feed(tokens[:n], last=n == len(tokens)) for n in ends)

    def feed(self, tokens: Sequence[int], *, last: bool = False) -> str:
        """Return the new text of *tokens*, which are all tokens so far.

        Args:
            tokens: Ids of the reply. Each call passes all ids of the call before, and new ones.
            last: Whether no token follows, so that text that was held back is returned.
        """
        before = self._decode(tokens[self._start : self._read])
        after = self._decode(tokens[self._start :])
        # A replacement character at the end may stand for a character with bytes still to come.
        if not last and (after.endswith("\ufffd") or len(after) <= len(before)):
            return ""
        # The next call decodes the tokens of this text again as context, because some decoders drop
        # the space before the first word. Decoding starts only where the text of a call started:
        # elsewhere it could start inside a character, and a SentencePiece decoder would then reject
        # the whole run of bytes.
        self._start = self._read
        self._read = len(tokens)
        return self._stripped(after[len(before) :], last=last)

    def _decode(self, tokens: Sequence[int]) -> str:
        hidden = self._hidden
        if hidden is not None:
            tokens = [token for token in tokens if token not in hidden]
        if not tokens:
            return ""
        # Clean-up would remove the space before a full stop, but that space may already have been
        # returned.
        return self._tokenizer.decode(
            tokens,
            skip_special_tokens=hidden is None,
            clean_up_tokenization_spaces=False,
        )

    def _stripped(self, text: str, *, last: bool) -> str:
        if not self._strip:
            return text
        text = self._held + text
        if not self._has_text:
            text = text.lstrip()
        kept = text.rstrip()
        # White space at the end is held back until text follows it.
        self._held = "" if last else text[len(kept) :]
        self._has_text = self._has_text or bool(kept)
        return kept
