"""One loaded model, with everything that is kept between requests."""

from __future__ import annotations

import logging
from collections.abc import Collection, Hashable
from threading import Lock

from idefics_cli.core.errors import ContextError, ImageError, UsageError
from idefics_cli.core.types import Constraint, Mode
from idefics_cli.engine.local.decode.batch_row import BatchRow
from idefics_cli.engine.local.decode.constraint import Grammars
from idefics_cli.engine.local.decode.detokenize import detokenizer_of
from idefics_cli.engine.local.decode.graphs import Capture, CudaCapture, Graphs, graphs_problem
from idefics_cli.engine.local.decode.slots import Slots
from idefics_cli.engine.local.decode.steps import slots_problem
from idefics_cli.engine.local.kv_budget import KvBudget
from idefics_cli.engine.local.prompt.prefill import PieceSize
from idefics_cli.engine.local.prompt.prefix import PrefixStore
from idefics_cli.engine.local.prompt.scoring import answer_tokens
from idefics_cli.engine.local.tuning import Tuning
from idefics_cli.engine.local.vision.encoding import PictureEncoder
from idefics_cli.engine.local.vision.features import FeatureCache
from idefics_cli.engine.local.vision.look_ahead import LookAhead
from idefics_cli.engine.local.vision.picture_store import PictureStore
from idefics_cli.engine.local.vision.side_stream import SideStream, side_stream_of
from idefics_cli.engine.protocol import Prepared
from idefics_cli.engine.schema.choices import choices_of, wordings
from idefics_cli.images.media import Media
from idefics_cli.images.video import Video
from idefics_cli.models.families.base import Family, Inputs
from idefics_cli.models.families.picture import PictureTensors, PreparedPicture
from idefics_cli.models.families.resize import enlarged
from idefics_cli.models.families.special_tokens import find_ban_ids
from idefics_cli.models.families.token_rows import check_token_ids
from idefics_cli.models.families.videos import VideoFamily
from idefics_cli.models.kernels.openmp import one_thread
from idefics_cli.models.loading.loader import Loaded

_log = logging.getLogger(__name__)
# Number of encoded prompts that are kept. A prompt of 1,000 tokens takes 16 kB.
_KNOWN_PROMPTS = 64


