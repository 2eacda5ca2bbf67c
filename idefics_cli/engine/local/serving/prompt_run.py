"""The start of a group of requests: their pictures are encoded, then their prompts prefilled."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from hashlib import sha256

import torch
from torch import Tensor
from transformers import DynamicCache

from idefics_cli.engine.local.decode.sampling import Scores, banned_of
from idefics_cli.engine.local.inference import Inference
from idefics_cli.engine.local.prompt.prefill import Prompt, prefill_pieces
from idefics_cli.engine.local.prompt.scoring import score_answers
from idefics_cli.engine.local.prompt.shared import (
    FEWEST_SHARED,
    count_shared,
    join_after_shared,
    repeat_rows,
)
from idefics_cli.engine.local.serving.requests import OpenRequest
from idefics_cli.models.families.base import Inputs, PrefixKey
from idefics_cli.models.families.internals import exceeds_window
from idefics_cli.models.families.kv_cache import growing_cache
from idefics_cli.models.families.picture import PictureTensors

# Maximum number of waiting requests whose pictures are encoded with those of the next one. With the
# built-in model, a forward of four pictures takes twice the time of one; more pictures would gain
# little, and the next request waits for all of them.
_TOGETHER = 3


class PromptRun:
    """Computes the prompts of a group in pieces; between them, other replies get tokens.

    The inference thread owns it. A piece is one forward: some tiles, or some hundred tokens.

    Args:
        inference: Runs the model.
        requests: B requests of one lane. A request that was put back continues after the tokens
            that its reply has already.
        uses_prefix: Whether to reuse the states of an earlier conversation; for one request only.

    Attributes:
        requests: As given.
        cache: Holds the states of what was computed so far.
        prompt: The prompts on the device; None before the pictures are encoded.
        shared: Number of tokens that precede the padding in every row; see `shared.py`.
    """

    def __init__(
        self, inference: Inference, requests: Sequence[OpenRequest], *, uses_prefix: bool
    ) -> None:
        self.requests = requests
        self.cache: DynamicCache = growing_cache()
        self.prompt: Prompt | None = None
        self.shared = 0
        self._inference = inference
        self._uses_prefix = uses_prefix
        self._keys: list[PrefixKey] = []
        self._has_company = False
        self._pieces = self._run_pieces()

    @property
    def keys(self) -> Sequence[PrefixKey]:
        """The prefix keys of the only prompt; none if no states are to be reused."""
        return self._keys

    def advance(self, *, has_company: bool) -> bool:
        """Run the next piece; return whether it was the last, which gives each reply a token.

        Args:
            has_company: Whether an interactive request outside this run is running.
        """
        self._has_company = has_company
        started = time.perf_counter()
        is_done = False
        with torch.inference_mode():
            try:
                next(self._pieces)
            except StopIteration:
                is_done = True
        seconds = time.perf_counter() - started
        if has_company and not is_done and self.prompt is not None:
            self._inference.piece_size.learn_from(seconds)
        for request in self.requests:
            share = len(self.requests) if request.lane.shares_seconds else 1
            request.prefill_seconds += seconds / share
        return is_done

    def abandon(self) -> None:
        """Stop, and keep the computed KV states for a later prompt with the same beginning."""
        self._pieces.close()
        if self._keys:
            self._inference.prefix.keep_prefix(self._keys, self.cache)

    def release(self) -> None:
        """Free the states and the prompts, after an error."""
        self._pieces.close()
        self.cache, self.prompt = growing_cache(), None

    def _run_pieces(self) -> Generator[None, None, None]:
        loaded = self._inference.loaded
        # Pause before any work, so that a cancelled request costs no forward.
        yield
        features = yield from self._encode_pictures()
        self._take_prefix()
        yield from self._run_shared(features)
        inputs = join_after_shared(
            [request.inputs for request in self.requests],
            [request.reply.tokens for request in self.requests],
            loaded.family.pad_id,
            self.shared,
        )
        self.prompt = prompt = self._on_device(inputs, features, self.requests)
        logits = (yield from self._run_prompt(prompt, self.cache))[:, -1]
        self._score_choices(prompt, logits)
        scores = Scores(logits, banned_of(loaded.family, logits.device))
        scores.choose_tokens([request.reply for request in self.requests])

    def _run_prompt(self, prompt: Prompt, cache: DynamicCache) -> Generator[None, None, Tensor]:
        loaded = self._inference.loaded
        return prefill_pieces(
            loaded.model,
            loaded.family,
            prompt,
            cache,
            piece_tokens=self._piece_tokens,
            text_step=loaded.text_step,
        )

    def _score_choices(self, prompt: Prompt, logits: Tensor) -> None:
        """Score the answers of the requests that have choices, and end their replies."""
        loaded, rows = self._inference.loaded, [request.reply for request in self.requests]
        for answers in dict.fromkeys(tuple(row.answers) for row in rows if row.answers):
            logs = score_answers(loaded.model, loaded.family, prompt, self.cache, logits, answers)
            for row, row_logs in zip(rows, logs, strict=True):
                if tuple(row.answers) == answers:
                    row.answer_logs, row.finish = row_logs, "stop"

    def _run_shared(self, features: Mapping[bytes, Tensor]) -> Generator[None, None, None]:
        """Compute the beginning that the prompts of a batch share, for one row."""
        inference = self._inference
        loaded, first = inference.loaded, self.requests[0]
        if self._uses_prefix or exceeds_window(loaded.model, max(r.tokens for r in self.requests)):
            return
        rows = [self._keys_of(request) for request in self.requests]
        count = count_shared(rows)
        cache = inference.shared.copy_prefix(rows[0][:count])
        known = cache.get_seq_length()
        if len(rows) == 1:
            count = known  # nothing is shared in this batch, but with the one before it
        if count < FEWEST_SHARED:
            return
        if known < count:
            inputs = {name: tensor[:, :count] for name, tensor in first.inputs.items()}
            prompt = self._on_device(inputs, features, [first])
            yield from self._run_prompt(prompt, cache)
            inference.shared.keep_prefix(rows[0][:count], cache)
            yield
        self.cache, self.shared = repeat_rows(cache, len(rows)), count

    def _on_device(
        self, inputs: Inputs, features: Mapping[bytes, Tensor], requests: Sequence[OpenRequest]
    ) -> Prompt:
        loaded = self._inference.loaded
        pictures = [[features[p.digest] for p in r.prepared.pictures] for r in requests]
        device = loaded.model.device
        placed = loaded.family.place_features(loaded.model, pictures)
        lengths: list[int] = inputs["attention_mask"].sum(-1).tolist()
        on_device = {name: tensor.to(device) for name, tensor in inputs.items()}
        return Prompt(on_device, placed, lengths)

    def _keys_of(self, request: OpenRequest) -> list[PrefixKey]:
        family = self._inference.loaded.family
        keys = family.prefix_keys(request.reply.prompt, request.prepared.pictures)
        if salt := request.prepared.request.cache_salt:
            # KV states are reused from the first key on, so one other key is enough.
            keys[0] = sha256(f"{salt}\0{keys[0]!r}".encode("utf-8", "backslashreplace")).digest()
        return keys + list(request.reply.tokens)

    def _encode_pictures(self) -> Generator[None, None, Mapping[bytes, Tensor]]:
        """Return the features of all pictures by digest, on the model's device."""
        inference = self._inference
        loaded = inference.loaded
        pictures = [each.picture for request in self.requests for each in request.pictures]
        inference.look_ahead.finish(pictures)
        # A single request runs alone, because it may reuse a prefix. But its pictures need not.
        lane = self.requests[0].lane
        waiting = lane.schedule.waiting[:_TOGETHER] if self._uses_prefix else ()
        own = [each for request in self.requests for each in request.pictures]
        others = [each for request in waiting for each in request.pictures]
        try:
            found = yield from inference.look_ahead.encode_pieces(own, others)
        except Exception:
            if not others:
                raise
            # The pictures of other requests must not make these fail.
            found = yield from inference.look_ahead.encode_pieces(own)
        # The features of a request that was put back are in RAM, and must return to the device.
        features = {digest: each.to(loaded.model.device) for digest, each in found.items()}
        inference.look_ahead.record_use(features.values())
        # The pixels take far more memory than the features, and are not needed any more.
        inference.pictures.drop_encoded(pictures)
        for request in (*self.requests, *waiting):
            request.pictures = [
                PictureTensors(each.picture, features=known)
                if (known := features.get(each.picture.digest)) is not None
                else each
                for each in request.pictures
            ]
        return features

    def _take_prefix(self) -> None:
        if not self._uses_prefix:
            return
        (request,) = self.requests
        keys = self._keys_of(request)
        cache, reused = self._inference.prefix.take_prefix(keys)
        # If a reply was put back, the prefix may also hold the states of its own tokens. Only the
        # states of the prompt count as reused.
        request.reused_tokens = min(reused, len(request.reply.prompt))
        self._keys, self.cache = keys, cache

    def _piece_tokens(self) -> int:
        size = self._inference.piece_size
        return size.tokens(len(self.requests), has_company=self._has_company)
