"""The inference of one model: answers to batches, and the state that later requests reuse."""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from PIL import Image
from transformers import Cache

from idefics_cli.core.errors import ContextError, MemoryLimitError
from idefics_cli.engine.local.cancel import Flag
from idefics_cli.engine.local.decode.graphs import Capture, CudaCapture, Graphs, graphs_problem
from idefics_cli.engine.local.decode.sampling import BatchRow, finish_all
from idefics_cli.engine.local.decode.slots import Slots
from idefics_cli.engine.local.decode.steps import SlotStep, Step, slots_problem
from idefics_cli.engine.local.decode.token_loop import OnToken, TokenLoop
from idefics_cli.engine.local.memory import as_memory_limit
from idefics_cli.engine.local.prompt.prefill import Prompt
from idefics_cli.engine.local.prompt.prefix import PrefixCache
from idefics_cli.engine.local.tuning import Tuning
from idefics_cli.engine.local.vision.encoding import PictureEncoder
from idefics_cli.engine.local.vision.features import FeatureCache
from idefics_cli.engine.local.vision.known_pictures import KnownPictures
from idefics_cli.engine.local.vision.look_ahead import LookAhead
from idefics_cli.engine.local.vision.side_stream import SideStream, side_stream_of
from idefics_cli.engine.protocol import Prepared
from idefics_cli.models.families.base import Inputs, check_token_ids
from idefics_cli.models.families.kv_cache import growing_cache
from idefics_cli.models.families.picture import PreparedPicture
from idefics_cli.models.kernels.openmp import one_thread
from idefics_cli.models.loading.loader import Loaded

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BatchAnswer:
    """The replies to a batch.

    Attributes:
        rows: One for each request, each with a `finish`.
        reused_tokens: Number of prompt tokens whose KV states came from an earlier request; 0 if
            there are several rows.
        prefill_seconds: Time for the pictures and the prompts.
        decode_seconds: Time of the token loop.
    """

    rows: Sequence[BatchRow]
    reused_tokens: int
    prefill_seconds: float
    decode_seconds: float


