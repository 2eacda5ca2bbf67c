"""The engine on this machine: one thread owns the model, any thread may ask."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import replace
from queue import Empty, SimpleQueue
from threading import Event
from types import TracebackType
from typing import Self, TypeVar

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
from idefics_cli.engine.local.scheduling import RequestSchedule, Ticket
from idefics_cli.engine.local.serving import Outcome as ServerOutcome
from idefics_cli.engine.local.serving import Server
from idefics_cli.engine.protocol import Measure, OpenImage, Outcome, Prepared, Session
from idefics_cli.images.loader import ImageLoader
from idefics_cli.models.families.picture import PreparedPicture
from idefics_cli.models.hub.registry import base_model_error
from idefics_cli.models.loading.loader import Loaded, load

_T = TypeVar("_T")
_Put = Callable[[tuple[int, Outcome]], None]
# Processors tell channels from pixels by the length of a side, and cut pictures in four.
_SHORTEST_SIDE = 4
# How often a thread that waits for requests looks whether anybody still wants it to.
_POLL_SECONDS = 0.1


class LocalEngine:
    """Runs a model in this process; see `engine.Engine`.

    Loading and inference happen in one thread of its own, because CUDA graphs and the thread
    count of CPU kernels belong to a thread. `prepare` runs in the caller's.

    Args:
        spec: What to load.
        progress: Told what is going on while loading.

    Raises:
        ModelError: If the model is not there, or broken.
        MemoryLimitError: If it does not fit.
    """

    def __init__(self, spec: LoadSpec, *, progress: Progress | None = None) -> None:
        self.spec = spec
        self._images = ImageLoader(spec.limits, offline=spec.offline)
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="inference")
        self._closing = Event()
        self._inference: Inference | None = None
        try:
            loaded = _result(self._worker.submit(self._load, progress))
        except BaseException as error:
            self._shut(wait=not isinstance(error, KeyboardInterrupt))
            raise
        self._inference = Inference(loaded)
        self.revision = loaded.revision

    @property
    def inference(self) -> Inference:
        """The inference on the model; all but `Inference.preprocess` belongs to one thread.

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
        """See `Engine.context_tokens`."""
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
        """Make an open picture, RGB and upright, ready for the model; see `prepare`."""
        return self.inference.preprocess(_enlarge(image))

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
        stop = self._stop(cancel, abandoned)
        try:
            return _result(self._worker.submit(self._complete, tuple(batch), stop))
        finally:
            # Ctrl-C arrives here, while the work goes on in the other thread.
            abandoned.set()

    def serve(self, *, slots: int, cancel: Event | None = None) -> Session:
        """Open *slots* for requests that come and go; see `Engine.serve`."""
        return _LocalSession(self, slots, cancel)

    def stream(self, prepared: Prepared, *, cancel: Event | None = None) -> Iterator[TokenChunk]:
        """Yield one answer piece by piece; see `Engine.stream`."""
        abandoned = Event()
        queue: SimpleQueue[TokenChunk | None] = SimpleQueue()
        job = self._worker.submit(self._stream, prepared, self._stop(cancel, abandoned), queue.put)
        # Not at the end of the work: closing the engine drops work that has not begun.
        job.add_done_callback(lambda _: queue.put(None))
        try:
            while (chunk := queue.get()) is not None:
                yield chunk
            _result(job)
        finally:
            abandoned.set()

    def close(self) -> None:
        """Stop what runs and free the device memory; idempotent."""
        self._shut(wait=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._shut(wait=not isinstance(error, KeyboardInterrupt))

    def _open_image(self, attachment: Attachment, draft_edge: int) -> Image.Image:
        return self._images.open(attachment, draft_edge=draft_edge)

    def _prepare_picture(self, attachment: Attachment, open_image: OpenImage) -> PreparedPicture:
        inference = self.inference
        if attachment.digest and (known := inference.recall(attachment.digest)) is not None:
            return known
        picture = self.preprocess(open_image(attachment, self.loaded.family.draft_edge))
        if attachment.digest:
            inference.remember(attachment.digest, picture)
        return picture

    def _shut(self, *, wait: bool) -> None:
        # After Ctrl-C nobody waits: neither a prefill nor the reading of weights can be stopped,
        # and both may take minutes.
        self._closing.set()
        self._worker.shutdown(wait=wait, cancel_futures=True)
        self._inference = None
        if wait and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _stop(self, cancel: Event | None, abandoned: Event) -> Flag:
        """Return what is set when the caller cancels, or goes away, or the engine closes."""
        # Never by setting the caller's event, which may be that of other requests too.
        return AnyOf(
            (abandoned, self._closing) if cancel is None else (cancel, abandoned, self._closing)
        )

    def _load(self, progress: Progress | None) -> Loaded:
        if self.spec.threads is not None:
            torch.set_num_threads(self.spec.threads)
        return load(self.spec, report=self._reporter(progress))

    def _reporter(self, progress: Progress | None) -> Progress:
        def report(phase: str, share: float | None) -> None:
            # Called often while a model downloads.
            if self._closing.is_set():
                raise CancelledError
            if progress is not None:
                progress(phase, share)

        return report

    def _measure(self, prepared: Prepared) -> Measure:
        loaded = self.loaded
        return Measure(self.inference.count(prepared), loaded.context_tokens)

    def _complete(self, batch: tuple[Prepared, ...], cancel: Flag) -> list[Completion]:
        answer = self.inference.answer(batch, cancel)
        tokenizer = self.loaded.family.tokenizer
        return [
            _completion(Detokenizer(tokenizer, strip=_strips(prepared)), answer, row)
            for row, prepared in zip(answer.rows, batch, strict=True)
        ]

    def _serve(self, inbox: _Inbox, schedule: RequestSchedule, stop: Flag, put: _Put) -> None:
        tokenizer = self.loaded.family.tokenizer

        def deliver(ticket: Ticket, outcome: ServerOutcome) -> None:
            if isinstance(outcome, Exception):
                put((ticket.index, outcome))
                return
            text = Detokenizer(tokenizer, strip=_strips(ticket.prepared))
            (row,) = outcome.rows
            completion = _completion(text, outcome, row)
            put((ticket.index, replace(completion, at_a_time=ticket.at_a_time)))

        Server(self.inference, schedule, deliver).serve(inbox, stop)

    def _stream(self, prepared: Prepared, cancel: Flag, put: Callable[[TokenChunk], None]) -> None:
        text = Detokenizer(self.loaded.family.tokenizer, strip=_strips(prepared))
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


class _LocalSession:
    """Requests of one thread that are answered in another; see `engine.Session`."""

    def __init__(self, engine: LocalEngine, slots: int, cancel: Event | None) -> None:
        self._schedule = RequestSchedule(slots)
        self._abandoned = Event()
        self._outbox = SimpleQueue[tuple[int, Outcome] | None]()
        stop = engine._stop(cancel, self._abandoned)
        self._inbox = _Inbox(stop)
        self._job = engine._worker.submit(
            engine._serve, self._inbox, self._schedule, stop, self._outbox.put
        )
        # Not at the end of the work: closing the engine drops work that has not begun.
        self._job.add_done_callback(lambda _: self._outbox.put(None))
        self._taken = self._in_works = 0

    @property
    def slots(self) -> int:
        """See `engine.Session`."""
        return self._schedule.settled

    @property
    def room(self) -> int:
        """See `engine.Session`."""
        return max(0, self.slots - self._in_works)

    def put_requests(self, requests: Sequence[Prepared]) -> None:
        """Take *requests*; see `engine.Session`."""
        # At once, so that they are there together when the other thread looks.
        self._inbox.put([Ticket(i, p) for i, p in enumerate(requests, start=self._taken)])
        self._taken += len(requests)
        self._in_works += len(requests)

    def get_outcome(self, timeout_seconds: float | None = None) -> tuple[int, Outcome] | None:
        """Return what ended; see `engine.Session`."""
        if not self._in_works and timeout_seconds is None:
            return None
        try:
            found = self._outbox.get(timeout_seconds != 0, timeout_seconds)
        except Empty:
            return None
        if found is None:
            self._in_works = 0
            _result(self._job)
            return None
        self._in_works -= 1
        return found

    def close(self) -> None:
        """Cancel what is in the works; see `engine.Session`."""
        self._abandoned.set()
        self._inbox.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Inbox:
    """Hands requests of one thread to another."""

    def __init__(self, cancel: Flag) -> None:
        self._queue: SimpleQueue[list[Ticket] | None] = SimpleQueue()
        self._cancel = cancel
        self._is_closed = False

    def put(self, tickets: list[Ticket]) -> None:
        self._queue.put(tickets)

    def close(self) -> None:
        """Let it be known that no more will come."""
        self._queue.put(None)

    def take(self, *, waits: bool) -> list[Ticket]:
        """See `serving.Inbox`."""
        taken: list[Ticket] = []
        while not self._is_closed:
            is_waiting = waits and not taken and not self._cancel.is_set()
            try:
                tickets = self._queue.get(is_waiting, timeout=_POLL_SECONDS)
            except Empty:
                if is_waiting:
                    continue
                break
            if tickets is None:
                self._is_closed = True
            else:
                taken += tickets
        return taken


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
    # A completion goes on where the prompt ends, so its white space means something.
    return prepared.request.mode == "chat"


def _result(job: Future[_T]) -> _T:
    try:
        return job.result()
    except CancelledError:
        raise RuntimeError("the engine was closed meanwhile") from None


def _enlarge(image: Image.Image) -> Image.Image:
    """Return *image* with no side so short that a processor could take it for the channels."""
    # Only the short side grows: of a line of a million pixels the rest would be a picture of
    # gigabytes, and the processor squeezes its length anyway.
    size = (max(image.width, _SHORTEST_SIDE), max(image.height, _SHORTEST_SIDE))
    return image if size == image.size else image.resize(size, Image.Resampling.NEAREST)
