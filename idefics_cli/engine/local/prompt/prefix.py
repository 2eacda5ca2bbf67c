"""The KV cache of the last conversation, for the next turn of it."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import DynamicCache

from idefics_cli.models.families.base import PrefixKey
from idefics_cli.models.families.kv_cache import growing_cache


class PrefixCache:
    """Keeps the states of one prompt and its reply, and gives out what a new prompt shares.

    States are reused for the longest run of keys (`Family.prefix_keys`: ids, and the content of
    pictures) with which both prompts begin, so also after a turn was taken back, asked again or
    edited. They are not reused

    - for a token whose id or picture, or any before it, is another;
    - for the last token of a prompt, whose output chooses the reply's first;
    - for batches of several prompts, whose rows are padded: those go by without a trace;
    - after an error in the middle of a forward, when nothing is known of the states;
    - if the cache does not have the length that it was cropped to.

    What is reused was computed by the same weights from the same tokens at the same positions.
    The results are equal but for rounding, as when the rows of a batch are computed together:
    in float32 greedy replies do not change, in half precision a tie may fall the other way.
    """

    def __init__(self) -> None:
        self._keys: list[PrefixKey] = []
        self._cache: DynamicCache | None = None

    def __bool__(self) -> bool:
        return self._cache is not None

    def take_prefix(self, keys: Sequence[PrefixKey]) -> tuple[DynamicCache, int]:
        """Return a cache for a prompt of *keys*, and how many of its tokens that holds.

        What was kept is given away: `keep_prefix` gives it back after the reply.
        """
        cache, kept = self._cache, self._keys
        self.drop()
        shared = _shared(kept, keys[:-1])
        if cache is None or not shared:
            return growing_cache(), 0
        if len(kept) > shared:
            # The number of states to remove; transformers 5.18 and later know no other way.
            cache.crop(shared - len(kept))
        if cache.get_seq_length() != shared:
            return growing_cache(), 0
        return cache, shared

    def keep_prefix(self, keys: Sequence[PrefixKey], cache: DynamicCache) -> None:
        """Keep *cache*, which holds the states of the first of *keys*."""
        length = cache.get_seq_length()
        self._keys = list(keys[:length])
        self._cache = cache if length == len(self._keys) and length else None

    def drop(self) -> None:
        """Forget what was kept."""
        self._keys, self._cache = [], None


def _shared(one: Sequence[PrefixKey], other: Sequence[PrefixKey]) -> int:
    """Return how many keys are equal from the beginning."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
