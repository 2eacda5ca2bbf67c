"""The engine on this machine: one thread owns the model, any thread may ask."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event
from types import TracebackType
from typing import Self, TypeVar

import torch
from PIL import Image

from idefics_cli.core.errors import ContextError, MemoryLimitError
from idefics_cli.core.types import Completion, GenerationRequest, LoadSpec, Progress, TokenChunk
from idefics_cli.engine import Measure, Prepared
from idefics_cli.engine.decode import Flag, OnToken, Row, generate
from idefics_cli.engine.detokenize import Detokenizer
from idefics_cli.models.families.base import Inputs, check_ids
from idefics_cli.models.images import ImageLoader
from idefics_cli.models.loader import Loaded, load
from idefics_cli.models.registry import base_model_error

_T = TypeVar("_T")
# Processors tell channels from pixels by the length of a side, and cut pictures in four.
_SHORTEST_SIDE = 4


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
        self._loaded: Loaded | None = None
        try:
            self._loaded = _result(self._worker.submit(self._load, progress))
        except BaseException as error:
            self._shut(wait=not isinstance(error, KeyboardInterrupt))
            raise
        self.revision = self._loaded.revision

    def prepare(self, request: GenerationRequest) -> Prepared:
        """Open the images of *request*; see `Engine.prepare`."""
        loaded = self._require()
        if request.mode == "chat" and not loaded.family.chats:
            raise base_model_error(self.spec.name or self.spec.repo)
        loaded.family.check(request)
        edge = loaded.family.draft_edge
        images = tuple(
            _enlarge(self._images.open(attachment, draft_edge=edge))
            for attachment in request.attachments
        )
        return Prepared(request, images)

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

    def _shut(self, *, wait: bool) -> None:
        # After Ctrl-C nobody waits: neither a prefill nor the reading of weights can be stopped,
        # and both may take minutes.
        self._closing.set()
        self._worker.shutdown(wait=wait, cancel_futures=True)
        self._loaded = None
        if wait and torch.cuda.is_available():
            torch.cuda.empty_cache()

    def _stop(self, cancel: Event | None, abandoned: Event) -> Flag:
        """Return what is set when the caller cancels, or goes away, or the engine closes."""
        # Never by setting the caller's event, which may be that of other requests too.
        return _AnyOf(
            (abandoned, self._closing) if cancel is None else (cancel, abandoned, self._closing)
        )

    def _require(self) -> Loaded:
        if self._loaded is None:
            raise RuntimeError("the engine is closed")
        return self._loaded

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
        loaded = self._require()
        with _as_memory_limit(1):
            inputs = loaded.family.encode([prepared.request], [prepared.images])
        return Measure(int(inputs["attention_mask"].sum()), loaded.context_tokens)

    def _complete(self, batch: tuple[Prepared, ...], cancel: Flag) -> list[Completion]:
        answer = self._answer(batch, cancel)
        tokenizer = self._require().family.tokenizer
        return [
            Completion(
                text=Detokenizer(tokenizer, strip=_strips(prepared)).whole(row.tokens),
                prompt_tokens=len(row.prompt),
                reused_tokens=0,
                new_tokens=len(row.tokens),
                finish=row.finish or "cancelled",
                prefill_seconds=answer.prefill_seconds,
                decode_seconds=answer.decode_seconds,
                token_ids=tuple(row.tokens),
            )
            for row, prepared in zip(answer.rows, batch, strict=True)
        ]

    def _stream(self, prepared: Prepared, cancel: Flag, put: Callable[[TokenChunk], None]) -> None:
        text = Detokenizer(self._require().family.tokenizer, strip=_strips(prepared))
        last = ""

        def on_token(rows: Sequence[Row]) -> None:
            nonlocal last
            (row,) = rows
            piece = text.feed(row.tokens, last=row.finish is not None)
            if row.finish:
                last = piece
            elif piece:
                put(TokenChunk(piece, len(row.tokens)))

        answer = self._answer((prepared,), cancel, on_token)
        (row,) = answer.rows
        put(
            TokenChunk(
                last,
                len(row.tokens),
                row.finish or "cancelled",
                prompt_tokens=len(row.prompt),
                prefill_seconds=answer.prefill_seconds,
                decode_seconds=answer.decode_seconds,
            )
        )

    def _answer(
        self, batch: tuple[Prepared, ...], cancel: Flag, on_token: OnToken | None = None
    ) -> _Answer:
        loaded = self._require()
        started = prefilled = time.perf_counter()

        def on_prefilled() -> None:
            nonlocal prefilled
            prefilled = time.perf_counter()

        with _as_memory_limit(len(batch)):
            inputs = loaded.family.encode(
                [prepared.request for prepared in batch], [prepared.images for prepared in batch]
            )
            check_ids(inputs["input_ids"], loaded.vocabulary)
            rows = _rows(batch, inputs, loaded.context_tokens)
            generate(
                loaded.model,
                loaded.family,
                inputs,
                rows,
                cancel=cancel,
                on_prefilled=on_prefilled,
                on_token=on_token,
            )
        return _Answer(rows, prefilled - started, time.perf_counter() - prefilled)


@dataclass(frozen=True, slots=True)
class _Answer:
    rows: Sequence[Row]
    prefill_seconds: float
    decode_seconds: float


@dataclass(frozen=True, slots=True)
class _AnyOf:
    """Is set when one of several flags is."""

    flags: tuple[Flag, ...]

    def is_set(self) -> bool:
        return any(flag.is_set() for flag in self.flags)


def _rows(batch: Sequence[Prepared], inputs: Inputs, context_tokens: int) -> list[Row]:
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
                hint="fewer or smaller images, `--no-splitting`, or a shorter text",
            )
        sampling = prepared.request.sampling
        rows.append(Row(sampling, prompt, min(sampling.max_new_tokens, room)))
    return rows


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


@contextmanager
def _as_memory_limit(batch_size: int) -> Iterator[None]:
    """Turn running out of memory, on any device, into our error."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        _free_tensors(error)
        raise _memory_limit(batch_size) from error
    except RuntimeError as error:
        # The CPU allocator and MPS have no class of their own for it (torch 2.13).
        if "allocate memory" in str(error) or "out of memory" in str(error).lower():
            _free_tensors(error)
            raise _memory_limit(batch_size) from error
        raise


def _free_tensors(error: BaseException) -> None:
    """Let go of what the frames below *error* hold, as the KV cache of the batch.

    Whoever tries a smaller batch next does so while the error may still be referred to.
    """
    traceback.clear_frames(error.__traceback__)


def _memory_limit(batch_size: int) -> MemoryLimitError:
    return MemoryLimitError(
        f"out of memory with {batch_size} prompt{'s' if batch_size > 1 else ''} at a time",
        hint="try fewer or smaller images, `--no-splitting`, `--quantization 4bit`"
        + (", or a smaller `--batch-size`" if batch_size > 1 else ""),
    )
