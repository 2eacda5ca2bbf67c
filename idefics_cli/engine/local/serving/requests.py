"""Requests in the engine: what was asked, who listens, and the reply so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from threading import Event

from idefics_cli.core.choices import ChoiceResult
from idefics_cli.core.types import Completion, TokenChunk
from idefics_cli.engine.local.cancel import Flag
from idefics_cli.engine.local.decode.batch_row import BatchRow
from idefics_cli.engine.local.decode.detokenize import Detokenizer, detokenizer_of
from idefics_cli.engine.local.decode.logprobs import token_logprobs
from idefics_cli.engine.local.serving.schedule import RequestSchedule, Ticket
from idefics_cli.engine.protocol import Listener, Urgency
from idefics_cli.engine.schema.choices import choice_result, choices_of, wordings
from idefics_cli.models.families.base import Family, Inputs
from idefics_cli.models.families.picture import PictureTensors


@dataclass(slots=True, eq=False, kw_only=True)
class OpenRequest(Ticket):
    """A request that has no outcome yet. The inference thread owns it.

    Attributes:
        lane: The queue in which the request waits or has waited.
        listen: A function that receives the events of the request.
        streams: Whether the events hold the text while it is generated.
        stop: Set when nobody wants the reply any more.
        inputs: The prompt of the request, tensors (1, T, ...) on the CPU.
        pictures: The pixels or the features of its pictures. A reply that gives way needs the
            features once more, so they stay in RAM until it ends.
        reply: The reply so far. If the request is put back into its lane, the reply keeps its
            tokens, and later continues after them.
        has_started: Whether the request has left its lane at least once.
        is_isolated: Whether the request must run alone, because it, or a request that ran
            together with it, has failed.
        has_dropped_caches: Whether everything that is kept for later requests was already dropped
            once, to give memory to this request.
        reused_tokens: Number of prompt tokens that an earlier conversation computed.
        prefill_seconds: Time of its pictures and its prompt.
        decode_seconds: Time of its decode steps.
    """

    lane: Lane
    listen: Listener
    inputs: Inputs
    reply: BatchRow
    pictures: Sequence[PictureTensors] = ()
    streams: bool = False
    stop: Flag = field(default_factory=Event)
    has_started: bool = False
    is_isolated: bool = False
    has_dropped_caches: bool = False
    reused_tokens: int = 0
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    _text: Detokenizer | None = field(default=None, init=False)
    _told_tokens: int = field(default=0, init=False)

    @property
    def tokens(self) -> int:
        """Number of tokens of the prompt and of the reply so far."""
        return len(self.reply.prompt) + len(self.reply.tokens)

    @property
    def longest(self) -> int:
        """Maximum number of tokens of the prompt and the reply together."""
        return len(self.reply.prompt) + self.reply.limit

    def move_features_to_ram(self) -> None:
        """Free the device memory of the image features, because only a prefill needs them."""
        self.pictures = [
            replace(each, features=None if each.features is None else each.features.to("cpu"))
            for each in self.pictures
        ]

    def tell_text(self, family: Family) -> None:
        """Tell the listener the text that is new since the last call."""
        if not self.streams:
            return
        self._text = self._text or self._detokenizer(family)
        row = self.reply
        piece = self._text.feed(row.tokens, last=row.finish is not None)
        if piece:
            logprobs = tuple(token_logprobs(family, row, self._told_tokens))
            self._told_tokens = len(row.tokens)
            counts = len(row.tokens), None, len(row.prompt)
            self.listen(TokenChunk(piece, *counts, logprobs=logprobs))

    def completion(self, family: Family) -> Completion:
        """Return the reply as it is now; a reply that has not ended counts as cancelled."""
        row, choice = self.reply, self._choice()
        return Completion(
            text=choice.best[0] if choice else self._detokenizer(family).whole(row.tokens),
            prompt_tokens=len(row.prompt),
            reused_tokens=self.reused_tokens,
            new_tokens=len(row.tokens),
            finish=row.finish or "cancelled",
            prefill_seconds=self.prefill_seconds,
            decode_seconds=self.decode_seconds,
            token_ids=tuple(row.tokens),
            at_a_time=self.at_a_time,
            choice=choice,
            logprobs=tuple(token_logprobs(family, row, 0)),
        )

    def _choice(self) -> ChoiceResult | None:
        constraint, logs = self.prepared.request.constraint, iter(self.reply.answer_logs)
        if constraint is None or not self.reply.answer_logs:
            return None
        choices = choices_of(constraint)
        return choice_result(choices, [[next(logs) for _ in wordings(each)] for each in choices])

    def _detokenizer(self, family: Family) -> Detokenizer:
        return detokenizer_of(family, self.prepared.request)


@dataclass(slots=True, eq=False)
class Lane:
    """A queue of requests with its own number of slots. The inference thread owns it.

    Attributes:
        schedule: The requests that wait, and the number of slots.
        urgency: "interactive" requests start before "batch" requests.
        stop: Set when none of its requests is wanted any more.
        starts_whole: All its requests start together, in one prefill; if the memory does not
            suffice for that, they fail.
        shares_seconds: The requests that run together share the time; else each gets all of it.
        on_stop: Called after *stop* was set, when no more outcomes follow. None gives each request
            that waits an error instead.
        on_failure: Called instead of the listeners when the engine itself fails. If it is None,
            each listener gets the error.
        active: Number of its requests that have started and not ended.
        passed: Number of interactive requests that started while one of its requests waited.
    """

    schedule: RequestSchedule[OpenRequest]
    urgency: Urgency
    stop: Flag
    starts_whole: bool = False
    shares_seconds: bool = False
    on_stop: Callable[[], None] | None = None
    on_failure: Callable[[Exception], None] | None = None
    active: int = 0
    passed: int = 0

    @property
    def has_room(self) -> bool:
        """Whether a request waits, and enough slots are free; it may still lack memory."""
        return self.schedule.has_room(self.active)

    @property
    def is_open(self) -> bool:
        """Whether a request waits or runs."""
        return self.active > 0 or not self.schedule.is_empty
