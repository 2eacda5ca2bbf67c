"""Fakes of an engine and a clock: they keep the promises of the real ones without the work."""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from threading import Event, Lock
from types import TracebackType
from typing import Self

from idefics_cli.core.choices import ChoiceResult
from idefics_cli.core.errors import ContextError, IdeficsError, MemoryLimitError
from idefics_cli.core.types import (
    Completion,
    Finish,
    GenerationRequest,
    LoadSpec,
    Progress,
    TokenChunk,
)
from idefics_cli.engine.local.serving.schedule import RequestSchedule, Ticket
from idefics_cli.engine.protocol import (
    Engine,
    Handle,
    Listener,
    Measure,
    OpenImage,
    Outcome,
    Prepared,
    Urgency,
)
from idefics_cli.engine.schema.choices import choice_result, choices_of
from idefics_cli.models.families.picture import PreparedPicture

Answer = str | Callable[[GenerationRequest], str]
FAKE_DRAFT_EDGE = 32
FAKE_SPEC = LoadSpec(repo="fake/model", family="idefics2", name="fake")


class FakeEngine:
    """Answers from a script and records its requests; a word is a token.

    Args:
        answers: One text for each request in turn; the last may be a function of the request,
            which answers all later requests.
        image_errors: The error that `prepare` raises, by the source of an attachment.
        sizes: Width and height of the picture of a source; 64x48 if absent.
        completion_error: Called before each `complete` and each stream; the error that it returns
            is raised.
        interrupt_after: Number of words after which the user presses Ctrl-C.
        spec: The spec of the engine.
        revision: The commit of its weights.
        context_tokens: The length of its context.

    Attributes:
        requests: Every request answered, in order.
        batches: The size of each call of `complete`.
        prepared: Every request prepared.
        measured: Every request measured or streamed: each is one pass of the tokenizer.
        opened: The digest, else the source, of every picture that `open_image` opened.
        is_closed: Whether `close` was called.
    """

    def __init__(
        self,
        *answers: Answer,
        image_errors: Mapping[str, IdeficsError] | None = None,
        sizes: Mapping[str, tuple[int, int]] | None = None,
        completion_error: Callable[[Sequence[GenerationRequest]], Exception | None] | None = None,
        interrupt_after: int | None = None,
        spec: LoadSpec = FAKE_SPEC,
        revision: str | None = "0123abc",
        context_tokens: int = 1000,
    ) -> None:
        self.context_tokens = context_tokens
        self.spec = spec
        self.revision = revision
        self.requests: list[GenerationRequest] = []
        self.batches: list[int] = []
        self.prepared: list[GenerationRequest] = []
        self.measured: list[GenerationRequest] = []
        self.opened: list[str] = []
        self.is_closed = False
        self._answers = list(answers)
        self._image_errors = image_errors or {}
        self._sizes = sizes or {}
        self._completion_error = completion_error
        self._interrupt_after = interrupt_after
        self._lock = Lock()

    def __getstate__(self) -> dict[str, object]:
        """Return the state for a copy in another process."""
        return {name: value for name, value in vars(self).items() if name != "_lock"}

    def __setstate__(self, state: Mapping[str, object]) -> None:
        """Set the state of a copy."""
        vars(self).update(state)
        self._lock = Lock()

    def prepare(
        self, request: GenerationRequest, *, open_image: OpenImage | None = None
    ) -> Prepared:
        """Make a picture for each attachment, a tile per 1000 pixels of its width.

        Only an attachment with a digest is opened by `open_image`, and remembered by the digest.
        """
        with self._lock:
            self.prepared.append(request)
        pictures = []
        for attachment in request.attachments:
            if error := self._image_errors.get(attachment.source):
                raise error
            if open_image and attachment.digest and attachment.digest not in self.opened:
                open_image(attachment, FAKE_DRAFT_EDGE)
                self.opened.append(attachment.digest or attachment.source)
            size = self._sizes.get(attachment.source, (64, 48))
            tiles = ((size[1], size[0]),) * max(1, size[0] // 1000)
            pictures.append(PreparedPicture(os.fsencode(attachment.source), size, tiles))
        return Prepared(request, tuple(pictures))

    def measure(self, prepared: Prepared) -> Measure:
        """Count words, and ten tokens for each picture."""
        self.measured.append(prepared.request)
        return self._measure(prepared)

    def complete(
        self, batch: Sequence[Prepared], *, cancel: Event | None = None
    ) -> list[Completion]:
        """Answer each request of *batch* by joining its stream."""
        self.batches.append(len(batch))
        self._raise_scripted([prepared.request for prepared in batch])
        return [self._complete(prepared, cancel) for prepared in batch]

    def serve(self, *, slots: int, cancel: Event | None = None) -> FakeSession:
        """Open slots that are filled when all of them are free, and answered by `complete`."""
        self._check_open()
        if slots < 1:
            raise ValueError(f"slots must be 1 or more, not {slots}")
        return FakeSession(self, slots, cancel)

    def stream(self, prepared: Prepared, *, cancel: Event | None = None) -> Iterator[TokenChunk]:
        """Yield the next answer of the script word by word."""
        self.measured.append(prepared.request)
        measure = self._measure(prepared)
        if measure.room < 1:
            raise ContextError(
                f"the prompt has {measure.prompt_tokens} tokens,"
                f" and the model takes {measure.context_tokens}",
                prompt_tokens=measure.prompt_tokens,
                context_tokens=measure.context_tokens,
            )
        self._raise_scripted([prepared.request])
        return self._stream(prepared, cancel)

    def submit(
        self,
        prepared: Prepared,
        listen: Listener,
        *,
        urgency: Urgency = "interactive",
        streams: bool = False,
    ) -> Handle:
        """Answer at once, before it returns."""
        self._check_open()
        self._raise_scripted([prepared.request])
        chunks = list(self._stream(prepared, None))
        for chunk in chunks if streams else ():
            if chunk.text:
                listen(replace(chunk, finish=None))
        listen(self._completion(prepared, chunks))
        return FakeHandle()

    def close(self) -> None:
        """Remember that it was called."""
        self.is_closed = True

    def _check_open(self) -> None:
        if self.is_closed:
            raise RuntimeError("the engine is closed")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _measure(self, prepared: Prepared) -> Measure:
        words = sum(len(m.text.split()) for m in prepared.request.messages)
        return Measure(words + 10 * len(prepared.pictures), self.context_tokens)

    def _complete(self, prepared: Prepared, cancel: Event | None) -> Completion:
        return self._completion(prepared, list(self._stream(prepared, cancel)))

    def _completion(self, prepared: Prepared, chunks: Sequence[TokenChunk]) -> Completion:
        finish = chunks[-1].finish
        assert finish is not None
        text = "".join(chunk.text for chunk in chunks)
        choice = _choice(prepared.request, text)
        return Completion(
            text=choice.best[0] if choice else text,
            prompt_tokens=self._measure(prepared).prompt_tokens,
            reused_tokens=0,
            new_tokens=chunks[-1].new_tokens,
            finish=finish,
            prefill_seconds=0.25,
            decode_seconds=0.5,
            choice=choice,
        )

    def _stream(self, prepared: Prepared, cancel: Event | None) -> Iterator[TokenChunk]:
        self.requests.append(prepared.request)
        limit = prepared.request.sampling.max_new_tokens
        prompt_tokens = self._measure(prepared).prompt_tokens
        made = 0
        finish: Finish = "stop"
        for word in self._next_answer(prepared.request).split(" "):
            if made == self._interrupt_after:
                raise KeyboardInterrupt
            if cancel is not None and cancel.is_set():
                finish = "cancelled"
                break
            if made == limit:
                finish = "length"
                break
            made += 1
            yield TokenChunk(word if made == 1 else f" {word}", made, prompt_tokens=prompt_tokens)
        if finish == "stop" and made < limit:
            made += 1  # the end token, which needs its place too
        elif finish == "stop":
            finish = "length"
        yield TokenChunk(
            "",
            made,
            finish,
            prompt_tokens=prompt_tokens,
            prefill_seconds=0.25,
            decode_seconds=0.5,
        )

    def _next_answer(self, request: GenerationRequest) -> str:
        assert self._answers, f"asked more than scripted: {request}"
        answer = self._answers[0]
        if isinstance(answer, str):
            return str(self._answers.pop(0))
        return answer(request)

    def _raise_scripted(self, requests: Sequence[GenerationRequest]) -> None:
        error = self._completion_error(requests) if self._completion_error else None
        if error is not None:
            raise error


def _choice(request: GenerationRequest, text: str) -> ChoiceResult | None:
    """Return nine tenths for the choice that *text* is, and the rest in equal parts."""
    if request.constraint is None or request.constraint.kind != "choice":
        return None
    choices = choices_of(request.constraint)
    rest = 0.1 / max(1, len(choices) - 1)
    return choice_result(choices, [[math.log(0.9 if c == text else rest)] for c in choices])


class EngineOf:
    """A factory that returns an existing engine.

    Args:
        engine: The engine that every call returns.
        phases: The phases of loading that every call reports.
    """

    def __init__(self, engine: Engine, *, phases: Sequence[str] = ()) -> None:
        self._engine = engine
        self._phases = phases

    def __call__(self, *, progress: Progress | None = None) -> Engine:
        """Report the phases, and return the engine."""
        if progress is not None:
            for phase in self._phases:
                progress(phase, None)
        return self._engine


class FakeHandle:
    """A request that has ended."""

    place: int | None = None

    def cancel(self) -> None:
        """Do nothing: the reply has ended."""


class FakeSession:
    """Answers requests by `complete`, in the batches that the real schedule chooses."""

    def __init__(self, engine: FakeEngine, slots: int, cancel: Event | None) -> None:
        self._engine = engine
        self._cancel = cancel
        self._schedule: RequestSchedule[Ticket] = RequestSchedule(slots)
        self._ended: deque[tuple[int, Outcome]] = deque()
        self._count = self._open_count = 0

    @property
    def slots(self) -> int:
        """Maximum number of requests at a time."""
        return self._schedule.settled

    @property
    def room(self) -> int:
        """Number of requests that may be added now."""
        return max(0, self.slots - self._open_count)

    def put_requests(self, requests: Sequence[Prepared]) -> None:
        """Add *requests*."""
        self._schedule.add(Ticket(i, p) for i, p in enumerate(requests, start=self._count))
        self._count += len(requests)
        self._open_count += len(requests)
        assert self._open_count <= self.slots, "more requests than there was room for"

    def get_outcome(self, timeout_seconds: float | None = None) -> tuple[int, Outcome] | None:
        """Return the next outcome; if it may wait, answer a batch first.

        If no request is open, it waits less long than it may.
        """
        if timeout_seconds != 0:
            while self._open_count and not self._ended:
                self._answer(self._schedule.choose(0))
            if not self._ended:
                assert timeout_seconds is not None, "no request is open"
                time.sleep(min(timeout_seconds, 0.001))  # nobody waits for a slow model
        if not self._ended:
            return None
        self._open_count -= 1
        return self._ended.popleft()

    def close(self) -> None:
        """Do nothing: no request runs in the background."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _answer(self, tickets: Sequence[Ticket]) -> None:
        assert tickets, "a request is open, but none waits"
        try:
            batch = [ticket.prepared for ticket in tickets]
            completions = self._engine.complete(batch, cancel=self._cancel)
        except MemoryLimitError as error:
            if (failed := self._schedule.retry_with_fewer(tickets)) is not None:
                self._end(failed, error)
        except Exception as error:
            if (failed := self._schedule.retry_singly(tickets, tried=len(tickets))) is not None:
                self._end(failed, error)
        else:
            for ticket, completion in zip(tickets, completions, strict=True):
                self._end(ticket, completion, count=len(tickets))

    def _end(self, ticket: Ticket, outcome: Outcome, *, count: int = 1) -> None:
        self._schedule.end(ticket, fits=not isinstance(outcome, MemoryLimitError))
        if isinstance(outcome, Completion):
            outcome = replace(
                outcome,
                at_a_time=ticket.at_a_time,
                prefill_seconds=outcome.prefill_seconds / count,
                decode_seconds=outcome.decode_seconds / count,
            )
        self._ended.append((ticket.index, outcome))


class FakeClock:
    """A clock that advances by *step* seconds with every call."""

    def __init__(self, step: float = 1.0) -> None:
        self.now = 0.0
        self.step = step

    def __call__(self) -> float:
        """Return the time, in seconds."""
        self.now += self.step
        return self.now
