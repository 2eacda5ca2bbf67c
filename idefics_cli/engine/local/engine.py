"""The local engine: one thread owns the model, and any thread may call the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import replace
from queue import SimpleQueue
from threading import Event
from types import TracebackType
from typing import Protocol, Self

import torch
from PIL import Image

from idefics_cli.core.types import (
    Attachment,
    Completion,
    GenerationRequest,
    LoadSpec,
    Progress,
    TokenChunk,
)
from idefics_cli.engine.local.cancel import AnyOf, Flag
from idefics_cli.engine.local.decode.detokenize import Detokenizer
from idefics_cli.engine.local.decode.sampling import BatchRow
from idefics_cli.engine.local.inference import BatchAnswer, Inference
from idefics_cli.engine.local.memory import free_device_memory
from idefics_cli.engine.local.scheduling import RequestSchedule, Ticket
from idefics_cli.engine.local.serving import Inbox, Server
from idefics_cli.engine.local.serving import Outcome as ServerOutcome
from idefics_cli.engine.local.session import LocalSession, OnOutcome
from idefics_cli.engine.local.worker import result_of
from idefics_cli.engine.protocol import Measure, OpenImage, Prepared, Session
from idefics_cli.images.loader import ImageLoader
from idefics_cli.models.families.picture import PreparedPicture
from idefics_cli.models.hub.registry import base_model_error
from idefics_cli.models.loading.loader import Loaded, load

# A side of 1 or 3 pixels would look like channels, which image processors recognise by the length
# of a side. Some also cut a picture in four. So 4 is the shortest side.
_SHORTEST_SIDE = 4


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
        self._images = ImageLoader(spec.limits, offline=spec.offline)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inference")
        self._closing = Event()
        self._inference: Inference | None = None
        try:
            loaded = result_of(self._worker.submit(self._load, load, progress))
        except BaseException as error:
            self._shut_down(wait=not isinstance(error, KeyboardInterrupt))
            raise
        self._inference = make_inference(loaded)
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

    def prepare(
        self, request: GenerationRequest, *, open_image: OpenImage | None = None
    ) -> Prepared:
        """Open the images of *request* and cut and scale them; see `Engine.prepare`."""
        loaded = self.loaded
        if request.mode == "chat" and not loaded.family.chats:
            raise base_model_error(self.spec.name or self.spec.repo)
        loaded.family.check(request)
        opener = open_image or self._open_image
        pictures = (self._prepare_picture(each, opener) for each in request.attachments)
        return Prepared(request, tuple(pictures))

    def preprocess(self, image: Image.Image) -> PreparedPicture:
        """Cut, scale and normalise an open picture, RGB and upright; see `prepare`."""
        return self.inference.preprocess(_enlarged(image))

    def measure(self, prepared: Prepared) -> Measure:
        """Count the tokens of a prompt; see `Engine.measure`."""
        return self._worker.submit(self._measure, prepared).result()

    def complete(
        self, batch: Sequence[Prepared], *, cancel: Event | None = None
    ) -> list[Completion]:
        """Answer *batch* in order; see `Engine.complete`."""
        if not batch:
            return []
        abandoned = Event()
        stop = self._stop_flag(cancel, abandoned)
        try:
            return result_of(self._worker.submit(self._complete, tuple(batch), stop))
        finally:
            # Ctrl-C interrupts this thread, and would leave the inference thread running.
            abandoned.set()

    def serve(self, *, slots: int, cancel: Event | None = None) -> Session:
        """Open a session of *slots*; see `Engine.serve`."""
        abandoned = Event()
        return LocalSession(
            slots,
            stop=self._stop_flag(cancel, abandoned),
            abandoned=abandoned,
            start=lambda *arguments: self._worker.submit(self._serve, *arguments),
        )

    def stream(self, prepared: Prepared, *, cancel: Event | None = None) -> Iterator[TokenChunk]:
        """Yield one answer piece by piece; see `Engine.stream`."""
        abandoned = Event()
        queue: SimpleQueue[TokenChunk | None] = SimpleQueue()
        stop = self._stop_flag(cancel, abandoned)
        job = self._worker.submit(self._stream, prepared, stop, queue.put)
        # The end mark comes from a callback, because an engine that closes drops jobs that have
        # not started, and `_stream` then puts nothing.
        job.add_done_callback(lambda _: queue.put(None))
        try:
            while (chunk := queue.get()) is not None:
                yield chunk
            result_of(job)
        finally:
            abandoned.set()

    def close(self) -> None:
        """Stop what runs and free the device memory; idempotent."""
        self._shut_down(wait=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._shut_down(wait=not isinstance(error, KeyboardInterrupt))

    def _open_image(self, attachment: Attachment, draft_edge: int) -> Image.Image:
        return self._images.open(attachment, draft_edge=draft_edge)

    def _prepare_picture(self, attachment: Attachment, open_image: OpenImage) -> PreparedPicture:
        inference = self.inference
        if (
            attachment.digest
            and (known := inference.pictures.find_file(attachment.digest)) is not None
        ):
            return known
        picture = self.preprocess(open_image(attachment, self.loaded.family.draft_edge))
        if attachment.digest:
            inference.pictures.add_file(attachment.digest, picture)
        return picture

    def _shut_down(self, *, wait: bool) -> None:
        # Callers pass False after Ctrl-C: a prefill, and the reading of weights, may take minutes
        # and cannot be interrupted.
        self._closing.set()
        self._worker.shutdown(wait=wait, cancel_futures=True)
        self._inference = None
        if wait:
            free_device_memory()

    def _stop_flag(self, cancel: Event | None, abandoned: Event) -> Flag:
        """Return a flag that is set when *cancel* or *abandoned* is, or when the engine closes."""
        # A new flag, because *cancel* may belong to other requests too and must not be set here.
        return AnyOf(
            (abandoned, self._closing) if cancel is None else (cancel, abandoned, self._closing)
        )

    def _load(self, load: Load, progress: Progress | None) -> Loaded:
        if self.spec.threads is not None:
            torch.set_num_threads(self.spec.threads)
        # cuDNN's attention gives wrong replies on data-centre Blackwell with few heads of keys
        # (torch 2.11 to 2.13, pytorch #193893), and plans each new length for half a second.
        torch.backends.cuda.enable_cudnn_sdp(False)
        return load(self.spec, report=self._reporter(progress))

    def _reporter(self, progress: Progress | None) -> Progress:
        def report(phase: str, share: float | None) -> None:
            # A download calls this often. The error is what ends it when the engine closes.
            if self._closing.is_set():
                raise CancelledError
            if progress is not None:
                progress(phase, share)

        return report

    def _detokenizer(self, prepared: Prepared) -> Detokenizer:
        family = self.loaded.family
        return Detokenizer(family.tokenizer, strip=_strips(prepared), hidden=family.hidden_ids)

    def _measure(self, prepared: Prepared) -> Measure:
        return Measure(self.inference.count_tokens(prepared), self.context_tokens)

    def _complete(self, batch: tuple[Prepared, ...], cancel: Flag) -> list[Completion]:
        answer = self.inference.answer(batch, cancel)
        return [
            _completion(self._detokenizer(prepared), answer, row)
            for row, prepared in zip(answer.rows, batch, strict=True)
        ]

    def _serve(
        self, inbox: Inbox, schedule: RequestSchedule, stop: Flag, on_outcome: OnOutcome
    ) -> None:
        def deliver(ticket: Ticket, outcome: ServerOutcome) -> None:
            if isinstance(outcome, Exception):
                on_outcome((ticket.index, outcome))
                return
            text = self._detokenizer(ticket.prepared)
            (row,) = outcome.rows
            completion = _completion(text, outcome, row)
            on_outcome((ticket.index, replace(completion, at_a_time=ticket.at_a_time)))

        Server(self.inference, schedule, deliver).serve(inbox, stop)

    def _stream(self, prepared: Prepared, cancel: Flag, put: Callable[[TokenChunk], None]) -> None:
        text = self._detokenizer(prepared)
        last = ""

        def on_token(rows: Sequence[BatchRow]) -> None:
            nonlocal last
            (row,) = rows
            piece = text.feed(row.tokens, last=row.finish is not None)
            if row.finish:
                last = piece
            elif piece:
                put(TokenChunk(piece, len(row.tokens), prompt_tokens=len(row.prompt)))

        answer = self.inference.answer((prepared,), cancel, on_token)
        (row,) = answer.rows
        put(
            TokenChunk(
                last,
                len(row.tokens),
                row.finish or "cancelled",
                prompt_tokens=len(row.prompt),
                reused_tokens=answer.reused_tokens,
                prefill_seconds=answer.prefill_seconds,
                decode_seconds=answer.decode_seconds,
            )
        )


def _completion(text: Detokenizer, answer: BatchAnswer, row: BatchRow) -> Completion:
    return Completion(
        text=text.whole(row.tokens),
        prompt_tokens=len(row.prompt),
        reused_tokens=answer.reused_tokens,
        new_tokens=len(row.tokens),
        finish=row.finish or "cancelled",
        prefill_seconds=answer.prefill_seconds,
        decode_seconds=answer.decode_seconds,
        token_ids=tuple(row.tokens),
    )


def _strips(prepared: Prepared) -> bool:
    # A completion continues the text of the prompt, so its white space matters.
    return prepared.request.mode == "chat"


def _enlarged(image: Image.Image) -> Image.Image:
    """Return *image* with no side so short that a processor takes it for the channels."""
    # Only the short side grows. If the long side grew too, a line of a million pixels would become
    # gigabytes, although the processor then shrinks it.
    size = (max(image.width, _SHORTEST_SIDE), max(image.height, _SHORTEST_SIDE))
    return image if size == image.size else image.resize(size, Image.Resampling.NEAREST)
