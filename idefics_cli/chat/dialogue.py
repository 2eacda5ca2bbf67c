"""A conversation with a model: what is staged, what is asked, and what becomes of an error."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Event

from idefics_cli.chat.attachments import Attached, attach
from idefics_cli.chat.conversation import ChatPicture, Conversation, Turn
from idefics_cli.chat.loading import Loading, LoadPlan, Phase
from idefics_cli.chat.sampling_settings import with_settings
from idefics_cli.chat.store.sessions import NullStore, OpenSession, SessionStore
from idefics_cli.core.errors import ContextError, MemoryLimitError, UsageError
from idefics_cli.core.types import (
    Attachment,
    GenerationRequest,
    ImageLimits,
    Message,
    Sampling,
    TokenChunk,
)
from idefics_cli.engine.protocol import Engine, Measure
from idefics_cli.models.families.spec import find_family


@dataclass(slots=True)
class Statistics:
    """What the replies of this run took.

    Attributes:
        replies: How many there were.
        computed_tokens: Of prompts, those that the model read.
        reused_tokens: Of prompts, those that it had read before.
        new_tokens: Of replies.
        seconds: That the tokens of the replies took.
    """

    replies: int = 0
    computed_tokens: int = 0
    reused_tokens: int = 0
    new_tokens: int = 0
    seconds: float = 0.0


class Chat:
    """Puts questions of one conversation to one engine; both can be exchanged.

    The caller closes neither: `close` does.

    Args:
        loading: The model that answers, which may still be loading.
        session: The conversation, and where it is kept.
        store: Where others are kept.
        find_model: Looks another model up by name; what it returns plans and loads it.
        sampling: How tokens are chosen where the conversation does not say.
        displays: `plain` and `preview`, where the conversation does not say.
        limits: What pictures are accepted.
        offline: Fetch no pictures.
        clock: Seconds.
    """

    def __init__(
        self,
        loading: Loading,
        session: OpenSession,
        *,
        store: SessionStore | NullStore,
        find_model: Callable[[str], LoadPlan],
        sampling: Sampling,
        displays: Mapping[str, bool],
        limits: ImageLimits,
        offline: bool,
        clock: Callable[[], float],
    ) -> None:
        self.loading = loading
        self._former: Loading | None = None
        self.session = session
        self.store = store
        self.staged: list[Attached] = []
        self.editing: int | None = None
        self._sent = 0
        self.statistics = Statistics()
        self.last_measure: Measure | None = None
        self._find_model = find_model
        self._sampling = sampling
        self._displays = displays
        self._limits = limits
        self._offline = offline
        self._clock = clock

    @property
    def conversation(self) -> Conversation:
        """The conversation as it stands."""
        return self.session.conversation

    @property
    def model_name(self) -> str:
        """What the user calls the model that answers."""
        return self.loading.name

    @property
    def engine(self) -> Engine:
        """The model that answers, waited for.

        Raises:
            IdeficsError: If it cannot be loaded.
        """
        return self.loading.engine

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen: as set in the conversation, else as at the start."""
        return with_settings(self._sampling, self.conversation.settings)

    def close(self) -> None:
        """Close the conversation and the model."""
        self.session.close()
        self.loading.close()

    def attach(self, sources: Sequence[str]) -> list[Attached]:
        """Open pictures and stage them for the next text: all of them, or none.

        Raises:
            ImageError: If one cannot be opened.
        """
        found = [attach(s, self._limits, offline=self._offline) for s in sources]
        found = [replace(a, tokens=self.tokens(a.attachment)) for a in found]
        self.staged += found
        return found

    def tokens(self, attachment: Attachment) -> int | None:
        """Return what a picture takes of the context; None until the model is loaded."""
        if not self.loading.is_ready:
            return None
        alone = self._measured(Message("user", ("x",)))
        together = self._measured(Message("user", (attachment, "x")))
        return together.prompt_tokens - alone.prompt_tokens

    def count_tokens(self) -> list[tuple[int, Attached]]:
        """Return the staged pictures whose tokens are known now and were not, with numbers."""
        if not self.loading.is_ready:
            return []
        first, counted = len(self.conversation.pictures) + 1, []
        for place, attached in enumerate(self.staged):
            if attached.tokens is None:
                known = replace(attached, tokens=self.tokens(attached.attachment))
                self.staged[place] = known
                counted.append((first + place, known))
        return counted

    def _measured(self, message: Message) -> Measure:
        return self.engine.measure(self.engine.prepare(GenerationRequest((message,))))

    # Questions

    def ask(self, text: str) -> None:
        """Put *text* and the staged pictures into the conversation, without an answer yet.

        Raises:
            SessionError: If it cannot be kept; nothing has changed then.
        """
        if self.editing is not None:
            number, self.editing = self.editing, None
            self._restage(self.session.edit(number))
        self.session.ask(text, [attached.staged for attached in self.staged])
        self._sent = len(self.staged)

    def undo(self) -> str:
        """Take the last question and its reply back, and return its text."""
        return self.session.undo().text

    def take_back(self) -> str:
        """Take back the question that a program which was killed left unanswered: its text."""
        turn = self.session.roll_back()
        self._restage(turn)
        return turn.text

    def _restage(self, turn: Turn) -> None:
        again = [Attached(staged) for staged in self.session.restage(turn)]
        again = [replace(a, tokens=self.tokens(a.attachment)) for a in again]
        self.staged = [*again, *self.staged]

    def reply(
        self, *, cancel: Event, phase: Phase, sampling: Sampling | None = None
    ) -> Iterator[TokenChunk]:
        """Answer the pending question; the reply is kept when the iterator is at its end.

        An interrupted reply is kept as far as it came. After an error, or an interruption
        before the first word, the conversation is as before the question and the pictures are
        staged again.

        Args:
            cancel: Stops the answer within a token.
            phase: Told what goes on until the first token.
            sampling: For this reply only.

        Raises:
            IdeficsError: Of pictures, memory, context or model.
        """
        chosen = sampling or self.sampling
        started, said = self._clock(), TokenChunk("", 0)
        text = ""
        is_kept = False
        try:
            for chunk in self._stream(chosen, cancel, phase):
                said = chunk
                text += chunk.text
                yield chunk
            if text.strip() or said.finish != "cancelled":
                self._keep(text, said, chosen, self._clock() - started)
                is_kept = True
        except BaseException:
            if text.strip() and not is_kept:
                cut = TokenChunk("", said.new_tokens, "cancelled")
                self._keep(text, cut, chosen, self._clock() - started)
                is_kept = True
            raise
        finally:
            if is_kept:
                del self.staged[: self._sent]
            else:
                self.session.roll_back()
            self._sent = 0

    def _stream(self, sampling: Sampling, cancel: Event, phase: Phase) -> Iterator[TokenChunk]:
        engine = self._wait(cancel, phase)
        if engine is None:
            yield TokenChunk("", 0, "cancelled")
            return
        request = self._request(sampling)
        count = len(request.attachments)
        if count:
            phase(f"reading {count} image{'s' if count > 1 else ''}")
        prepared = engine.prepare(request)
        measure = engine.measure(prepared)
        if measure.room < 1:
            raise ContextError(
                f"the conversation has {measure.prompt_tokens} tokens,"
                f" and the model takes {measure.context_tokens}",
                hint="drop the oldest turns (`/forget N`) or pictures (`/drop N`), or `/clear`",
            )
        self.last_measure = measure
        phase("thinking")
        try:
            yield from engine.stream(prepared, cancel=cancel)
        except MemoryLimitError as error:
            raise MemoryLimitError(str(error), hint=_MEMORY_HINT) from error

    def _wait(self, cancel: Event, phase: Phase) -> Engine | None:
        engine = self.loading.wait(cancel, phase)
        if engine is not None:
            self._former = None
        return engine

    def _request(self, sampling: Sampling) -> GenerationRequest:
        return self.conversation.request(sampling, sees_last_only=self._sees_last_only)

    @property
    def _sees_last_only(self) -> bool:
        return find_family(self.engine.spec.family).sees_last_only

    def _keep(self, text: str, last: TokenChunk, sampling: Sampling, seconds: float) -> None:
        measured = self.last_measure.prompt_tokens if self.last_measure else 0
        prompt_tokens = last.prompt_tokens or measured
        self.session.reply(
            text,
            last.finish or "cancelled",
            sampling=sampling,
            prompt_tokens=prompt_tokens,
            reused_tokens=last.reused_tokens,
            new_tokens=last.new_tokens,
            seconds=seconds,
        )
        self.statistics.replies += 1
        self.statistics.computed_tokens += prompt_tokens - last.reused_tokens
        self.statistics.reused_tokens += last.reused_tokens
        self.statistics.new_tokens += last.new_tokens
        self.statistics.seconds += last.decode_seconds or seconds

    def used(self) -> Measure | None:
        """Return how much of the context the last exchange took; None before the first."""
        if self.last_measure is None or not self.conversation.turns:
            return None
        reply = self.conversation.turns[-1].reply
        tokens = self.last_measure.prompt_tokens + (reply.new_tokens if reply else 0)
        return Measure(tokens, self.last_measure.context_tokens)

    def turns_to_forget(self, text: str) -> int:
        """Return how many of the oldest turns must go for *text* and what is staged to fit.

        0 when no number of turns would do.
        """
        asked = self._asked(text)
        for count in range(1, len(asked.turns) - asked.forgotten):
            if self._fits(asked.without_oldest(count)):
                return count
        return 0

    def pictures_to_drop(self, text: str) -> list[int]:
        """Return the numbers of the oldest pictures that must go for *text* to fit, as above."""
        asked = self._asked(text)
        numbers = [picture.number for picture in self.conversation.pictures_in_prompt]
        for count, number in enumerate(numbers, start=1):
            asked = asked.dropped(number)
            if self._fits(asked):
                return numbers[:count]
        return []

    def _asked(self, text: str) -> Conversation:
        pictures = [ChatPicture(0, a.staged.source, a.attachment) for a in self.staged]
        return self.conversation.asked(text, pictures)

    def _fits(self, conversation: Conversation) -> bool:
        request = conversation.request(self.sampling, sees_last_only=self._sees_last_only)
        return self.engine.measure(self.engine.prepare(request)).room >= _LEAST_REPLY_TOKENS

    # The model and the session

    def switch_model(self, name: str) -> None:
        """Let the model *name* answer from now on; the conversation stays.

        It is loaded in the background. If that fails, `go_back` is what is left to do.

        Raises:
            IdeficsError: If it is unknown or does not chat; the former answers on.
        """
        plan, former = self._find_model(name), self._former or self.loading
        if former is not self.loading:
            self.loading.close()
        # Two large models at a time may be more than the memory holds.
        self.loading = Loading(name, plan, before_load=former.close)
        self._former = former
        self._begin()

    def go_back(self) -> bool:
        """Let the former model answer again, and return whether there is one."""
        if self._former is None:
            return False
        self.loading, self._former = self._former.again(), None
        self._begin()
        return True

    def _begin(self) -> None:
        self.loading.start()
        self.session.set_model(self.model_name)
        self.staged = [replace(a, tokens=None) for a in self.staged]
        self.last_measure = None

    def load(self, key: str) -> None:
        """Go on with another conversation; the present one is closed.

        Raises:
            SessionError: If it cannot be opened; the present one goes on.
        """
        if isinstance(self.store, NullStore):
            raise UsageError("nothing is kept here", hint="start without `--no-save`")
        found = self.store.open(key)
        self.session.close()
        self.session = found
        if found.conversation.pending:
            found.roll_back()
        if found.conversation.model != self.model_name:
            found.set_model(self.model_name)
        self.staged.clear()
        self.editing = self.last_measure = None

    def saved(self) -> list[tuple[str, str]]:
        """Return the names, else the ids, of the conversations that are kept, with titles."""
        if isinstance(self.store, NullStore):
            return []
        return [(info.name or info.id, info.title) for info in self.store.list()]

    def display(self, key: str) -> bool:
        """Return whether the display setting *key* is on."""
        value = self.conversation.settings.get(key)
        return self._displays[key] if value is None else bool(value)


_LEAST_REPLY_TOKENS = 16
_MEMORY_HINT = (
    "`/drop N` takes a picture out, `/forget N` the oldest questions; fewer or smaller pictures,"
    " `--no-splitting` or `--quantization 4bit` need less"
)
