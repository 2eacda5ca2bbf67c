"""The local engine: one thread owns the model, and any thread may call the engine."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor, wait
from dataclasses import dataclass
from itertools import count
from queue import SimpleQueue
from threading import Event, get_ident
from types import TracebackType
from typing import Protocol, Self

import torch
from PIL import Image

from idefics_cli.core.errors import ImageError
from idefics_cli.core.sources import describe_source
from idefics_cli.core.types import (
    Attachment,
    Completion,
    GenerationRequest,
    LoadSpec,
    Progress,
    TokenChunk,
)
from idefics_cli.engine.local.cancel import AnyOf, Flag
from idefics_cli.engine.local.inference import Inference
from idefics_cli.engine.local.memory import (
    as_memory_limit,
    free_unused_memory,
    stay_within_free_memory,
)
from idefics_cli.engine.local.serving.requests import Lane, OpenRequest
from idefics_cli.engine.local.serving.schedule import RequestSchedule
from idefics_cli.engine.local.serving.scheduler import Scheduler
from idefics_cli.engine.local.session import LocalSession
from idefics_cli.engine.protocol import (
    Handle,
    Listener,
    Measure,
    OpenImage,
    Outcome,
    Prepared,
    Session,
    Urgency,
    last_chunk,
)
from idefics_cli.images.media import Media, MediaLoader
from idefics_cli.models.families.picture import PictureTensors, PreparedPicture
from idefics_cli.models.hub.registry import base_model_error
from idefics_cli.models.loading.loader import Loaded, load


class Load(Protocol):
    """Loads a model; see `loader.load`."""

    def __call__(self, spec: LoadSpec, *, report: Progress) -> Loaded:
        """Load the model of *spec*; call *report* with the phase and its share done."""
        ...


class LocalEngine:
    """Runs a model in this process; see `protocol.Engine`.

    One thread loads the model and runs it, because CUDA graphs and the thread count of CPU kernels
    belong to a thread. `prepare` runs in the thread of the caller.

    Args:
        spec: The model, and how to load it.
        progress: Called with each phase of loading.
        load: Loads the model.
        make_inference: Makes the `Inference` for the loaded model. To set options, pass a
            `functools.partial` of `Inference`.

    Raises:
        ModelError: If the model is missing or its files are broken.
        MemoryLimitError: If the model does not fit.
    """

    def __init__(
        self,
        spec: LoadSpec,
        *,
        progress: Progress | None = None,
        load: Load = load,
        make_inference: Callable[[Loaded], Inference] = Inference,
    ) -> None:
        self.spec = spec
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inference")
        self._inference_thread: int | None = None
        self._closing = Event()
        self._inference: Inference | None = None
        self._scheduler: Scheduler | None = None
        # Numbers the requests of the lanes (queues) that all callers share. A caller with its own
        # lane numbers its requests itself.
        self._numbers = count()
        try:
            loading = self._worker.submit(self._load, load, progress)
            # A signal that comes just before a wait begins is noticed when the wait ends.
            while not wait([loading], timeout=0.5).done:
                pass
            loaded = loading.result()
        except BaseException as error:
            self._leave(error)
            raise
        self._inference = make_inference(loaded)
        self._images = MediaLoader(
            spec.limits, offline=spec.offline, takes_videos=loaded.family.spec.takes_videos
        )
        self._scheduler = Scheduler(
            self._inference, closing=self._closing, start=self._worker.submit
        )
        self.revision = loaded.revision

    @property
    def inference(self) -> Inference:
        """The inference on the model. Only the inference thread may use it, except `preprocess`.

        Raises:
            RuntimeError: If the engine is closed.
        """
        if self._inference is None:
            raise RuntimeError("the engine is closed")
        return self._inference

    @property
    def loaded(self) -> Loaded:
        """The model, its family and its limits.

        Raises:
            RuntimeError: If the engine is closed.
        """
        return self.inference.loaded

    @property
    def context_tokens(self) -> int:
        """Number of tokens that the model takes, prompt and reply together."""
        return self.loaded.context_tokens

    @property
    def held_kv_bytes(self) -> int:
        """Number of bytes of the KV states of active replies, prompts, and kept conversations."""
        return self._open_scheduler().held_kv_bytes

    def prepare(
        self, request: GenerationRequest, *, open_image: OpenImage | None = None
    ) -> Prepared:
        """Open the images of *request* and cut and scale them; see `Engine.prepare`."""
        loaded = self.loaded
        self.inference.pictures.shrink()
        if request.mode == "chat" and not loaded.family.chats:
            raise base_model_error(self.spec.name or self.spec.repo)
        loaded.family.check(request)
        pictures = (self._prepare_picture(each, open_image) for each in request.attachments)
        return Prepared(request, tuple(pictures))

    def preprocess(self, image: Image.Image) -> PreparedPicture:
        """Cut, scale and normalise an open picture, RGB and upright; see `prepare`."""
        return self.inference.preprocess(image)

    def find_tensors(self, prepared: Prepared) -> list[PictureTensors]:
        """Return the pixels or features of the pictures of *prepared*.

        A picture whose tensors are gone is opened again, by the source of its attachment.

        Raises:
            ImageError: If a picture cannot be opened again, or has changed.
        """
        pairs = zip(prepared.request.attachments, prepared.pictures, strict=True)
        return [self._find_tensors(attachment, picture) for attachment, picture in pairs]

    def measure(self, prepared: Prepared) -> Measure:
        """Count the tokens of a prompt; see `Engine.measure`."""
        inputs = self.inference.encode(prepared)
        return Measure(inputs["input_ids"].shape[1], self.context_tokens)

    def submit(
        self,
        prepared: Prepared,
        listen: Listener,
        *,
        urgency: Urgency = "interactive",
        streams: bool = False,
    ) -> Handle:
        """Add a request and return at once; see `Engine.submit`."""
        scheduler = self._open_scheduler()
        lane = scheduler.interactive if urgency == "interactive" else scheduler.batch
        cancel = Event()
        request = self._open_request(prepared, lane, listen, stop=cancel, streams=streams)
        scheduler.put([request])
        return _LocalHandle(request, cancel, scheduler)

    def complete(
        self, batch: Sequence[Prepared], *, cancel: Event | None = None
    ) -> list[Completion]:
        """Answer *batch* in order; see `Engine.complete`."""
        if not batch:
            return []
        scheduler, abandoned = self._open_scheduler(), Event()
        stop = AnyOf((abandoned,) if cancel is None else (cancel, abandoned))
        lane = Lane(RequestSchedule(len(batch)), "interactive", self._closing, starts_whole=True)
        outcomes: SimpleQueue[tuple[int, TokenChunk | Outcome]] = SimpleQueue()

        def listener(index: int) -> Listener:
            return lambda event: outcomes.put((index, event))

        requests = [
            self._open_request(prepared, lane, listener(index), index=index, stop=stop)
            for index, prepared in enumerate(batch)
        ]
        completions: dict[int, Completion] = {}
        try:
            scheduler.put(requests)
            while len(completions) < len(batch):
                index, outcome = outcomes.get()
                if isinstance(outcome, Exception):
                    raise outcome
                if isinstance(outcome, Completion):
                    completions[index] = outcome
        finally:
            # Ctrl-C interrupts this thread, and would leave the inference thread running.
            abandoned.set()
        return [completions[index] for index in range(len(batch))]

    def serve(self, *, slots: int, cancel: Event | None = None) -> Session:
        """Open a session of *slots*; see `Engine.serve`."""
        scheduler, abandoned = self._open_scheduler(), Event()
        flags = (abandoned, self._closing) if cancel is None else (cancel, abandoned, self._closing)
        session = LocalSession(
            slots,
            stop=AnyOf(flags),
            abandoned=abandoned,
            open_request=self._open_request,
            put=scheduler.put,
        )
        scheduler.open_session(session.lane)
        return session

    def stream(self, prepared: Prepared, *, cancel: Event | None = None) -> Iterator[TokenChunk]:
        """Yield one answer piece by piece; see `Engine.stream`."""
        scheduler, abandoned = self._open_scheduler(), Event()
        stop = AnyOf((abandoned,) if cancel is None else (cancel, abandoned))
        events: SimpleQueue[TokenChunk | Outcome] = SimpleQueue()
        request = self._open_request(
            prepared, scheduler.interactive, events.put, stop=stop, streams=True
        )
        try:
            scheduler.put([request])
            while isinstance(event := events.get(), TokenChunk):
                yield event
            if isinstance(event, Exception):
                raise event
            yield last_chunk(event)
        finally:
            abandoned.set()

    def close(self) -> None:
        """Stop what runs and free the device memory; idempotent."""
        self._shut_down(wait=True)
        free_unused_memory()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave(error)

    def _open_image(self, attachment: Attachment, draft_edge: int) -> Media:
        return self._images.open_media(attachment, draft_edge=draft_edge)

    def _prepare_picture(
        self, attachment: Attachment, open_image: OpenImage | None
    ) -> PreparedPicture:
        inference, detail = self.inference, attachment.detail
        family = self.loaded.family.in_detail(detail)
        if open_image is None and not attachment.digest:
            attachment, open_image = self._images.read(attachment)
        if (known := inference.pictures.find_file(attachment.digest, detail)) is not None:
            return known
        media = (open_image or self._open_image)(attachment, family.draft_edge)
        picture = inference.preprocess(media, family)
        if attachment.digest:
            inference.pictures.add_file(attachment.digest, picture, detail)
        return picture

    def _find_tensors(self, attachment: Attachment, picture: PreparedPicture) -> PictureTensors:
        inference = self.inference
        found = inference.pictures.find_tensors(picture)
        if found is None:
            family = self.loaded.family.in_detail(attachment.detail)
            media = self._open_image(attachment, family.draft_edge)
            found = inference.make_tensors(media, family)
            found = found if picture.split_digest is None else found.without_tiles()
        if (found.picture.digest, found.picture.shape) == (picture.digest, picture.shape):
            return found
        raise ImageError(
            f"`{describe_source(attachment.source)}` is another picture than when it was prepared",
            kind="truncated",
            hint="the file has changed, or the request was prepared for another model",
        )

    def _leave(self, error: BaseException | None) -> None:
        is_interrupted = isinstance(error, KeyboardInterrupt)
        self._shut_down(wait=not is_interrupted)
        # RAM is not collected here: most programs end now, and it takes about 0.1 s.
        if self.spec.device != "cpu" and not is_interrupted:
            free_unused_memory()

    def _shut_down(self, *, wait: bool) -> None:
        # After Ctrl-C, *wait* is False: a prefill, or the reading of weights, can take minutes and
        # cannot be interrupted, so the user does not wait for its end.
        self._closing.set()
        # A listener runs in the inference thread, which cannot wait for itself.
        wait = wait and self._inference_thread != get_ident()
        self._worker.shutdown(wait=wait, cancel_futures=True)
        self._inference = self._scheduler = None

    def _open_scheduler(self) -> Scheduler:
        if self._scheduler is None:
            raise RuntimeError("the engine is closed")
        return self._scheduler

    def _open_request(
        self,
        prepared: Prepared,
        lane: Lane,
        listen: Listener,
        *,
        index: int | None = None,
        stop: Flag | None = None,
        streams: bool = False,
    ) -> OpenRequest:
        """Tokenize the prompt of a request, in the thread of the caller."""
        inference = self.inference
        pictures = self.find_tensors(prepared)
        with as_memory_limit(1):
            inputs = inference.encode(prepared)
        return OpenRequest(
            next(self._numbers) if index is None else index,
            prepared,
            lane=lane,
            listen=listen,
            inputs=inputs,
            reply=inference.new_row(prepared, inputs),
            pictures=pictures,
            stop=stop or Event(),
            streams=streams,
        )

    def _load(self, load: Load, progress: Progress | None) -> Loaded:
        self._inference_thread = get_ident()
        if self.spec.threads is not None:
            torch.set_num_threads(self.spec.threads)
        # cuDNN's attention is switched off. On data-centre Blackwell it gives wrong replies if a
        # model has few key heads (torch 2.11 to 2.13, pytorch #193893), and for each new length it
        # spends half a second on planning.
        torch.backends.cuda.enable_cudnn_sdp(False)
        # Loading excludes all objects from garbage collection for ever, and must not exclude an
        # earlier model; see `quick_imports`.
        gc.collect()
        loaded = load(self.spec, report=self._reporter(progress))
        stay_within_free_memory(self.spec)
        return loaded

    def _reporter(self, progress: Progress | None) -> Progress:
        def report(phase: str, share: float | None) -> None:
            # A download calls `report` often. When the engine closes, this error ends the download.
            if self._closing.is_set():
                raise CancelledError
            if progress is not None:
                progress(phase, share)

        return report


@dataclass(frozen=True, slots=True)
class _LocalHandle:
    """A request of this engine; see `protocol.Handle`."""

    request: OpenRequest
    flag: Event
    scheduler: Scheduler

    def cancel(self) -> None:
        """End the reply; see `Handle.cancel`."""
        self.flag.set()

    @property
    def place(self) -> int | None:
        """Number of requests that start before this one; see `Handle.place`."""
        return self.scheduler.place_of(self.request)
