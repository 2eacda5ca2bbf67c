"""The turns of one conversation, and what changes them: stage, ask, answer, and take back."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from idefics_cli.chat.attachments import StagedPicture
from idefics_cli.chat.conversation import ChatPicture, Conversation, Turn
from idefics_cli.chat.store.sessions import OpenSession
from idefics_cli.core.types import Sampling, TokenChunk


class Turns:
    """The turns of the open conversation, and the next question with its staged pictures.

    Args:
        session: The conversation, and where it is kept.

    Attributes:
        session: The conversation, and where it is kept.
        staged: Pictures that go with the next question.
        editing: Number of the turn that the next question replaces; None for a new turn.
    """

    def __init__(self, session: OpenSession) -> None:
        self.session = session
        self.staged: list[StagedPicture] = []
        self.editing: int | None = None
        self._sent = 0
        # Digests of pictures that are staged again, because their question was not answered.
        self._returned: set[str] = set()

    @property
    def conversation(self) -> Conversation:
        """The conversation as it stands."""
        return self.session.conversation

    def stage(self, pictures: Sequence[StagedPicture]) -> list[StagedPicture]:
        """Stage *pictures*, and return those that are newly staged.

        Pictures that a failed question left staged are not staged a second time.
        """
        left = self._returned & {staged.digest for staged in self.staged}
        new = [picture for picture in pictures if picture.digest not in left]
        self.staged += new
        return new

    def unstage(self, pictures: Sequence[StagedPicture]) -> None:
        """Undo `stage` for the *pictures* that it returned."""
        if pictures:
            del self.staged[-len(pictures) :]

    def ask(self, text: str) -> None:
        """Add *text* with the staged pictures to the conversation; no answer yet.

        Raises:
            SessionError: If the question cannot be saved. Nothing has changed then.
        """
        if self.editing is not None:
            number, self.editing = self.editing, None
            self._stage_again(self.session.edit(number))
        self.session.ask(text, self.staged)
        self._sent = len(self.staged)

    def check_marks(self, text: str) -> None:
        """Check that the marks of *text* fit the pictures with which `ask` would send it.

        Raises:
            PromptError: See `Conversation.check_marks`.
        """
        conversation, staged = self.conversation, len(self.staged)
        if self.editing is not None:
            staged += len(self.session.staged_pictures(conversation.turns[self.editing - 1]))
            conversation = conversation.edited(self.editing)
        conversation.check_marks(text, staged)

    def if_asked(self, text: str) -> Conversation:
        """Return the conversation that `ask` would make."""
        pictures = [ChatPicture(0, staged.source, staged.attachment) for staged in self.staged]
        return self.conversation.asked(text, pictures)

    def answer(self, text: str, last: TokenChunk, sampling: Sampling, seconds: float) -> None:
        """Add the answer to the pending question; its pictures are no longer staged.

        Args:
            text: The whole answer.
            last: The last chunk of the answer, with its numbers.
            sampling: How its tokens were chosen.
            seconds: Time from the request to the last token.
        """
        self.session.reply(
            text,
            last.finish or "cancelled",
            sampling=sampling,
            prompt_tokens=last.prompt_tokens,
            reused_tokens=last.reused_tokens,
            new_tokens=last.new_tokens,
            seconds=seconds,
        )
        del self.staged[: self._sent]
        self._sent = 0
        self._returned.clear()

    def roll_back(self) -> None:
        """Take the pending question back, or end a retry; its pictures are still staged."""
        self._returned |= {staged.digest for staged in self.staged[: self._sent]}
        self.session.roll_back()
        self._sent = 0

    def take_back(self) -> str:
        """Take back the question that a killed program left unanswered; return its text."""
        turn = self.session.roll_back()
        self._stage_again(turn)
        return turn.text

    def undo(self) -> Turn:
        """Take back the last question and its answer; its pictures are staged again."""
        turn = self.session.undo()
        self._stage_again(turn)
        return turn

    def open(self, session: OpenSession, *, keeps_staged: bool = False) -> None:
        """Close the conversation, and continue *session*, with the staged pictures or without."""
        self.session.close()
        self.session = session
        if not keeps_staged:
            self.staged.clear()
        self.editing = None

    def change_staged(self, change: Callable[[StagedPicture], StagedPicture]) -> None:
        """Replace each staged picture by what *change* returns."""
        self.staged = [change(staged) for staged in self.staged]

    def _stage_again(self, turn: Turn) -> None:
        self.staged = [*self.session.staged_pictures(turn), *self.staged]
