"""The interface of engines. It holds no tensors and is cheap to import."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Event
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, Self, runtime_checkable

from idefics_cli.core.types import (
    Attachment,
    Completion,
    GenerationRequest,
    LoadSpec,
    Progress,
    TokenChunk,
)

if TYPE_CHECKING:
    from idefics_cli.images.media import Media
    from idefics_cli.models.families.picture import PictureShape, PreparedPicture

OpenImage = Callable[[Attachment, int], "Media"]
"""Opens the image of an attachment, RGB and upright, with `info["original_size"]`; or its video,
if the model takes videos, which the engine closes.

The second argument is the draft edge in pixels: a JPEG may be decoded at a reduced size whose sides
are both at least this long. See `ImageLoader.open`.
"""


@runtime_checkable
class FileOpener(Protocol):
    """An `OpenImage` that also gives the bytes of the file, for an engine that sends them on."""

    def __call__(self, attachment: Attachment, draft_edge: int, /) -> Media:
        """Open the image or video of an attachment."""
        ...

    def read_file(self, attachment: Attachment) -> bytes:
        """Return the bytes of the file.

        Raises:
            ImageError: If it cannot be read.
        """
        ...


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request, and its pictures in the order of the conversation, without pixels.

    It pickles to another process without torch. The engine that prepared it holds the pixels,
    within a limit of memory. If they are gone when the request is submitted, or if it is submitted
    to another engine, the pictures are opened again by their `Attachment.source`.
    """

    request: GenerationRequest
    pictures: tuple[PreparedPicture, ...] = ()

    @property
    def shape_key(self) -> tuple[PictureShape, ...]:
        """The shapes of the pictures.

        Requests of equal keys have the same number of image tokens, and their pictures can be
        encoded in one forward.
        """
        return tuple(picture.shape for picture in self.pictures)


@dataclass(frozen=True, slots=True)
class Measure:
    """The size of a prompt, and of the model's context.

    Attributes:
        prompt_tokens: Number of tokens of the prompt, image tokens included.
        context_tokens: Number of tokens that the model takes, prompt and reply together.
    """

    prompt_tokens: int
    context_tokens: int

    @property
    def room(self) -> int:
        """Tokens left for the reply; negative if the prompt is too long."""
        return self.context_tokens - self.prompt_tokens


Outcome = Completion | Exception
"""The answer to a request, or the error that made it fail."""


def last_chunk(completion: Completion) -> TokenChunk:
    """Return the chunk that ends the stream of *completion*: no text, but all the figures."""
    return TokenChunk(
        "",
        completion.new_tokens,
        completion.finish,
        prompt_tokens=completion.prompt_tokens,
        reused_tokens=completion.reused_tokens,
        prefill_seconds=completion.prefill_seconds,
        decode_seconds=completion.decode_seconds,
    )


Urgency = Literal["interactive", "batch"]
"""How soon a request should start: someone waits for it, or it is one of many."""


class Listener(Protocol):
    """Receives the events of one request."""

    def __call__(self, event: TokenChunk | Outcome, /) -> None:
        """Receive a piece of the reply, or the outcome, which comes last and exactly once.

        The inference thread calls this between two tokens, so it must return at once. An error
        that it raises cancels the request.
        """
        ...


class Handle(Protocol):
    """A request that was submitted. Safe in any thread."""

    def cancel(self) -> None:
        """End the reply after the current token; a request that waits ends at once. Idempotent.

        The listener still gets the outcome: a `Completion` that says "cancelled", unless the reply
        ended before.
        """
        ...

    @property
    def place(self) -> int | None:
        """Number of requests of the same urgency that start before this one; None if it started."""
        ...


