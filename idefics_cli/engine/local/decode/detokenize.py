"""A detokenizer for streams: it turns token ids into text as they arrive, in whole characters."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from idefics_cli.core.types import GenerationRequest
from idefics_cli.models.families.base import Family


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
        stops: Texts before which the reply ends.

    Attributes:
        has_stopped: Whether one of *stops* was found. It and all after it are left out.
    """

    def __init__(
        self,
        tokenizer: TokenDecoder,
        *,
        strip: bool,
        hidden: Collection[int] | None = None,
        stops: Sequence[str] = (),
    ) -> None:
        self._tokenizer = tokenizer
        self._hidden = hidden
        self._strip = strip
        self._stops = stops
        self.has_stopped = False
        self._start = 0
        self._read = 0
        self._held = ""
        self._has_text = False

    def whole(self, tokens: Sequence[int]) -> str:
        """Return the text of a complete reply, equal to its streamed pieces joined.

        One decode of all tokens gives the same text, except for bytes that are not UTF-8. These
        are fed token by token, because a SentencePiece decoder replaces or accepts a run of bytes
        as a whole, and a stream cannot wait for the end of the run. With *stops*, all tokens are
        fed one by one, because the stop that is complete first counts.
        """
        text = self._decode(tokens)
        if "\ufffd" not in text and not self._stops:
            return text.strip() if self._strip else text
        ends = range(1, len(tokens) + 1)
        return "".join(self.feed(tokens[:n], last=n == len(tokens)) for n in ends)

    def feed(self, tokens: Sequence[int], *, last: bool = False) -> str:
        """Return the new text of *tokens*, which are all tokens so far.

        Args:
            tokens: Ids of the reply. Each call passes all ids of the call before, and new ones.
            last: Whether no token follows, so that text that was held back is returned.
        """
        if not last and len(tokens) == self._read:
            return ""
        before = self._decode(tokens[self._start : self._read])
        after = self._decode(tokens[self._start :])
        # A replacement character at the end may stand for a character with bytes still to come.
        if not last and (after.endswith("\ufffd") or len(after) <= len(before)):
            return ""
        # The next call decodes the tokens of this text again as context, because some decoders drop
        # the space before the first word. The context starts where the text of an earlier call
        # started, so it never starts inside a character: a SentencePiece decoder would reject such
        # bytes.
        self._start = self._read
        self._read = len(tokens)
        return self._released(after[len(before) :], last=last)

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

    def _released(self, text: str, *, last: bool) -> str:
        """Return what is certain of the text that was held back and *text*, which follows it."""
        if self.has_stopped:
            return ""
        text = self._held + text
        if self._strip and not self._has_text:
            text = text.lstrip()
        kept = self._before_stop(text, last=last)
        # White space at the end is held back until text follows it.
        kept = kept.rstrip() if self._strip else kept
        self._held = "" if last else text[len(kept) :]
        self._has_text = self._has_text or bool(kept)
        return kept

    def _before_stop(self, text: str, *, last: bool) -> str:
        """Return *text* up to the first stop, or up to what may become a stop with more text."""
        places = [at for stop in self._stops if (at := text.find(stop)) >= 0]
        if places:
            self.has_stopped = True
            return text[: min(places)]
        if last or not self._stops:
            return text
        longest = max(map(len, self._stops)) - 1
        starts = range(max(0, len(text) - longest), len(text))
        return next((text[:at] for at in starts if self._begins_stop(text[at:])), text)

    def _begins_stop(self, text: str) -> bool:
        return any(stop.startswith(text) for stop in self._stops)


def detokenizer_of(family: Family, request: GenerationRequest) -> Detokenizer:
    """Return a detokenizer for the reply of a model of *family* to *request*."""
    # A completion continues the text of the prompt, so its white space matters.
    return Detokenizer(
        family.tokenizer,
        strip=request.mode == "chat",
        hidden=family.hidden_ids,
        stops=request.sampling.stop,
    )
