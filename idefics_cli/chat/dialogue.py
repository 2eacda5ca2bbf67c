"""The chat: it asks a model the questions of a conversation, and handles errors and changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from threading import Event

from idefics_cli.chat.attachments import PictureOpener, StagedPicture
from idefics_cli.chat.budget import TokenBudget
from idefics_cli.chat.conversation import Conversation, Value
from idefics_cli.chat.loading import Loading, Phase
from idefics_cli.chat.model_switch import FindModel, ModelSwitch
from idefics_cli.chat.sampling_settings import SCHEMA_KEY, with_settings
from idefics_cli.chat.store.sessions import NullStore, OpenSession, SessionStore
from idefics_cli.chat.turns import Turns
from idefics_cli.core.errors import ContextError, ImageError, MemoryLimitError, UsageError
from idefics_cli.core.types import Attachment, Sampling, TokenChunk
from idefics_cli.core.units import counted
from idefics_cli.engine.protocol import Measure, OpenImage
from idefics_cli.engine.schema.form import ReplyForm, schema_form

_MEMORY_HINT = "`/forget N` leaves out the oldest questions; `--quantization 4bit` needs less"
_MEMORY_HINT_PICTURES = (
    "`/drop N` takes a picture out, `/forget N` the oldest questions; fewer or smaller pictures,"
    " `--no-splitting` or `--quantization 4bit` need less"
)


@dataclass(slots=True)
class Statistics:
    """The cost of the answers of this run.

    Attributes:
        replies: Number of answers.
        computed_tokens: Prompt tokens that the model computed.
        reused_tokens: Prompt tokens that came from the KV cache.
        new_tokens: Tokens of the answers.
        seconds: Time that the tokens of the answers took.
    """

    replies: int = 0
    computed_tokens: int = 0
    reused_tokens: int = 0
    new_tokens: int = 0
    seconds: float = 0.0

    def add(self, last: TokenChunk, seconds: float) -> None:
        """Count the answer that ended with the chunk *last*, after *seconds*."""
        self.replies += 1
        self.computed_tokens += last.prompt_tokens - last.reused_tokens
        self.reused_tokens += last.reused_tokens
        self.new_tokens += last.new_tokens
        self.seconds += last.decode_seconds or seconds


class Chat:
    """Asks the questions of one conversation; the conversation and the model can change.

    Args:
        loading: The model that answers, which may still be loading.
        session: The conversation, and where it is kept.
        store: Where other conversations are kept.
        find_model: Looks up another model.
        sampling: How tokens are chosen, unless the conversation has its own settings.
        displays: `plain` and `preview`, unless the conversation has its own settings.
        pictures: Opens the pictures.
        clock: Returns the time in seconds.

    Attributes:
        turns: The conversation, and the pictures that are staged for the next question.
        model: The model that answers.
        statistics: The cost of the answers so far.
    """

    def __init__(
        self,
        loading: Loading,
        session: OpenSession,
        *,
        store: SessionStore | NullStore,
        find_model: FindModel,
        sampling: Sampling,
        displays: Mapping[str, bool],
        pictures: PictureOpener,
        clock: Callable[[], float],
    ) -> None:
        self._pictures = pictures
        self.turns = Turns(session)
        self.model = ModelSwitch(loading, find_model, self._pictures.kept)
        self.statistics = Statistics()
        self._store = store
        self._sampling = sampling
        self._displays = displays
        self._clock = clock
        self._prompt_tokens = 0
        self._uncountable: set[str] = set()

    @property
    def conversation(self) -> Conversation:
        """The conversation as it stands."""
        return self.turns.conversation

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen: as set in the conversation, else as at the start."""
        return with_settings(self._sampling, self.conversation.settings)

    @property
    def form(self) -> ReplyForm | None:
        """What answers must be, as `/schema` set it; None if they are free text.

        Raises:
            UsageError: If a saved schema cannot be used.
        """
        given = self.conversation.settings.get(SCHEMA_KEY)
        if given is None:
            return None
        return schema_form(str(given), max_new_tokens=self.sampling.max_new_tokens)

    def display(self, key: str) -> bool:
        """Return whether the display setting *key* is on."""
        value = self.conversation.settings.get(key)
        return self._displays[key] if value is None else bool(value)

    def close(self) -> None:
        """Close the conversation and the model, at the end of the program."""
        self.turns.session.close()
        self.model.leave()

    # Pictures

    def attach(self, sources: Sequence[str]) -> list[StagedPicture]:
        """Open pictures and stage them for the next question: all of them, or none.

        If a question failed, its pictures are still staged, and the user may send the same line
        again. Such a picture is not staged a second time.

        Returns:
            The pictures that are newly staged.

        Raises:
            ImageError: If one cannot be opened.
        """
        count_tokens = self._count_tokens if self.model.budget else None
        found = [self._pictures.stage(source, count_tokens) for source in sources]
        return self.turns.stage(found)

    def picture_tokens(self, attachment: Attachment) -> int | None:
        """Return how many tokens of the context a picture takes.

        None until a model is loaded, and if it cannot take the picture.
        """
        budget = self.model.budget
        shown = replace(attachment, detail=self.conversation.detail)
        try:
            return budget.picture_tokens(shown) if budget else None
        except ImageError:
            return None

    def _count_tokens(self, attachment: Attachment, open_image: OpenImage) -> int | None:
        shown = replace(attachment, detail=self.conversation.detail)
        return self._loaded_budget().stage(shown, open_image)

    def change_detail(self, settings: Mapping[str, Value]) -> None:
        """Change how much detail of all its pictures the model sees.

        Raises:
            PromptError: If the loaded model cannot see pictures like this. Nothing changes then.
        """
        conversation = self.conversation
        for key, value in settings.items():
            conversation = conversation.with_setting(key, value)
        if (budget := self.model.budget) is not None:
            budget.check_detail(conversation.detail)
        for key, value in settings.items():
            self.turns.session.set_setting(key, value)
        self._forget_counts()
        self.count_staged()

    def count_staged(self) -> list[tuple[int, StagedPicture]]:
        """Count the tokens of staged pictures; return those that were not counted before.

        Returns:
            The number of each picture, and the picture with its tokens.
        """
        if self.model.budget is None:
            return []
        first, counted = len(self.conversation.pictures) + 1, []
        for place, staged in enumerate(self.turns.staged):
            if staged.tokens is None and staged.digest not in self._uncountable:
                self._uncountable.add(staged.digest)  # so that an error is raised only once
                known = self._pictures.count(staged, self._count_tokens)
                self._uncountable.discard(staged.digest)
                self.turns.staged[place] = known
                counted.append((first + place, known))
        return counted

    # Questions

    def check_marks(self, text: str) -> None:
        """Check that `<image>` and `[1]` in *text* fit the pictures of the next question.

        Raises:
            PromptError: If a mark has no picture, or some `<image>` leave pictures over.
        """
        self.turns.check_marks(text)

    def ask(self, text: str) -> None:
        """Add *text* and the staged pictures to the conversation; no answer yet.

        Raises:
            SessionError: If the question cannot be saved. Nothing has changed then.
        """
        is_edit = self.turns.editing is not None
        self.turns.ask(text)
        if is_edit:
            self.count_staged()  # the pictures of the former turn are staged again

    def reply(
        self, *, cancel: Event, phase: Phase, sampling: Sampling | None = None
    ) -> Iterator[TokenChunk]:
        """Answer the pending question; the answer is kept when the iterator ends.

        Of an interrupted answer, the text so far is kept. After an error, or an interruption before
        the first word, the question is taken back and its pictures are still staged.

        Args:
            cancel: When it is set, the answer stops after the current token.
            phase: Called with the current phase until the first token; see `Phase`.
            sampling: How tokens are chosen for this answer only.

        Raises:
            IdeficsError: If a picture cannot be read, or if the memory or the context is too small,
                or if the model fails.
        """
        chosen = sampling or self.sampling
        started, last = self._clock(), TokenChunk("", 0)
        text = ""
        is_kept = False
        try:
            for chunk in self._stream(chosen, cancel, phase):
                last = chunk
                text += chunk.text
                yield chunk
            if text.strip() or last.finish != "cancelled":
                self._keep_answer(text, last, chosen, self._clock() - started)
                is_kept = True
        except BaseException:
            if text.strip() and not is_kept:
                cut = replace(last, finish="cancelled")
                self._keep_answer(text, cut, chosen, self._clock() - started)
                is_kept = True
            raise
        finally:
            if not is_kept:
                self.turns.roll_back()

    def _stream(self, sampling: Sampling, cancel: Event, phase: Phase) -> Iterator[TokenChunk]:
        budget = self.model.wait(cancel, phase)
        if budget is None:
            yield TokenChunk("", 0, "cancelled")
            return
        request = budget.request(self.conversation, sampling)
        if (form := self.form) is not None:
            # Only the model gets the question with the names of the fields, not the conversation.
            request = form.applied_to(request)
        count = len(request.attachments)
        if count:
            phase(f"reading {counted(count, 'picture')}")
        prepared = budget.prepare(request)
        phase("thinking")
        try:
            yield from budget.engine.stream(prepared, cancel=cancel)
        except ContextError as error:
            raise ContextError(
                f"the conversation has {error.prompt_tokens} tokens,"
                f" and the model takes {error.context_tokens}",
                prompt_tokens=error.prompt_tokens,
                context_tokens=error.context_tokens,
                hint="`/forget N` leaves out the oldest questions, "
                + ("`/drop N` a picture, " if count else "")
                + "`/clear` all",
            ) from error
        except MemoryLimitError as error:
            hint = _MEMORY_HINT_PICTURES if count else _MEMORY_HINT
            raise MemoryLimitError(str(error), hint=hint) from error

    def _keep_answer(self, text: str, last: TokenChunk, sampling: Sampling, seconds: float) -> None:
        self.turns.answer(text, last, sampling, seconds)
        self.statistics.add(last, seconds)
        self._prompt_tokens = last.prompt_tokens

    # The context

    def used(self) -> Measure | None:
        """Return how much of the context the last exchange took; None if that is unknown."""
        budget, turns = self.model.budget, self.conversation.turns
        context = budget.engine.context_tokens if budget else 0
        if not self._prompt_tokens or not context or not turns:
            return None
        reply = turns[-1].reply
        return Measure(self._prompt_tokens + (reply.new_tokens if reply else 0), context)

    def turns_to_forget(self, text: str) -> int:
        """Return how many of the oldest turns must be left out for the next question to fit.

        The question is *text* with the staged pictures.

        Returns:
            0 if the question does not fit even without all of them.
        """
        return self._loaded_budget().turns_to_forget(self.turns.if_asked(text))

    def pictures_to_drop(self, text: str) -> Sequence[int]:
        """Return the numbers of the oldest pictures that must be dropped for *text* to fit.

        Returns:
            No numbers if the question does not fit even without all pictures.
        """
        numbers = [picture.number for picture in self.conversation.pictures_in_prompt]
        return self._loaded_budget().pictures_to_drop(self.turns.if_asked(text), numbers)

    def _loaded_budget(self) -> TokenBudget:
        budget = self.model.budget
        if budget is None:
            raise RuntimeError("no model is loaded")
        return budget

    # The model and the session

    def switch_model(self, name: str) -> None:
        """Let the model *name* answer from now on; the conversation stays.

        Raises:
            IdeficsError: If the model is unknown or does not chat. The former model stays.
        """
        self.model.switch(name)
        self._after_switch()

    def go_back(self) -> bool:
        """Let the former model answer again, and return whether there is one."""
        is_back = self.model.go_back()
        if is_back:
            self._after_switch()
        return is_back

    def _after_switch(self) -> None:
        self.turns.session.set_model(self.model.name)
        self._forget_counts()

    def _forget_counts(self) -> None:
        self.turns.change_staged(lambda staged: replace(staged, tokens=None))
        self._uncountable.clear()
        self._prompt_tokens = 0

    def start_new(self, *, keeps_staged: bool = False) -> str | None:
        """Begin another conversation with the same model, instruction and settings.

        The present one stays among the saved ones.

        Args:
            keeps_staged: Whether the staged pictures go with its first question.

        Returns:
            The name or the id of the former conversation; None if it was not saved.
        """
        former = self.turns.session
        conversation = former.conversation
        new = self._store.create(
            self.model.name, system=conversation.system, settings=conversation.settings
        )
        self.turns.open(new, keeps_staged=keeps_staged)
        self._prompt_tokens = 0
        is_saved = bool(former.id) and (bool(conversation.turns) or conversation.name is not None)
        return (conversation.name or former.id) if is_saved else None

    def load(self, key: str) -> None:
        """Continue another conversation; the present one is closed.

        Raises:
            SessionError: If the other conversation cannot be opened. The present one stays.
        """
        if isinstance(self._store, NullStore):
            raise UsageError("nothing is saved here", hint="start without `--no-save`")
        if self._store.find(key) == self.turns.session.id:
            raise UsageError(f"`{key}` is open here already")
        found = self._store.open(key)
        self.turns.open(found)
        if found.conversation.pending:
            found.roll_back()
        if found.conversation.model != self.model.name:
            found.set_model(self.model.name)
        self._prompt_tokens = 0

    def saved(self) -> list[tuple[str, str]]:
        """Return the name, or the id if there is none, and the title of each saved conversation."""
        if isinstance(self._store, NullStore):
            return []
        return [(info.name or info.id, info.title) for info in self._store.list()]
