"""The token budget: how much of a model's context the turns and pictures of a chat take."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import accumulate, islice
from typing import TYPE_CHECKING

from idefics_cli.chat.conversation import Conversation
from idefics_cli.core.errors import ImageError
from idefics_cli.core.types import (
    Attachment,
    GenerationRequest,
    Message,
    PictureDetail,
    Sampling,
)
from idefics_cli.engine.protocol import Engine, Measure, OpenImage, Prepared
from idefics_cli.models.families.abilities import sees_last_only

if TYPE_CHECKING:
    from idefics_cli.models.families.picture import PreparedPicture

_LEAST_REPLY_TOKENS = 16
_PROBE = Message("user", ("x",))


class TokenBudget:
    """Counts the tokens of conversations for one loaded model, without running it.

    The number of tokens depends on the texts, and on the number of tiles of each picture, but not
    on its pixels. The budget remembers the tiles of each picture by digest and detail, so each
    picture is opened only once.

    For a long conversation, the tokens of its turns are added up. The sum is only a first guess,
    because a chat template may make a turn depend on its neighbours. So the result is measured.

    Args:
        engine: The loaded model.
        open_image: Opens a picture of an earlier turn.
    """

    def __init__(self, engine: Engine, open_image: OpenImage) -> None:
        self.engine = engine
        self._open_image = open_image
        # A key holds the digest of a file, and how much detail of the picture the model sees.
        self._known: dict[tuple[str, PictureDetail], PreparedPicture] = {}
        self._turn_tokens: dict[tuple[Message, ...], int] = {}

    def request(self, conversation: Conversation, sampling: Sampling) -> GenerationRequest:
        """Return the request of this model for the pending turn of *conversation*."""
        last_only = sees_last_only(self.engine.spec)
        return conversation.request(sampling, sees_last_only=last_only)

    def prepare(self, request: GenerationRequest) -> Prepared:
        """Make *request* ready for the model, and remember the tiles of its pictures.

        Raises:
            IdeficsError: See `Engine.prepare`.
        """
        try:
            prepared = self.engine.prepare(request, open_image=self._open_image)
        except ImageError as error:
            if error.kind != "unsupported":
                raise
            # The conversation holds a video, because a former model took it. This model takes only
            # pictures.
            hint = "`/images` lists the pictures, `/drop N` takes one out"
            raise ImageError(str(error), kind=error.kind, hint=hint) from error
        for attachment, picture in zip(request.attachments, prepared.pictures, strict=True):
            self._known[_key(attachment)] = picture
        return prepared

    def stage(self, attachment: Attachment, open_image: OpenImage) -> int | None:
        """Return the number of tokens of a picture, if known, and prepare it for its question.

        Raises:
            ImageError: If the picture cannot be opened.
        """
        request = GenerationRequest((Message("user", (attachment, "x")),))
        (picture,) = self.engine.prepare(request, open_image=open_image).pictures
        self._known[_key(attachment)] = picture
        return self.picture_tokens(attachment)

    def check_detail(self, detail: PictureDetail) -> None:
        """Check that the model can see pictures in *detail*.

        Raises:
            PromptError: If it cannot.
        """
        from PIL import Image

        def open_blank(attachment: Attachment, draft_edge: int) -> Image.Image:
            blank = Image.new("RGB", (8, 8))
            blank.info["original_size"] = blank.size
            return blank

        blank = Attachment("a blank picture", detail=detail)
        request = GenerationRequest((Message("user", (blank, "x")),))
        self.engine.prepare(request, open_image=open_blank)

    def picture_tokens(self, attachment: Attachment) -> int | None:
        """Return the number of tokens that a picture takes in front of a text, if known.

        Raises:
            ImageError: If the picture was not opened before, and cannot be opened now.
        """
        together = self.measure(GenerationRequest((Message("user", (attachment, "x")),)))
        return None if together is None else together.prompt_tokens - self._tokens((_PROBE,))

    def measure(self, request: GenerationRequest) -> Measure | None:
        """Count the tokens of *request* as the engine does; no picture is opened twice.

        None if the engine cannot count them.
        """
        for attachment in request.attachments:
            if _key(attachment) not in self._known:
                self.prepare(GenerationRequest((Message("user", (attachment, "x")),)))
        pictures = tuple(self._known[_key(each)] for each in request.attachments)
        return self.engine.measure(Prepared(request, pictures))

    def sum_tokens(self, request: GenerationRequest) -> int:
        """Return the tokens of *request* as the sum of those of its turns, each measured once."""
        *turns, last = _turns(request.messages)
        probe = self._tokens((_PROBE,))
        return self._tokens(last) + sum(self._tokens((*turn, _PROBE)) - probe for turn in turns)

    def turns_to_forget(self, asked: Conversation) -> int:
        """Return how many of the oldest turns must be left out for the pending question to fit.

        Returns:
            0 if the question does not fit even without all of them.
        """
        most = len(asked.turns) - asked.forgotten - 1
        return self._first_that_fits(asked.without_oldest(n) for n in range(1, most + 1))

    def pictures_to_drop(self, asked: Conversation, numbers: Sequence[int]) -> Sequence[int]:
        """Return which of the pictures *numbers* must be dropped for the pending question to fit.

        Args:
            asked: The conversation with the question.
            numbers: The pictures that may be dropped, in this order.

        Returns:
            The first of *numbers*; none if the question does not fit even without all of them.
        """
        shorter = accumulate(numbers, Conversation.dropped, initial=asked)
        return numbers[: self._first_that_fits(islice(shorter, 1, None))]

    def _first_that_fits(self, conversations: Iterable[Conversation]) -> int:
        """Return the position, from 1, of the first conversation that fits; 0 if none fits.

        Each of *conversations* must be shorter than the one before it.
        """
        requests = [self.request(conversation, Sampling()) for conversation in conversations]
        if not self._counts:
            # The user can leave out the next one if this is not enough.
            return min(1, len(requests))
        room = self.engine.context_tokens - _LEAST_REPLY_TOKENS
        sums = (self.sum_tokens(request) for request in requests)
        place = next((at for at, tokens in enumerate(sums) if tokens <= room), len(requests))
        while place < len(requests) and not self._fits(requests[place]):
            place += 1
        while place > 0 and self._fits(requests[place - 1]):
            place -= 1
        return 0 if place == len(requests) else place + 1

    @property
    def _counts(self) -> bool:
        return self.measure(GenerationRequest((_PROBE,))) is not None

    def _fits(self, request: GenerationRequest) -> bool:
        measure = self.measure(request)
        return measure is None or measure.room >= _LEAST_REPLY_TOKENS

    def _tokens(self, messages: tuple[Message, ...]) -> int:
        if messages not in self._turn_tokens:
            measure = self.measure(GenerationRequest(messages))
            self._turn_tokens[messages] = measure.prompt_tokens if measure else 0
        return self._turn_tokens[messages]


def _key(attachment: Attachment) -> tuple[str, PictureDetail]:
    return attachment.digest, attachment.detail


def _turns(messages: Sequence[Message]) -> Iterator[tuple[Message, ...]]:
    """Yield the messages of each turn: the instruction alone, each question with its answer."""
    turn: list[Message] = []
    for message in messages:
        if message.role != "assistant" and turn:
            yield tuple(turn)
            turn = []
        turn.append(message)
    yield tuple(turn)