class Inference:
    """Answers batches. One thread owns it; `preprocess` and *pictures* are safe in any thread.

    An inference keeps image features, and the KV cache of the last request that was answered
    alone. When the memory runs out, it drops both and tries again.

    Args:
        loaded: The model.
        stop_ids: Token ids that end a reply; None takes those of the family.
        uses_slots: False pads the rows of a batch to one length, as for a model that cannot decode
            in slots.
        capture: Records decode steps; None records them with CUDA graphs on a CUDA device, and
            not at all on another device.
        side_stream: Encodes pictures while other requests are answered; None uses a CUDA stream on
            a CUDA device, and no side stream on another device.
        tuning: Sizes for speed and memory.

    Attributes:
        loaded: The model.
        slots_problem: Why the model cannot decode in slots; None if it can.
        features: The features of pictures that were encoded.
        prefix: The KV cache of the last request that was answered alone.
        pictures: The preprocessed pictures that are known, by digest.
        look_ahead: Encodes the pictures of waiting requests.
    """

    def __init__(
        self,
        loaded: Loaded,
        *,
        stop_ids: Collection[int] | None = None,
        uses_slots: bool = True,
        capture: Capture | None = None,
        side_stream: SideStream | None = None,
        tuning: Tuning | None = None,
    ) -> None:
        model, device = loaded.model, loaded.model.device
        self.loaded = loaded
        self._stop_ids = frozenset(loaded.family.stop_ids if stop_ids is None else stop_ids)
        self._tuning = tuning or Tuning()
        self.slots_problem = slots_problem(model) if uses_slots else "slots are switched off"
        self.features = FeatureCache(self._tuning.feature_bytes)
        self.prefix = PrefixCache()
        self.pictures = KnownPictures(self.features)
        self._encoder = PictureEncoder(
            model,
            loaded.family,
            features=self.features,
            max_pixels=self._tuning.vision_pixels or loaded.vision_pixels,
            cost=self._tuning.vision_cost,
        )
        self.look_ahead = LookAhead(self._encoder, side_stream or side_stream_of(device))
        self._slots: Slots | None = None
        problem = self.slots_problem or (graphs_problem(model) if capture is None else None)
        self._capture = None if problem else capture or CudaCapture(device)
        self._graphs = None if self._capture is None else Graphs(self._capture)
        _log.debug("decoding with CUDA graphs: %s", problem or "yes")

    @property
    def graphs(self) -> Graphs | None:
        """The recordings of steps in slots; None if steps cannot be recorded."""
        return self._graphs

    def preprocess(self, image: Image.Image) -> PreparedPicture:
        """Preprocess an open picture, unless it is known already; safe in any thread."""
        with one_thread():
            picture = self.loaded.family.preprocess(image, self.pictures.find)
        self.pictures.add(picture)
        return picture

    def count_tokens(self, prepared: Prepared) -> int:
        """Return how many tokens the prompt has."""
        return self._encode([prepared])["input_ids"].shape[1]

    def answer(
        self, batch: Sequence[Prepared], cancel: Flag, on_token: OnToken | None = None
    ) -> BatchAnswer:
        """Answer *batch*; `Engine.complete` lists the errors.

        Args:
            batch: B requests.
            cancel: When it is set, every reply ends after the current token, or after the current
                chunk of the prompt.
            on_token: Called after every step.
        """
        has_tokens = False

        def on_step(rows: Sequence[BatchRow]) -> None:
            nonlocal has_tokens
            has_tokens = True
            if on_token:
                on_token(rows)

        has_kept = len(self.prefix) > 0 or len(self.features) > 0 or self._slots is not None
        try:
            with as_memory_limit(len(batch)):
                return self._answer(batch, cancel, on_step)
        except MemoryLimitError:
            self._slots = None
            if not has_kept or has_tokens:
                raise
        self.drop_caches()
        with as_memory_limit(len(batch)):
            return self._answer(batch, cancel, on_step)

    def start_batch(
        self, batch: Sequence[Prepared], cancel: Flag
    ) -> tuple[list[BatchRow], Prompt | None]:
        """Return an empty reply for each of *batch*, and the prompts (None when cancelled)."""
        inputs = self._encode(batch)
        rows = self._new_rows(batch, inputs)
        return rows, self._place_prompt(batch, inputs, cancel)

    def take_slots(self, rows: int) -> Slots:
        """Return at least *rows* empty slots, in the buffers of the last call if they suffice.

        The slots of the last call must not be used any more.
        """
        if self._slots is None or self._slots.rows < rows:
            self._slots = Slots(rows, block_tokens=self._tuning.block_tokens)
        self._slots.clear()
        return self._slots

    def release_slots(self) -> None:
        """Free the slots. They stay if CUDA graphs are on, because steps were recorded for them."""
        if self._graphs is None:
            self._slots = None

    def drop_caches(self) -> None:
        """Free everything that is kept for later requests."""
        self.prefix.drop()
        self.features.clear()
        self._slots = None
        # Steps that could not be recorded are not tried again: the error would come again.
        if self._capture is not None and self._graphs is not None and not self._graphs.failure:
            self._graphs = Graphs(self._capture)

    def new_loop(self) -> TokenLoop:
        """Return a token loop over the model."""
        return TokenLoop(
            self.loaded.model,
            self.loaded.family,
            step_of=None if self._graphs is None else self._slot_step,
            chunk_tokens=self._tuning.chunk_tokens,
        )

    def _answer(self, batch: Sequence[Prepared], cancel: Flag, on_token: OnToken) -> BatchAnswer:
        family, is_alone = self.loaded.family, len(batch) == 1
        started = time.perf_counter()
        rows, prompt = self.start_batch(batch, cancel)
        if prompt is None:
            finish_all(rows, "cancelled")
            return BatchAnswer(rows, 0, time.perf_counter() - started, 0.0)
        keys = family.prefix_keys(rows[0].prompt, batch[0].pictures) if is_alone else []
        cache, reused = self.prefix.take_prefix(keys) if is_alone else (growing_cache(), 0)
        prefilled = self.new_loop().generate(prompt, rows, cache, cancel=cancel, on_token=on_token)
        ended = time.perf_counter()
        if is_alone:
            self.prefix.keep_prefix([*keys, *rows[0].tokens], cache)
        prefilled = ended if prefilled is None else prefilled
        return BatchAnswer(rows, reused, prefilled - started, ended - prefilled)

    def _slot_step(self, prompt: Prompt, cache: Cache) -> Step:
        """Move the rows of a prompt into slots, and return the step that decodes them."""
        mask = prompt.inputs["attention_mask"]
        slots = self.take_slots(len(mask))
        is_alone = len(mask) == 1
        extra = self.loaded.family.next_inputs(prompt.inputs, prompt.image_features)
        slots.admit_rows(cache, mask, extra, releases=not is_alone)
        return SlotStep(
            self.loaded.model,
            self.loaded.family,
            slots,
            graphs=self._graphs,
            source=cache if is_alone else None,
        )

    def _encode(self, batch: Sequence[Prepared]) -> Inputs:
        inputs = self.loaded.family.encode(
            [prepared.request for prepared in batch], [prepared.pictures for prepared in batch]
        )
        check_token_ids(inputs["input_ids"], self.loaded.vocabulary)
        return inputs

    def _new_rows(self, batch: Sequence[Prepared], inputs: Inputs) -> list[BatchRow]:
        """Return an empty reply for each row of *inputs*, limited by the model's context."""
        rows, context_tokens = [], self.loaded.context_tokens
        for prepared, ids, mask in zip(
            batch, inputs["input_ids"], inputs["attention_mask"], strict=True
        ):
            prompt = ids[mask.bool()].tolist()
            room = context_tokens - len(prompt)
            if room < 1:
                raise ContextError(
                    f"the prompt has {len(prompt)} tokens, and the model takes {context_tokens}",
                    prompt_tokens=len(prompt),
                    context_tokens=context_tokens,
                    hint="fewer or smaller pictures, `--no-splitting`, or a shorter text"
                    if prepared.pictures
                    else "give a shorter text",
                )
            sampling = prepared.request.sampling
            limit = min(sampling.max_new_tokens, room)
            rows.append(BatchRow(sampling, prompt, limit, self._stop_ids))
        return rows

    def _place_prompt(
        self, batch: Sequence[Prepared], inputs: Inputs, cancel: Flag
    ) -> Prompt | None:
        """Return *inputs* and image features on the model's device, or None when cancelled."""
        model, family = self.loaded.model, self.loaded.family
        pictures = [picture for prepared in batch for picture in prepared.pictures]
        self.look_ahead.finish(pictures)
        features = self._encoder.encode(pictures, cancel=cancel)
        if features is None:
            return None
        self.look_ahead.record_use(features.values())
        image_features = family.place_features(
            model, [[features[p.digest] for p in prepared.pictures] for prepared in batch]
        )
        return Prompt({name: t.to(model.device) for name, t in inputs.items()}, image_features)
