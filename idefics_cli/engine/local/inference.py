"""Answers with one model: pictures, prompt and reply, and what is kept for the next."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from weakref import WeakValueDictionary

from PIL import Image
from torch import Tensor
from transformers import Cache

from idefics_cli.core.errors import ContextError, MemoryLimitError
from idefics_cli.engine.local.cancel import Flag
from idefics_cli.engine.local.decode.graphs import CudaCapture, Graphs, graphs_problem
from idefics_cli.engine.local.decode.sampling import BatchRow, finish_all
from idefics_cli.engine.local.decode.slots import Slots
from idefics_cli.engine.local.decode.steps import SlotStep, Step, slots_problem
from idefics_cli.engine.local.decode.token_loop import OnToken, generate
from idefics_cli.engine.local.memory import as_memory_limit
from idefics_cli.engine.local.prompt.prefill import Prompt
from idefics_cli.engine.local.prompt.prefix import PrefixCache
from idefics_cli.engine.local.vision.encoding import FeatureCache, encode_pictures
from idefics_cli.engine.local.vision.side_stream import Beside, beside_of
from idefics_cli.engine.local.vision.tiles import GPU_PIXELS
from idefics_cli.engine.protocol import Prepared
from idefics_cli.models.families.base import Inputs, check_token_ids
from idefics_cli.models.families.kv_cache import growing_cache
from idefics_cli.models.families.picture import PreparedPicture
from idefics_cli.models.loading.loader import Loaded

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class BatchAnswer:
    """The replies to a batch.

    Attributes:
        rows: One for each request, each with a `finish`.
        reused_tokens: Prompt tokens that an earlier turn had computed; 0 for several rows.
        prefill_seconds: Of the pictures and the prompts.
        decode_seconds: Of the token loop.
    """

    rows: Sequence[BatchRow]
    reused_tokens: int
    prefill_seconds: float
    decode_seconds: float


class Inference:
    """Answers batches; belongs to one thread, but for `preprocess`.

    It keeps the features of pictures (at most `vision.KEPT_BYTES`) and the KV cache of the last
    request that was answered alone; see `PrefixCache`. When the memory runs out, they go first.

    Args:
        loaded: The model.

    Attributes:
        loaded: The model.
        slots_problem: Why rows cannot have their own lengths; None if they can.
    """

    def __init__(self, loaded: Loaded) -> None:
        self.loaded = loaded
        self._features = FeatureCache()
        self._prefix = PrefixCache()
        self._waiting: WeakValueDictionary[bytes, PreparedPicture] = WeakValueDictionary()
        self.slots_problem = slots_problem(loaded.model)
        self._files: dict[str, tuple[bytes, tuple[int, int]]] = {}
        self._slots: Slots | None = None
        self._capture = CudaCapture(loaded.model.device)
        self._graphs = Graphs(self._capture)
        problem = self.slots_problem or graphs_problem(loaded.model)
        self._records = problem is None
        self._beside: Beside | None = beside_of(loaded.model.device)
        # Digests of the pictures that it was given, until their turn comes.
        self._begun: set[bytes] = set()
        _log.debug("decoding with CUDA graphs: %s", problem or "yes")

    def preprocess(self, image: Image.Image) -> PreparedPicture:
        """Make an open picture ready for the model, or remember it; safe in any thread."""
        # An equal picture may wait for its turn, as when several questions are asked about it.
        picture = self.loaded.family.preprocess(image, self._find_picture)
        if picture.tiles:
            self._waiting.setdefault(picture.digest, picture)
        return picture

    def recall(self, file_digest: str) -> PreparedPicture | None:
        """Return the picture that was prepared from a file, if its tiles or features are here."""
        if (found := self._files.get(file_digest)) is None:
            return None
        digest, size = found
        picture = self._find_picture(digest)
        if picture is None:
            self._files.pop(file_digest, None)
            return None
        return picture if picture.size == size else replace(picture, size=size)

    def remember(self, file_digest: str, picture: PreparedPicture) -> None:
        """Let `recall` find *picture* by the SHA-256 of its file; safe in any thread."""
        self._files[file_digest] = picture.digest, picture.size

    def count(self, prepared: Prepared) -> int:
        """Return how many tokens the prompt has."""
        return self._encode([prepared])["input_ids"].shape[1]

    def answer(
        self, batch: Sequence[Prepared], cancel: Flag, on_token: OnToken | None = None
    ) -> BatchAnswer:
        """Answer *batch*; see `Engine.complete` for what it raises.

        Args:
            batch: B requests.
            cancel: Ends every reply after the current token or piece of the prompt.
            on_token: Called after every step.
        """
        has_spoken = False

        def on_step(rows: Sequence[BatchRow]) -> None:
            nonlocal has_spoken
            has_spoken = True
            if on_token:
                on_token(rows)

        has_kept = bool(self._prefix) or len(self._features) > 0 or self._slots is not None
        try:
            with as_memory_limit(len(batch)):
                return self._answer(batch, cancel, on_step)
        except MemoryLimitError:
            self._slots = None
            if not has_kept or has_spoken:
                raise
        self.drop()
        with as_memory_limit(len(batch)):
            return self._answer(batch, cancel, on_step)

    def begin(
        self, batch: Sequence[Prepared], cancel: Flag
    ) -> tuple[list[BatchRow], Prompt | None]:
        """Return an empty reply for each of *batch*, and their prompts; None when cancelled."""
        inputs = self._encode(batch)
        rows = _rows(batch, inputs, self.loaded.context_tokens)
        return rows, self._see(batch, inputs, cancel)

    @property
    def can_look_ahead(self) -> bool:
        """Whether the device would encode pictures beside what the model is at."""
        return self._beside is not None and not self._beside.is_busy

    def look_ahead(self, batch: Sequence[Prepared], cancel: Flag) -> None:
        """Begin to encode some pictures of *batch*, which is answered soon; see `can_look_ahead`.

        They are as many of one shape as one forward takes: when the turn of the first comes, all
        of them are waited for.
        """
        missing = [
            picture
            for prepared in batch
            for picture in prepared.pictures
            if picture.features is None
            and picture.digest not in self._begun
            and picture.digest not in self._features
        ]
        if not missing or (beside := self._join()) is None:
            return
        alike = [each for each in missing if each.tile_sizes == missing[0].tile_sizes]
        pictures = alike[: max(1, GPU_PIXELS // missing[0].pixels)]
        # Each once: where so many are not kept, they would drive each other out for ever.
        self._begun.update(picture.digest for picture in pictures)
        beside.begin(lambda: self._encode_ahead(pictures, cancel))

    def _find_picture(self, digest: bytes) -> PreparedPicture | None:
        return self._features.recall(digest) or self._waiting.get(digest)

    def _encode_ahead(
        self, pictures: Sequence[PreparedPicture], cancel: Flag
    ) -> dict[bytes, Tensor] | None:
        with as_memory_limit(len(pictures)):
            return self._encode_pictures(pictures, cancel)

    def _encode_pictures(
        self, pictures: Sequence[PreparedPicture], cancel: Flag
    ) -> dict[bytes, Tensor] | None:
        """Return the features of *pictures*, computed or kept; see `encode_pictures`."""
        loaded = self.loaded
        return encode_pictures(loaded.model, loaded.family, pictures, self._features, cancel=cancel)

    def _join(self) -> Beside | None:
        """Go on after what was begun beside; return what begins more, None if that failed."""
        try:
            if self._beside is not None:
                self._beside.join()
        # Whatever it is, it is told when the pictures' turn comes, if it is still so.
        except Exception:
            _log.debug("looking ahead no more", exc_info=True)
            self._beside = None
        return self._beside

    def take_slots(self, rows: int) -> Slots:
        """Return slots for *rows*, none of them taken; those of last time, if there are enough."""
        if self._slots is None or self._slots.rows < rows:
            self._slots = Slots(rows)
        self._slots.clear()
        return self._slots

    def leave_slots(self) -> None:
        """Free the slots, unless something was recorded for them."""
        if not self._records:
            self._slots = None

    @property
    def graphs(self) -> Graphs | None:
        """What records steps in slots, where that can be."""
        return self._graphs if self._records else None

    def drop(self) -> None:
        """Free all that is kept for later requests."""
        self._prefix.drop()
        self._features.clear()
        self._slots = None
        self._graphs = Graphs(self._capture)

    def _answer(self, batch: Sequence[Prepared], cancel: Flag, on_token: OnToken) -> BatchAnswer:
        loaded, is_alone = self.loaded, len(batch) == 1
        started = time.perf_counter()
        rows, prompt = self.begin(batch, cancel)
        if prompt is None:
            finish_all(rows, "cancelled")
            return BatchAnswer(rows, 0, time.perf_counter() - started, 0.0)
        prefilled: float | None = None

        def on_prefilled() -> None:
            nonlocal prefilled
            prefilled = time.perf_counter()

        keys = loaded.family.prefix_keys(rows[0].prompt, batch[0].pictures) if is_alone else []
        cache, reused = self._prefix.take_prefix(keys) if is_alone else (growing_cache(), 0)
        generate(
            loaded.model,
            loaded.family,
            prompt,
            rows,
            cache,
            cancel=cancel,
            on_prefilled=on_prefilled,
            on_token=on_token,
            step_of=self._slot_step if self._records else None,
        )
        ended = time.perf_counter()
        if is_alone:
            self._prefix.keep_prefix([*keys, *rows[0].tokens], cache)
        prefilled = ended if prefilled is None else prefilled
        return BatchAnswer(rows, reused, prefilled - started, ended - prefilled)

    def _slot_step(self, prompt: Prompt, cache: Cache) -> Step:
        """Move a prompt's rows into slots, which are kept with what was recorded for them."""
        mask = prompt.inputs["attention_mask"]
        slots = self.take_slots(len(mask))
        is_alone = len(mask) == 1
        extra = self.loaded.family.next_inputs(prompt.inputs, prompt.image_features)
        slots.admit(cache, mask, extra, releases=not is_alone)
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

    def _see(self, batch: Sequence[Prepared], inputs: Inputs, cancel: Flag) -> Prompt | None:
        """Return *inputs* and the pictures on the model's device, or None when cancelled."""
        model, family = self.loaded.model, self.loaded.family
        pictures = [picture for prepared in batch for picture in prepared.pictures]
        beside = self._join()
        self._begun.difference_update(picture.digest for picture in pictures)
        features = self._encode_pictures(pictures, cancel)
        if features is None:
            return None
        if beside is not None:
            beside.borrow(features.values())
        image_features = family.place_features(
            model, [[features[p.digest] for p in prepared.pictures] for prepared in batch]
        )
        return Prompt({name: t.to(model.device) for name, t in inputs.items()}, image_features)


def _rows(batch: Sequence[Prepared], inputs: Inputs, context_tokens: int) -> list[BatchRow]:
    """Return an empty reply for each row of *inputs*, limited by the model's context."""
    rows = []
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
                hint="fewer or smaller images, `--no-splitting`, or a shorter text",
            )
        sampling = prepared.request.sampling
        rows.append(BatchRow(sampling, prompt, min(sampling.max_new_tokens, room)))
    return rows
