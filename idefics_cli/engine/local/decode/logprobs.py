"""Logarithms of the probabilities of tokens, and the text and the bytes of single tokens."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache

from torch import Tensor

from idefics_cli.core.logprobs import TokenLogprob
from idefics_cli.engine.local.decode.batch_row import BatchRow, IdLogprob
from idefics_cli.engine.local.transfer import to_device
from idefics_cli.models.families.base import Family

LEAST_LOGPROB = -9999.0
"""Stands for a token that cannot come next, as in the API of OpenAI."""

_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")


class NextLogprobs:
    """The probabilities of the next tokens of some rows, as the model gives them.

    Args:
        scores: The logits (B, V) in float32; they are copied.
        places: The rows that are needed.
        banned: Ids that no reply may contain.
    """

    def __init__(self, scores: Tensor, places: Sequence[int], banned: Tensor) -> None:
        wanted = scores[to_device(places, scores.device)]
        logs = wanted.index_fill_(1, banned, float("-inf")).log_softmax(-1)
        self._logs = dict(zip(places, logs, strict=True))

    def of(self, place: int, row: BatchRow, token: int) -> IdLogprob | None:
        """Return the probability of *token*, the next of *row*, or None if *row* does not ask."""
        count, logs = row.sampling.top_logprobs, self._logs.get(place)
        if count is None or logs is None:
            return None
        values, ids = logs.topk(min(count, len(logs)))
        pairs = zip(ids.tolist(), map(_bounded, values.tolist()), strict=True)
        return IdLogprob(_bounded(float(logs[token])), tuple(pairs))


def token_logprobs(family: Family, row: BatchRow, start: int) -> Iterator[TokenLogprob]:
    """Yield the probabilities of the tokens of *row* from number *start*, without an end token."""
    for token, known in zip(row.tokens[start:], row.logprobs[start:], strict=False):
        if token not in row.stop_ids:
            top = tuple(_told(family, each, logprob) for each, logprob in known.top)
            yield _told(family, token, known.logprob, top)


def token_text(family: Family, token: int) -> tuple[str, bytes]:
    """Return the text of one token, and its bytes, which may be a part of a character."""
    tokenizer = family.tokenizer
    # Some decoders drop the space before the first word, so the token gets a word before it.
    (*before,) = tokenizer("a", add_special_tokens=False)["input_ids"]
    lead, whole = (
        tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False)
        for ids in (before, [*before, token])
    )
    text = whole.removeprefix(lead)
    if "\ufffd" not in text:
        return text, text.encode()
    piece = tokenizer.convert_ids_to_tokens(token)
    if (found := _BYTE.fullmatch(piece)) is not None:
        return text, bytes([int(found[1], 16)])
    table = _bytes_of_characters()
    if all(character in table for character in piece):
        return text, bytes(table[character] for character in piece)
    return text, text.encode()


def _told(
    family: Family, token: int, logprob: float, top: tuple[TokenLogprob, ...] = ()
) -> TokenLogprob:
    text, data = token_text(family, token)
    return TokenLogprob(text, data, logprob, top)


def _bounded(logprob: float) -> float:
    return max(logprob, LEAST_LOGPROB)


@lru_cache(maxsize=1)
def _bytes_of_characters() -> Mapping[str, int]:
    """Return the byte of each character with which GPT-2 writes it (encoder.py of GPT-2).

    Bytes that are no printable characters of Latin-1 are written as those from U+0100.
    """
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in plain]
    table = {chr(byte): byte for byte in plain}
    return table | {chr(0x100 + at): byte for at, byte in enumerate(others)}
