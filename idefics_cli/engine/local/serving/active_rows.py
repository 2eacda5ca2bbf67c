"""The replies that are being generated, and their rows in the batch of the model."""

from __future__ import annotations

import time
from collections.abc import Sequence

from transformers import DynamicCache

from idefics_cli.engine.local.decode.batch_decoder import BatchDecoder
from idefics_cli.engine.local.decode.batch_row import BatchRow
from idefics_cli.engine.local.decode.sampling import banned_of
from idefics_cli.engine.local.decode.slots import Slots, rows_to_keep
from idefics_cli.engine.local.decode.steps import PlainStep, SlotStep
from idefics_cli.engine.local.inference import Inference
from idefics_cli.engine.local.kv_budget import BufferSize
from idefics_cli.engine.local.serving.prompt_run import PromptRun
from idefics_cli.engine.local.serving.requests import OpenRequest
from idefics_cli.models.families.base import PrefixKey
from idefics_cli.models.families.kv_cache import cache_bytes


class ActiveRows:
    """Gives each active reply its next token. The inference thread owns it.

    In slots, each row has its own length, and a reply can start or end at any time. A model that
    cannot decode in slots gets padded rows: a group starts only when no other group is active.

    Args:
        inference: Runs the model.
    """

    def __init__(self, inference: Inference) -> None:
        self._inference = inference
        self._requests: list[OpenRequest] = []
        # The prefix keys of the prompts whose conversations are kept.
        self._keys: dict[OpenRequest, Sequence[PrefixKey]] = {}
        self._decoder: BatchDecoder | None = None
        self._slots: Slots | None = None
        # The KV cache of a reply that is decoded alone, without slots.
        self._cache: DynamicCache | None = None

    def __len__(self) -> int:
        return len(self._requests)

    @property
    def requests(self) -> Sequence[OpenRequest]:
        """The requests of the active replies, in the order of their rows."""
        return self._requests

    @property
    def held_bytes(self) -> int:
        """Number of bytes of the KV states."""
        caches = [self._slots.cache if self._slots is not None else None, self._cache]
        return sum(cache_bytes(cache) for cache in caches if cache is not None)

    def admit(self, run: PromptRun, size: BufferSize) -> None:
        """Add the requests of *run*, whose prefill is complete.

        Args:
            run: A complete run; it is empty afterwards.
            size: Size of the buffers of slots.
        """
        if run.prompt is None:
            raise RuntimeError("the prompts are not computed yet")
        if self._inference.slots_problem is not None:
            self._admit_padded(run)
        else:
            self._admit_to_slots(run, size)
        self._requests += run.requests
        for request in run.requests:
            if run.keys:
                self._keys[request] = run.keys

    def shrink_to(self, size: BufferSize) -> None:
        """Shrink the buffers of slots to *size* if they are, or would become, too large."""
        slots = self._slots
        if slots is None:
            return
        slots.most_tokens = size.capacity
        # Buffers that are smaller than `size.capacity` will grow to it, so the larger capacity
        # counts.
        if slots.rows * max(slots.capacity, size.capacity) > size.most_states:
            slots.resize(min(slots.rows, size.rows), min(slots.capacity, size.capacity))

    def advance(self) -> None:
        """Give every active reply a token."""
        if self._decoder is None:
            raise RuntimeError("no reply is active")
        started = time.perf_counter()
        self._decoder.advance(self._rows)
        seconds = time.perf_counter() - started
        for request in self._requests:
            share = len(self._requests) if request.lane.shares_seconds else 1
            request.decode_seconds += seconds / share

    def drop_ended(self) -> list[OpenRequest]:
        """Remove the replies that have ended, and return their requests."""
        kept = rows_to_keep([row.finish is not None for row in self._rows])
        if len(kept) == len(self._requests) or self._decoder is None:
            return []
        ended = [(at, each) for at, each in enumerate(self._requests) if each.reply.finish]
        for at, request in ended:
            self._keep_conversation(at, request)
        if kept:
            self._decoder.keep_rows(kept)
        self._requests = [self._requests[index] for index in kept]
        if not self._requests:
            self.forget()
        return [request for _, request in ended]

    def take_back(self) -> list[OpenRequest]:
        """Remove all replies and their KV states, and return their requests."""
        requests = self._requests
        self.forget()
        return requests

    def forget(self) -> None:
        """Remove all replies and release the buffers that hold their states."""
        self._requests, self._keys = [], {}
        self._decoder = self._slots = self._cache = None

    @property
    def _rows(self) -> list[BatchRow]:
        return [request.reply for request in self._requests]

    def _admit_to_slots(self, run: PromptRun, size: BufferSize) -> None:
        inference = self._inference
        loaded, prompt = inference.loaded, run.prompt
        assert prompt is not None
        if self._decoder is None or self._slots is None:
            self._slots = inference.take_slots(size.rows, most_states=size.most_states)
            step = SlotStep(loaded, self._slots, graphs=inference.graphs)
            banned = banned_of(loaded.family, loaded.model.device)
            self._decoder = BatchDecoder(step, banned)
        elif size.rows > self._slots.rows:
            has_room = size.rows * self._slots.capacity <= size.most_states
            self._slots.resize(size.rows, self._slots.capacity if has_room else size.capacity)
        self._slots.most_tokens = size.capacity
        # If the next step was started ahead, it has scores for the old rows only. So these scores
        # are read before the new row is added.
        self._decoder.settle(self._rows)
        extra = loaded.family.next_inputs(prompt.inputs, prompt.image_features)
        lengths = prompt.lengths
        self._slots.admit_rows(run.cache, lengths, extra, shared=run.shared, releases=True)

    def _admit_padded(self, run: PromptRun) -> None:
        loaded, prompt = self._inference.loaded, run.prompt
        assert prompt is not None
        step = PlainStep(loaded.model, loaded.family, prompt, run.cache)
        self._decoder = BatchDecoder(step, banned_of(loaded.family, loaded.model.device))
        self._cache = run.cache

    def _keep_conversation(self, at: int, request: OpenRequest) -> None:
        """Keep the KV states of row *at* for a later prompt that continues the conversation."""
        prompt_keys = self._keys.pop(request, None)
        if prompt_keys is None:
            return
        prompt = len(request.reply.prompt)
        keys = [*prompt_keys[:prompt], *request.reply.tokens]
        cache = self._cache
        if self._slots is not None:
            # A step that runs ahead gives the slot one state too many. If no step ran ahead, the
            # last token of the reply may have no state yet. So the smaller of both lengths counts.
            length = min(self._slots.lengths[at], len(keys))
            cache = self._slots.copy_row(at, length)
        if cache is not None:
            self._inference.prefix.keep_prefix(keys, cache)