class Inference:
    """A model and what it keeps: features of pictures, KV states of conversations, buffers.

    One thread owns it; only `preprocess`, `encode` and *pictures* are safe in any thread. What is
    kept for later requests is dropped first when the memory runs out.

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
        prefix: The KV states of conversations.
        shared: The KV states of the beginning that the prompts of the last batch shared. A store
            without room keeps only its newest states.
        encoder: Encodes pictures.
        piece_size: The number of prompt tokens in one forward.
        kv_budget: The memory for KV states.
        tuning: As given.
        pictures: The tensors of prepared pictures, until their features exist.
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
        self.tuning = tuning or Tuning()
        self.slots_problem = slots_problem(model) if uses_slots else "slots are switched off"
        self.features = FeatureCache(self.tuning.feature_bytes)
        self.kv_budget = KvBudget(loaded, self.tuning, uses_slots=self.slots_problem is None)
        self.prefix = PrefixStore(self.kv_budget.prefix_bytes)
        self.shared = PrefixStore(0)
        self.piece_size = PieceSize(model, self.tuning.chunk_tokens)
        self._grammars = Grammars(loaded.family, loaded.vocabulary)
        self._tokenizing = Lock()
        # The prompts that were encoded last. Captions of pictures of one shape share a prompt.
        self._prompts: dict[Hashable, Inputs] = {}
        self.pictures = PictureStore(self.features, max_bytes=self.tuning.tile_bytes)
        self.encoder = PictureEncoder(
            model,
            loaded.family,
            features=self.features,
            max_pixels=self.tuning.vision_pixels or loaded.vision_pixels,
            cost=self.tuning.vision_cost,
        )
        self.look_ahead = LookAhead(self.encoder, side_stream or side_stream_of(device))
        self._slots: Slots | None = None
        problem = self.slots_problem or (graphs_problem(model) if capture is None else None)
        if not loaded.uses_graphs:
            problem = "the plan switches them off"
        self._capture = None if problem else capture or CudaCapture(device)
        self._graphs = None if self._capture is None else Graphs(self._capture)
        _log.debug("decoding with CUDA graphs: %s", problem or "yes")

    @property
    def graphs(self) -> Graphs | None:
        """The recordings of steps in slots; None if steps cannot be recorded."""
        return self._graphs

    def preprocess(self, media: Media, family: Family | None = None) -> PreparedPicture:
        """Preprocess an open picture or video and hold its pixels; see `make_tensors`."""
        return self.make_tensors(media, family).picture

    def make_tensors(self, media: Media, family: Family | None = None) -> PictureTensors:
        """Return the tensors of an open picture, old ones if it is known; safe in any thread.

        Args:
            media: An image, RGB and upright; or a video, which is closed.
            family: See `Family.in_detail`; None for the detail of the loaded model.

        Raises:
            ImageError: If the frames of a video cannot be read, or the model takes no videos.
        """
        family = family or self.loaded.family
        with one_thread():
            if isinstance(media, Video):
                with media:
                    tensors = self._make_video_tensors(media, family)
            else:
                tensors = family.preprocess(enlarged(media), self.pictures.find)
        self.pictures.add(tensors)
        return tensors

    def _make_video_tensors(self, video: Video, family: Family) -> PictureTensors:
        if not isinstance(family, VideoFamily):
            raise ImageError(
                f"cannot read `{video.name}`: it is a video, and {family.spec.title} takes "
                "pictures, not videos",
                kind="unsupported",
                hint="save a frame of it as a picture: ffmpeg -i VIDEO -vframes 1 a.png",
            )
        return family.preprocess_video(video, self.pictures.find)

    def encode(self, prepared: Prepared) -> Inputs:
        """Return the prompt of a request, tensors (1, T, ...); safe in any thread.

        Raises:
            PromptError: If the model cannot take the prompt.
        """
        key = _prompt_key(prepared)
        # The tokenizer's settings must not change while another thread uses it.
        with self._tokenizing:
            if (known := self._prompts.pop(key, None)) is None:
                with one_thread():
                    known = self.loaded.family.encode([prepared.request], [prepared.pictures])
                check_token_ids(known["input_ids"], self.loaded.vocabulary)
            self._prompts[key] = known
            if len(self._prompts) > _KNOWN_PROMPTS:
                del self._prompts[next(iter(self._prompts))]
            inputs = known
        return inputs

    def new_row(self, prepared: Prepared, inputs: Inputs) -> BatchRow:
        """Return an empty reply to *prepared*, limited by the model's context.

        Raises:
            ContextError: If the context has no room for the prompt and a token.
            PromptError: If a banned word ends the reply.
            UsageError: If the constraint of the request cannot be compiled.
        """
        loaded, context_tokens = self.loaded, self.loaded.context_tokens
        prompt = inputs["input_ids"][0].tolist()
        room = context_tokens - len(prompt)
        if room < 1:
            raise ContextError(
                f"the prompt has {len(prompt)} tokens, and the model takes {context_tokens}",
                prompt_tokens=len(prompt),
                context_tokens=context_tokens,
                hint=_shorter(prepared),
            )
        request = prepared.request
        limit = min(request.sampling.max_new_tokens, room)
        stop_ids = frozenset[int]() if request.sampling.ignores_end else self._stop_ids
        row = BatchRow(request.sampling, prompt, limit, stop_ids)
        if request.sampling.stop:
            row.stops = detokenizer_of(self.loaded.family, request)
        if request.banned:
            with self._tokenizing:
                row.bans = find_ban_ids(loaded.family.tokenizer, request.banned, self._stop_ids)
        if request.constraint is not None:
            self._constrain(row, request.constraint, request.mode, room=room)
        return row

    def _constrain(self, row: BatchRow, constraint: Constraint, mode: Mode, *, room: int) -> None:
        if constraint.kind != "choice":
            row.guide = self._grammars.start(constraint, mode)
            return
        texts = [text for choice in choices_of(constraint) for text in wordings(choice)]
        with self._tokenizing:
            row.answers = [answer_tokens(self.loaded.family, text) for text in texts]
        longest = max(map(len, row.answers))
        if longest >= room:
            raise UsageError(
                f"a choice has {longest} tokens, and the model has room for {room - 1} after the "
                "prompt",
                hint="shorten the choices",
            )

    @property
    def has_kept(self) -> bool:
        """Whether anything is kept for later requests that `drop_caches` would free."""
        return len(self.prefix) > 0 or len(self.shared) > 0 or len(self.features) > 0

    def take_slots(self, rows: int, *, most_states: int | None = None) -> Slots:
        """Return at least *rows* empty slots.

        Those of the last call are used again if they have enough rows.

        Args:
            rows: Number of rows.
            most_states: Number of states for which the memory suffices; None for no limit.
        """
        slots = self._slots
        is_large = most_states is not None and slots and slots.rows * slots.capacity > most_states
        if slots is None or slots.rows < rows or is_large:
            self._slots = slots = Slots(
                rows,
                block_tokens=self.tuning.block_tokens,
                doubles=self._graphs is not None and self._graphs.failure is None,
            )
        slots.clear()
        return slots

    def release_slots(self) -> None:
        """Free the slots. They stay if CUDA graphs are on, because steps were recorded for them."""
        if self._graphs is None:
            self._slots = None

    def drop_caches(self, *, keeps_slots: bool = False) -> None:
        """Free everything that is kept for later requests.

        Args:
            keeps_slots: Whether the slots are kept, because they hold active replies.
        """
        self.prefix.drop()
        self.shared.drop()
        self.features.clear()
        if keeps_slots:
            return
        self._slots = None
        # If a recording has failed, no new one is tried, because it would fail again.
        if self._capture is not None and self._graphs is not None and not self._graphs.failure:
            self._graphs = Graphs(self._capture)


def _shorter(prepared: Prepared) -> str:
    """Return what makes the prompt of a request shorter."""
    if any(picture.moments for picture in prepared.pictures):
        return "fewer videos, videos of less than a minute, or a shorter text"
    if prepared.pictures:
        return "fewer or smaller pictures, `--no-splitting`, or a shorter text"
    return "give a shorter text"


def _prompt_key(prepared: Prepared) -> Hashable:
    """Return what the encoded prompt depends on: the texts, and the shapes of the pictures."""
    request = prepared.request
    messages = tuple(
        (message.role, tuple(part if isinstance(part, str) else None for part in message.parts))
        for message in request.messages
    )
    return request.mode, messages, prepared.shape_key
