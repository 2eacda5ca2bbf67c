"""The KV states of earlier conversations, for prompts that begin with the same tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from transformers import DynamicCache

from idefics_cli.models.families.base import PrefixKey
from idefics_cli.models.families.kv_cache import cache_bytes, growing_cache


@dataclass(frozen=True, slots=True)
class _Conversation:
    """A prompt with its reply: the key of each token, and its KV states."""

    keys: tuple[PrefixKey, ...]
    cache: DynamicCache


class PrefixStore:
    """Keeps the KV states of conversations, and drops the least recently used one first.

    See `kv_budget.py` for what KV states are.

    A new prompt reuses the states of the longest run of keys (`Family.prefix_keys`: token ids, and
    the content of pictures) with which it and a kept conversation begin. So states are also reused
    after a turn was undone, asked again or edited, and when many conversations alternate. They are
    not reused

    - for a token whose key, or any key before it, differs;
    - for the last token of a prompt, because its output gives the first token of the reply;
    - for prompts that are computed together with others, because their rows are padded;
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
        return sum(cache_bytes(each.cache) for each in self._conversations)

    def take_prefix(self, keys: Sequence[PrefixKey]) -> tuple[DynamicCache, int]:
        """Return a cache for a prompt of *keys*, and the number of tokens that it holds.

        The cache belongs to the caller. If the prompt continues a whole conversation, the states
        leave the store, and `keep_prefix` adds them again with the reply. If it shares only the
        beginning, that part is copied.
        """
        usable = keys[:-1]
        counts = [_shared_count(each.keys, usable) for each in self._conversations]
        shared = max(counts, default=0)
        if not shared:
            return growing_cache(), 0
        # Of several conversations that share as many tokens, the newest is taken.
        index = len(counts) - 1 - counts[::-1].index(shared)
        found = self._conversations.pop(index)
        if len(found.keys) == shared:
            return found.cache, shared
        self._conversations.append(found)
        return _copy_of_start(found.cache, shared), shared

    def keep_prefix(self, keys: Sequence[PrefixKey], cache: DynamicCache) -> None:
        """Keep *cache*, which holds the states of *keys*, or of the first of them."""
        length = cache.get_seq_length()
        if not length or length > len(keys):
            return
        kept = tuple(keys[:length])
        # A longer conversation already has all these states.
        if any(each.keys[:length] == kept for each in self._conversations):
            return
        others = [each for each in self._conversations if kept[: len(each.keys)] != each.keys]
        self._conversations = [*others, _Conversation(kept, cache)]
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


def _shared_count(one: Sequence[PrefixKey], other: Sequence[PrefixKey]) -> int:
    """Return the number of equal keys with which *one* and *other* begin."""
    count = 0
    for a, b in zip(one, other, strict=False):
        if a != b:
            break
        count += 1
    return count