class Session(Protocol):
    """Answers requests, and returns their outcomes in any order. One thread owns the session.

    A request that fails does not affect the others. When the memory runs out, the session halves
    the number of requests that run at a time, down to one. The interrupted requests continue later.
    """

    @property
    def slots(self) -> int:
        """Maximum number of requests at a time; it becomes smaller when the memory runs out.

        A session with a server begins with one, and finds the best number by measuring.
        """
        ...

    @property
    def room(self) -> int:
        """Number of requests that may be added now."""
        ...

    def put_requests(self, requests: Sequence[Prepared]) -> None:
        """Add *requests*.

        The session numbers its requests from 0 in the order in which they are added. Requests of
        one call start together if there is room and `batching.choose_group` puts them into one
        group.
        """
        ...

    def get_outcome(self, timeout_seconds: float | None = None) -> tuple[int, Outcome] | None:
        """Return the number and the outcome of the next request that ends.

        Requests that ran together share their time: the seconds of each answer are its share.

        Args:
            timeout_seconds: How long to wait; 0 does not wait, None waits until one ends.

        Returns:
            None if no request ended in time, if no request is open, or if `cancel` of
            `Engine.serve` is set and no request will end any more.

        Raises:
            NoServerError: If a server answers no request any more.
        """
        ...

    def close(self) -> None:
        """Cancel the open requests; idempotent."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class Engine(Protocol):
    """A loaded model that answers requests. Every method may be called from any thread."""

    spec: LoadSpec
    revision: str | None
    """The commit of the loaded weights, if the Hub cache knows it."""

    @property
    def context_tokens(self) -> int:
        """Number of tokens that the model takes, prompt and reply together; 0 if unknown."""
        ...

    def prepare(
        self, request: GenerationRequest, *, open_image: OpenImage | None = None
    ) -> Prepared:
        """Open and preprocess the images of *request*, on the CPU.

        If the engine already knows a file by `Attachment.digest`, it does not open it again. If it
        only knows the pixels of an image, it opens the image, but does not preprocess it again.

        Args:
            request: The request to prepare.
            open_image: Opens the images; None opens each by its `Attachment.source`.

        Raises:
            ImageError: If an image cannot be opened or exceeds a limit.
            PromptError: If the model cannot take this kind of request.
        """
        ...

    def measure(self, prepared: Prepared) -> Measure | None:
        """Count the tokens of a prompt as `complete` would, without running the model.

        It does not wait for requests that run. None if the engine cannot count them: the model is
        on a server.
        """
        ...

    def submit(
        self,
        prepared: Prepared,
        listen: Listener,
        *,
        urgency: Urgency = "interactive",
        streams: bool = False,
    ) -> Handle:
        """Add a request to those that run, and return at once.

        An interactive request takes any free slot. Its prompt runs in pieces between the tokens of
        the others. A reply that must give way, because the memory ran out or because another
        request failed, goes on later with its next token.

        Args:
            prepared: The request.
            listen: Receives the events.
            urgency: A "batch" request starts after the interactive ones, but does not wait forever.
            streams: Whether the events hold the text while it is generated.

        Raises:
            PromptError: If the model cannot take the prompt.
            RuntimeError: If the engine is closed. Then *listen* receives nothing.
        """
        ...

    def complete(
        self, batch: Sequence[Prepared], *, cancel: Event | None = None
    ) -> list[Completion]:
        """Answer *batch* in order; block until the last reply has ended.

        Args:
            batch: Requests of any prompt length, sampling and image count.
            cancel: When it is set, every reply ends after the current token. Replies without a
                token end after the current picture, or after some hundred tokens of the prompt.

        Raises:
            PromptError: If the model cannot take a prompt.
            MemoryLimitError: If the device has too little memory for this batch.
            ModelError: If the logits contain NaN or infinity.
        """
        ...

    def serve(self, *, slots: int, cancel: Event | None = None) -> Session:
        """Open a session that answers *slots* requests at a time: when one ends, the next starts.

        Args:
            slots: Maximum number of requests at a time.
            cancel: When it is set, every reply ends after the current token, and requests that
                have not started get no outcome.

        Returns:
            The session. Its requests are batch work: interactive requests start before them.

        Raises:
            ValueError: If *slots* is less than 1.
            RuntimeError: If the engine is closed.
        """
        ...

    def stream(self, prepared: Prepared, *, cancel: Event | None = None) -> Iterator[TokenChunk]:
        """Yield one answer piece by piece; closing the iterator stops generation.

        The texts join to the text of `complete`. After *cancel* is set, the `finish` of the last
        chunk is "cancelled".
        """
        ...

    def close(self) -> None:
        """End all requests and free the device memory; idempotent.

        A listener may call it. Then it does not wait until the memory is free.
        """
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class EngineFactory(Protocol):
    """Makes an engine. A factory can be pickled and called in another process."""

    def __call__(self, *, progress: Progress | None = None) -> Engine:
        """Load the model. Until it is loaded, another thread may call *progress*."""
        ...
