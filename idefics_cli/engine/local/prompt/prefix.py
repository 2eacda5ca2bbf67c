"""The prefix cache: it keeps the KV cache of one request, for later prompts that begin alike."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import DynamicCache

from idefics_cli.models.families.base import PrefixKey
from idefics_cli.models.families.kv_cache import growing_cache


class PrefixCache:
    """Keeps the KV states of one prompt and its reply, for later prompts that begin alike.

    Each token has a key (`Family.prefix_keys`): its id, or the content of its picture. A new prompt
    reuses the states of the longest run of equal keys with which both prompts begin. So states are
    also reused after a turn was undone, asked again or edited. They are not reused in these cases:

    - for a token whose key, or any key before it, differs;
    - for the last token of a prompt, because its output gives the first token of the reply;
    - for batches of several prompts, whose rows are padded; a batch leaves this cache as it is;
    - after an error in the middle of a forward, when the states are unknown;
    - if the cache does not have the length to which it was cropped.

    The same weights computed the reused states from the same tokens at the same positions, so the
    results are equal except for rounding. Greedy replies in float32 do not change. In half
    precision, a tie between two tokens may be broken differently.
    """

    def __init__(self) -> None:
        self._keys: list[PrefixKey] = []
        self._cache: DynamicCache | None = None

    def __len__(self) -> int:
        """Return the number of tokens whose states are kept."""
        return len(self._keys)

    @property
    def cache(self) -> DynamicCache | None:
        """The KV cache that is kept."""
        return self._cache

    def take_prefix(self, keys: Sequence[PrefixKey]) -> tuple[DynamicCache, int]:
        """Return a cache for a prompt of *keys*, and the number of tokens that it holds.

        The caller owns the returned cache, and may give it back to `keep_prefix` after the reply.
        """
        cache, kept = self._cache, self._keys
        self.drop()
        shared = _shared_count(kept, keys[:-1])
        if cache is None or not shared:
            return growing_cache(), 0
        if len(kept) > shared:
            # The argument is negative: the number of states to remove. transformers 5.18 and later
            # accept no other form.
            cache.crop(shared - len(kept))
        if cache.get_seq_length() != shared:
            return growing_cache(), 0
        return cache, shared

    def keep_prefix(self, keys: Sequence[PrefixKey], cache: DynamicCache) -> None:
        """Keep *cache*, which holds the states of *keys*, or of the first of them."""
        length = cache.get_seq_length()
        if length and length <= len(keys):
            self._keys, self._cache = list(keys[:length]), cache
        else:
            self.drop()

    def drop(self) -> None:
        """Drop the kept states."""
        self._keys, self._cache = [], None


def _shared_count(one: Sequence[PrefixKey], other: Sequence[PrefixKey]) -> int:
    """Return the number of equal keys with which *one* and *other* begin."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
