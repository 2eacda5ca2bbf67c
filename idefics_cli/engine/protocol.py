"""The engine as its callers see it: no tensors, and cheap to import."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from threading import Event
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

from idefics_cli.core.types import (
    Attachment,
    Completion,
    GenerationRequest,
    LoadSpec,
    Progress,
    TokenChunk,
)

if TYPE_CHECKING:
    from PIL.Image import Image

    from idefics_cli.models.families.picture import PictureShape, PreparedPicture

OpenImage = Callable[[Attachment, int], "Image"]
"""Opens the image of an attachment, RGB and upright, with `info["original_size"]`.

The number is the draft edge of the model in pixels: a JPEG may be decoded at a reduced size as long
as both its sides are at least this long. See `ImageLoader.open`.
"""


@dataclass(frozen=True, slots=True)
class Prepared:
    """A request whose pictures are ready for the model, in the order of the conversation."""

    request: GenerationRequest
    pictures: tuple[PreparedPicture, ...] = ()

    @property
    def shape_key(self) -> tuple[PictureShape, ...]:
        """Requests of equal keys take as many image tokens and encode in the same shapes."""
        return tuple(picture.shape for picture in self.pictures)


@dataclass(frozen=True, slots=True)
class Measure:
    """How much of the model's context a prompt takes.

    Attributes:
        prompt_tokens: Of the prompt, image tokens included.
        context_tokens: What the model takes, prompt and reply together.
    """

    prompt_tokens: int
    context_tokens: int

    @property
    def room(self) -> int:
        """Tokens left for the reply; negative when the prompt itself is too long."""
        return self.context_tokens - self.prompt_tokens


Outcome = Completion | Exception
"""The answer to a request, or what made it fail alone."""


class Session(Protocol):
    """Takes requests and gives their outcomes, in any order; for one thread.

    One request that fails costs no other its answer. When the memory runs out, what was in the
    works is begun again with half as many at a time, down to one.
    """

    @property
    def slots(self) -> int:
        """How many requests may be in the works; fewer since the memory ran out."""
        ...

    @property
    def room(self) -> int:
        """How many more may be now."""
        ...

    def put_requests(self, requests: Sequence[Prepared]) -> None:
        """Take *requests*, which are numbered from 0 as they come.

        Those of one call begin together, as far as there is room and `batching.together` has it.
        """
        ...

    def get_outcome(self, timeout_seconds: float | None = None) -> tuple[int, Outcome] | None:
        """Return the number and the outcome of a request, as soon as it ended.

        The seconds of an answer are its share of those of all that went on meanwhile.

        Args:
            timeout_seconds: How long to wait; 0 is not at all, None until one ends.

        Returns:
            None if none ended in time, is in the works, or will end since *cancel* is set.
        """
        ...

    def close(self) -> None:
        """Cancel what is in the works; idempotent."""
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
    """The commit of the weights that were loaded, when the Hub cache knows it."""

    @property
    def context_tokens(self) -> int:
        """Number of tokens that the model takes, prompt and reply together."""
        ...

    def prepare(
        self, request: GenerationRequest, *, open_image: OpenImage | None = None
    ) -> Prepared:
        """Open the images of *request*, and cut and scale them for the model; CPU only.

        An image that the engine remembers by `Attachment.digest` is not opened. An image that it
        remembers by its pixels is opened, but not cut and scaled again.

        Args:
            request: What to prepare.
            open_image: Opens the images; None opens each by its `Attachment.source`.

        Raises:
            ImageError: If one cannot be opened or is over a limit.
            PromptError: If the model cannot take this kind of request.
        """
        ...

    def measure(self, prepared: Prepared) -> Measure:
        """Count the tokens of a prompt as `complete` would, without running the model."""
        ...

    def complete(
        self, batch: Sequence[Prepared], *, cancel: Event | None = None
    ) -> list[Completion]:
        """Answer *batch* in order; blocks until the last is done.

        Args:
            batch: Requests of any prompt length, sampling and image count.
            cancel: Setting it ends every answer after the current token; or, before the first,
                after the current picture or some hundred tokens of the prompt.

        Raises:
            PromptError: If a prompt holds what the model cannot take.
            MemoryLimitError: If the device has not enough memory for this batch.
            ModelError: If the model computes what is no number.
        """
        ...

    def serve(self, *, slots: int, cancel: Event | None = None) -> Session:
        """Answer many requests, *slots* at a time: as one ends, another takes its place.

        Args:
            slots: Most requests at a time.
            cancel: Setting it ends every answer after the current token; requests that were not
                begun have no outcome.

        Returns:
            What takes the requests; no other work is done before it is closed.
        """
        ...

    def stream(self, prepared: Prepared, *, cancel: Event | None = None) -> Iterator[TokenChunk]:
        """Yield one answer piece by piece; closing the iterator stops generation.

        The texts join to what `complete` gives. After *cancel* is set, the last chunk says so.
        """
        ...

    def close(self) -> None:
        """Free the device memory; idempotent."""
        ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class EngineFactory(Protocol):
    """Makes an engine, in this process or in another one that it was pickled to."""

    def __call__(self, *, progress: Progress | None = None) -> Engine:
        """Load the model; *progress* may be called in another thread meanwhile."""
        ...
