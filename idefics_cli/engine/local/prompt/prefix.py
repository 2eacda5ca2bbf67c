"""The KV states of earlier conversations, for prompts that begin with the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import DynamicCache

from idefics_cli.models.families.base import PrefixKey
from idefics_cli.models.families.kv_cache import cache_bytes, growing_cache


@dataclass(frozen=True, slots=True)
class _Conversation:
    """A prompt with its reply: the key of each token, and its KV states.

    Attributes:
        keys: The key of each token.
        cache: The KV states.
        size_bytes: Number of bytes of the states.
    """

    keys: tuple[PrefixKey, ...]
    cache: DynamicCache
    size_bytes: int

    def begins_with(self, keys: tuple[PrefixKey, ...]) -> bool:
        """Whether the first keys are *keys*."""
        # The last key is compared first, because most conversations differ there. They then need no
        # comparison of slices, which would copy the keys.
        count = len(keys)
        return (
            len(self.keys) >= count
            and self.keys[count - 1] == keys[-1]
            and (self.keys[:count] == keys)
        )


class PrefixStore:
    """Keeps the KV states of conversations, and drops the least recently used one first.

    See `kv_budget.py` for what KV states are.

    A new prompt reuses the states of the longest run of keys (`Family.prefix_keys`: token ids, and
    the content of pictures) with which it and a kept conversation begin. So states are also reused
    after a turn was undone, asked again or edited, and when many conversations alternate. They are
    not reused

    - for a token whose key, or any key before it, differs;
    - for the last token of a prompt, because its output gives the first token of the reply;
    - for prompts that are computed together with others: see `shared.py`;
    - after an error in the middle of a forward, when the states are unknown.

    The same weights computed the reused states from the same tokens at the same positions. The
    results are equal except for rounding, as when the rows of a batch are computed together:
    greedy replies in float32 do not change; in half precision a tie may be broken differently.

    Args:
        max_bytes: Maximum number of bytes of all states. The newest conversation is kept even if
            it is larger.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        # The least recently used conversation comes first.
        self._conversations: list[_Conversation] = []

    def __len__(self) -> int:
        """Return the number of conversations."""
        return len(self._conversations)

    @property
    def held_bytes(self) -> int:
        """Number of bytes of all states."""
        return sum(each.size_bytes for each in self._conversations)

    def take_prefix(self, keys: Sequence[PrefixKey]) -> tuple[DynamicCache, int]:
        """Return a cache for a prompt of *keys*, and the number of tokens that it holds.

        The cache belongs to the caller. If the prompt continues a whole conversation, the states
        leave the store, and `keep_prefix` adds them again with the reply. If it shares only the
        beginning, that part is copied.
        """
        usable = tuple(keys[:-1])
        counts = [_shared_count(each.keys, usable) for each in self._conversations]
        shared = max(counts, default=0)
        if not shared:
            return growing_cache(), 0
        # If several conversations share the same number of tokens, the newest is used.
        index = len(counts) - 1 - counts[::-1].index(shared)
        found = self._conversations.pop(index)
        if len(found.keys) == shared:
            return found.cache, shared
        self._conversations.append(found)
        return _copy_of_start(found.cache, shared), shared

    def copy_prefix(self, keys: Sequence[PrefixKey]) -> DynamicCache:
        """Return a copy of the states of the longest beginning of *keys* that is kept."""
        counts = [_shared_count(each.keys, tuple(keys)) for each in self._conversations]
        shared = max(counts, default=0)
        if not shared:
            return growing_cache()
        return _copy_of_start(self._conversations[counts.index(shared)].cache, shared)

    def keep_prefix(self, keys: Sequence[PrefixKey], cache: DynamicCache) -> None:
        """Keep *cache*, which holds the states of *keys*, or of the first of them."""
        length = cache.get_seq_length()
        if not length or length > len(keys):
            return
        kept = tuple(keys[:length])
        # These states are not kept if a longer conversation already has all of them.
        if any(each.begins_with(kept) for each in self._conversations):
            return
        new = _Conversation(kept, cache, cache_bytes(cache))
        others = [each for each in self._conversations if not new.begins_with(each.keys)]
        self._conversations = [*others, new]
        self.shrink_to(self._max_bytes)

    def shrink_to(self, max_bytes: int, *, at_least: int = 1) -> None:
        """Drop old conversations until the states take up to *max_bytes*.

        Args:
            max_bytes: Number of bytes.
            at_least: Number of conversations that stay, however large they are.
        """
        while len(self) > at_least and self.held_bytes > max_bytes:
            self._conversations.pop(0)

    def drop(self) -> None:
        """Drop all states."""
        self._conversations = []


def _copy_of_start(cache: DynamicCache, count: int) -> DynamicCache:
    copy = growing_cache()
    for index, layer in enumerate(cache.layers):
        copy.update(layer.keys[:, :, :count], layer.values[:, :, :count], index)
    return copy


def _shared_count(one: tuple[PrefixKey, ...], other: tuple[PrefixKey, ...]) -> int:
    """Return the number of equal keys with which *one* and *other* begin."""
    low, high = 0, min(len(one), len(other))
    if not high or one[0] != other[0]:
        return 0
    # This is a binary search, because comparing slices is much faster than comparing key by key.
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low
