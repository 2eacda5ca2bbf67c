"""The engine on this machine: one thread owns the model, any thread may ask."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from queue import SimpleQueue
from threading import Event
from types import TracebackType
from typing import Self, TypeVar

import torch
from PIL import Image

from idefics_cli.core.errors import ContextError, MemoryLimitError
from idefics_cli.core.types import Completion, GenerationRequest, LoadSpec, TokenChunk
from idefics_cli.engine import Measure, Prepared, Progress
from idefics_cli.engine.decode import OnToken, Row, generate
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
            self._loaded = self._worker.submit(self._load, progress).result()
        except BaseException:
            self.close()
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
        stop = cancel or Event()
        job = self._worker.submit(self._complete, tuple(batch), stop)
        return _wait(job, stop)

    def stream(self, prepared: Prepared, *, cancel: Event | None = None) -> Iterator[TokenChunk]:
        """Yield one answer piece by piece; see `Engine.stream`."""
        stop = cancel or Event()
        queue: SimpleQueue[TokenChunk | None] = SimpleQueue()

        def work() -> None:
            try:
                self._stream(prepared, stop, queue.put)
            finally:
                queue.put(None)

        job = self._worker.submit(work)
        try:
            while (chunk := queue.get()) is not None:
                yield chunk
            job.result()
        finally:
            stop.set()

    def close(self) -> None:
        """Stop what runs and free the device memory; idempotent."""
        self._closing.set()
        self._worker.shutdown(wait=True, cancel_futures=True)
        self._loaded = None
        if torch.cuda.is_available():
            torch.cuda.empty_cache()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _require(self) -> Loaded:
        if self._loaded is None:
            raise RuntimeError("the engine is closed")
        return self._loaded

    def _load(self, progress: Progress | None) -> Loaded:
        if self.spec.threads is not None:
            torch.set_num_threads(self.spec.threads)
        return load(self.spec, report=progress)

    def _measure(self, prepared: Prepared) -> Measure:
        loaded = self._require()
        with _as_memory_limit(1):
            inputs = loaded.family.encode([prepared.request], [prepared.images])
        return Measure(int(inputs["attention_mask"].sum()), loaded.context_tokens)

    def _complete(self, batch: tuple[Prepared, ...], cancel: Event) -> list[Completion]:
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

    def _stream(self, prepared: Prepared, cancel: Event, put: Callable[[TokenChunk], None]) -> None:
        text = Detokenizer(self._require().family.tokenizer, strip=_strips(prepared))

        def on_token(rows: Sequence[Row]) -> None:
            (row,) = rows
            piece = text.feed(row.tokens, last=row.finish is not None)
            if piece or row.finish:
                put(TokenChunk(piece, len(row.tokens), row.finish))

        self._answer((prepared,), cancel, on_token)

    def _answer(
        self, batch: tuple[Prepared, ...], cancel: Event, on_token: OnToken | None = None
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
                cancel=_Either(cancel, self._closing),
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
class _Either:
    """Is set when one of two events is."""

    one: Event
    other: Event

    def is_set(self) -> bool:
        return self.one.is_set() or self.other.is_set()


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


def _wait(job: Future[_T], cancel: Event) -> _T:
    try:
        return job.result()
    except BaseException:
        # Ctrl-C arrives here, while the work goes on in the other thread.
        cancel.set()
        raise


def _enlarge(image: Image.Image) -> Image.Image:
    """Return *image* with no side so short that a processor could take it for the channels."""
    factor = -(-_SHORTEST_SIDE // min(image.size))
    if factor <= 1:
        return image
    size = (image.width * factor, image.height * factor)
    return image.resize(size, Image.Resampling.NEAREST)


@contextmanager
def _as_memory_limit(batch_size: int) -> Iterator[None]:
    """Turn running out of memory, on any device, into our error."""
    try:
        yield
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise _memory_limit(batch_size) from error
    except RuntimeError as error:
        # The CPU allocator and MPS have no class of their own for it (torch 2.13).
        if "allocate memory" in str(error) or "out of memory" in str(error).lower():
            raise _memory_limit(batch_size) from error
        raise


def _memory_limit(batch_size: int) -> MemoryLimitError:
    return MemoryLimitError(
        f"out of memory with {batch_size} prompt{'s' if batch_size > 1 else ''} at a time",
        hint="try fewer or smaller images, `--no-splitting`, `--quantization 4bit`"
        + (", or a smaller `--batch-size`" if batch_size > 1 else ""),
    )
