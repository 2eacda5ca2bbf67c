"""Text from token ids while they arrive: no half characters, no second pass."""

from __future__ import annotations

from collections.abc import Sequence
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
    """Gives the text of a growing reply in pieces that join to the text of the whole.

    Args:
        tokenizer: Decodes ids; special tokens are left out.
        strip: Leave out white space around the reply, because chat formats put a space before it.
    """

    def __init__(self, tokenizer: TokenDecoder, *, strip: bool) -> None:
        self._tokenizer = tokenizer
        self._strip = strip
        self._start = 0
        self._read = 0
        self._held = ""
        self._has_text = False

    def whole(self, tokens: Sequence[int]) -> str:
        """Return the text of a complete reply, equal to its streamed pieces joined.

        One decode of all tokens gives the same text, except for bytes that are not UTF-8: there,
        SentencePiece decoders judge a whole run of bytes, and a stream cannot wait for its end.
        """
        text = self._decode(tokens)
        if "\ufffd" not in text:
            return text.strip() if self._strip else text
        ends = range(1, len(tokens) + 1)
        return "".join(self.feed(tokens[:n], last=n == len(tokens)) for n in ends)

    def feed(self, tokens: Sequence[int], *, last: bool = False) -> str:
        """Return the new text of *tokens*, which are all tokens so far.

        Args:
            tokens: Ids of the reply; each call passes those of the call before, and more.
            last: No token follows, so text that was held back is returned.
        """
        before = self._decode(tokens[self._start : self._read])
        after = self._decode(tokens[self._start :])
        # A replacement character at the end may be a character whose bytes are incomplete.
        if not last and (after.endswith("\ufffd") or len(after) <= len(before)):
            return ""
        # The last piece stays as context, for word marks. A window that starts anywhere else may
        # start inside a character, and a SentencePiece decoder then rejects the whole run of bytes.
        self._start = self._read
        self._read = len(tokens)
        return self._stripped(after[len(before) :], last=last)

    def _decode(self, tokens: Sequence[int]) -> str:
        if not tokens:
            return ""
        # Clean-up removes the space before a full stop, which may have been returned already.
        return self._tokenizer.decode(
            tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False
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
