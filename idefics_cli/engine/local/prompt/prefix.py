"""The KV states of earlier conversations, for prompts that begin with the same tokens."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import TypeAlias

from transformers import DynamicCache

from idefics_cli.models.families.base import PrefixKey
from idefics_cli.models.families.kv_cache import cache_bytes, growing_cache

Keys: TypeAlias = tuple[bytes, ...]
"""The prefix keys of successive tokens. All are bytes, so that they have an order."""


@dataclass(frozen=True, slots=True)
class _Conversation:
    """The KV states of a prompt with its reply.

    Attributes:
        cache: The KV states.
        size_bytes: Number of bytes of the states.
    """

    cache: DynamicCache
    size_bytes: int


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
        self._conversations: dict[Keys, _Conversation] = {}
        # The keys of all conversations in order. The conversations that share the most keys with
        # a prompt are its neighbours here, so a server finds them among thousands at once. No
        # conversation is the beginning of another one.
        self._in_order: list[Keys] = []
        self._held_bytes = 0

    def __len__(self) -> int:
        """Return the number of conversations."""
        return len(self._conversations)

    @property
    def held_bytes(self) -> int:
        """Number of bytes of all states."""
        return self._held_bytes

    def take_prefix(self, keys: Sequence[PrefixKey]) -> tuple[DynamicCache, int]:
        """Return a cache for a prompt of *keys*, and the number of tokens that it holds.

        The cache belongs to the caller. If the prompt continues a whole conversation, the states
        leave the store, and `keep_prefix` adds them again with the reply. If it shares only the
        beginning, that part is copied.
        """
        found, shared = self._find(_ordered(keys[:-1]))
        if not shared:
            return growing_cache(), 0
        conversation = self._remove(found)
        if len(found) == shared:
            return conversation.cache, shared
        self._add(found, conversation)
        return _copy_of_start(conversation.cache, shared), shared

    def copy_prefix(self, keys: Sequence[PrefixKey]) -> DynamicCache:
        """Return a copy of the states of the longest beginning of *keys* that is kept."""
        found, shared = self._find(_ordered(keys))
        if not shared:
            return growing_cache()
        return _copy_of_start(self._conversations[found].cache, shared)

    def keep_prefix(self, keys: Sequence[PrefixKey], cache: DynamicCache) -> None:
        """Keep *cache*, which holds the states of *keys*, or of the first of them."""
        length = cache.get_seq_length()
        if not length or length > len(keys):
            return
        kept = _ordered(keys[:length])
        at = bisect_left(self._in_order, kept)
        # These states are not kept if a longer conversation already has all of them.
        if any(each[:length] == kept for each in self._in_order[at : at + 1]):
            return
        # What begins as a conversation follows it in the order, so only the one before can be a
        # beginning of this one.
        for before in self._in_order[max(0, at - 1) : at]:
            if kept[: len(before)] == before:
                self._remove(before)
        self._add(kept, _Conversation(cache, cache_bytes(cache)))
        self.shrink_to(self._max_bytes)

    def shrink_to(self, max_bytes: int, *, at_least: int = 1) -> None:
        """Drop old conversations until the states take up to *max_bytes*.

        Args:
            max_bytes: Number of bytes.
            at_least: Number of conversations that stay, however large they are.
        """
        while len(self) > at_least and self.held_bytes > max_bytes:
            self._remove(next(iter(self._conversations)))

    def drop(self) -> None:
        """Drop all states."""
        self._conversations, self._in_order, self._held_bytes = {}, [], 0

    def _find(self, keys: Keys) -> tuple[Keys, int]:
        """Return the keys of a conversation that shares the most with *keys*, and how many."""
        at = bisect_left(self._in_order, keys)
        near = [
            (each, _shared_count(each, keys)) for each in self._in_order[max(0, at - 1) : at + 1]
        ]
        return max(near, key=itemgetter(1), default=((), 0))

    def _add(self, keys: Keys, conversation: _Conversation) -> None:
        self._conversations[keys] = conversation
        insort(self._in_order, keys)
        self._held_bytes += conversation.size_bytes

    def _remove(self, keys: Keys) -> _Conversation:
        conversation = self._conversations.pop(keys)
        del self._in_order[bisect_left(self._in_order, keys)]
        self._held_bytes -= conversation.size_bytes
        return conversation


def _ordered(keys: Sequence[PrefixKey]) -> Keys:
    # A digest has more than 8 bytes, so no id is taken for one.
    return tuple(key if isinstance(key, bytes) else key.to_bytes(8, "big") for key in keys)


def _copy_of_start(cache: DynamicCache, count: int) -> DynamicCache:
    copy = growing_cache()
    for index, layer in enumerate(cache.layers):
        copy.update(layer.keys[:, :, :count], layer.values[:, :, :count], index)
    return copy


def _shared_count(one: Keys, other: Keys) -> int:
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
