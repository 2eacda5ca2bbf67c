"""A conversation that is being held: what every change does, in memory and on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime
from types import TracebackType
from typing import Self

from idefics_cli.chat.attachments import StagedPicture, data_uri, read_back
from idefics_cli.chat.conversation import Conversation, Reply, Turn, Value
from idefics_cli.chat.store import events
from idefics_cli.chat.store.events import Event
from idefics_cli.chat.store.journal import SessionJournal
from idefics_cli.chat.store.lock import FileLock
from idefics_cli.chat.store.pictures import PictureFolder, shown_source, unwritable
from idefics_cli.core.types import Finish, Sampling


@dataclass(frozen=True, slots=True)
class Desk:
    """What an open session needs of its store.

    Attributes:
        folder: Where the pictures are.
        now: The time.
        guard: Locks the store, for moments.
        check_name: Raises if a session other than the id may not have the name.
    """

    folder: PictureFolder
    now: Callable[[], datetime]
    guard: Callable[[], FileLock]
    check_name: Callable[[str, str], None]


class OpenSession:
    """A conversation that is being held; every change is on disk when a method returns.

    Made by a store. A method that raises has changed nothing. Close it, or use it in `with`.

    Attributes:
        id: "" when it is not saved.
    """

    def __init__(
        self,
        session_id: str,
        conversation: Conversation,
        desk: Desk,
        journal: SessionJournal | None,
    ) -> None:
        self.id = session_id
        # In one attribute, so that Ctrl-C cannot come between the two.
        self._state = (conversation, 0 if journal is None else journal.size)
        self._desk = desk
        self._journal = journal

    @property
    def conversation(self) -> Conversation:
        """The conversation as it stands."""
        return self._state[0]

    def ask(self, text: str, pictures: Sequence[StagedPicture] = ()) -> None:
        """Add a question, which is then pending; `conversation.request` is what to send.

        Raises:
            SessionError: If it cannot be kept.
        """
        if self._journal is None:
            records = [
                _record(p) | {"attachment": data_uri(p.data), "digest": p.digest} for p in pictures
            ]
            self._commit({"event": "asked", "text": text, "pictures": records})
            return
        with ExitStack() as stack:
            try:
                if pictures:
                    # Nobody may sweep a picture away before the event that names it is written.
                    stack.enter_context(self._desk.guard())
                records = [_record(p) | {"file": self._desk.folder.add(p)} for p in pictures]
            except OSError as error:
                raise unwritable("a picture", error) from error
            self._commit({"event": "asked", "text": text, "pictures": records})

    def reply(
        self,
        text: str,
        finish: Finish,
        *,
        sampling: Sampling | None = None,
        prompt_tokens: int = 0,
        reused_tokens: int = 0,
        new_tokens: int = 0,
        seconds: float = 0.0,
    ) -> None:
        """Add the reply to the pending question; *finish* is `cancelled` if interrupted.

        A reply that is stopped before its first word is better rolled back.
        """
        reply = Reply(
            text=text,
            finish=finish,
            model=self.conversation.model,
            sampling=sampling or Sampling(),
            prompt_tokens=prompt_tokens,
            reused_tokens=reused_tokens,
            new_tokens=new_tokens,
            seconds=round(seconds, 3),
        )
        self._commit(events.replied(reply))

    def roll_back(self) -> Turn:
        """Take the pending question back, or end a retry; return it as it was.

        After a retry (`former` is set) the reply from before stands again.
        """
        turn = self._pending()
        self._commit({"event": "rolled_back"})
        return turn

    def retry(self) -> None:
        """Make the last question pending again; its reply stands until there is another.

        Raises:
            UsageError: If there is none.
        """
        self._commit({"event": "retried"})

    def undo(self) -> Turn:
        """Take the last turn back, question and reply; return it.

        Raises:
            UsageError: If there is none.
        """
        turns = self.conversation.turns
        self._commit({"event": "undone"})
        return turns[-1]

    def edit(self, number: int) -> Turn:
        """Take turn *number*, from 1, and all that follow back; return it, to be asked anew.

        Call it when the new text is there: the turns are gone from then on.

        Raises:
            UsageError: If there is no such turn.
        """
        turns = self.conversation.turns
        self._commit({"event": "edited", "turn": number})
        return turns[number - 1]

    def drop(self, number: int) -> None:
        """Take picture *number* out of the prompt.

        Raises:
            UsageError: If there is no such picture.
        """
        self._commit({"event": "dropped", "picture": number})

    def forget(self, count: int) -> None:
        """Take *count* more of the oldest turns out of the prompt; they stay on record.

        Raises:
            UsageError: If that leaves none.
        """
        self._commit({"event": "forgot", "turns": count})

    def clear(self) -> None:
        """Begin anew, with the same model, system text and settings."""
        self._commit({"event": "cleared"})

    def set_system(self, text: str | None) -> None:
        """Change the instruction that precedes the conversation; None or "" takes it away."""
        self._commit({"event": "changed", "system": text or None})

    def set_model(self, name: str) -> None:
        """Change who answers."""
        self._commit({"event": "changed", "model": name})

    def set(self, key: str, value: Value) -> None:
        """Change a setting of this conversation; None takes it away."""
        self._commit({"event": "set", "key": key, "value": value})

    def rename(self, name: str | None) -> None:
        """Give the session a name, or take it away.

        Raises:
            UsageError: If it is no name, or another session has it.
        """
        if name is None:
            self._commit({"event": "changed", "name": None})
            return
        with ExitStack() as stack:
            if self._journal is not None:
                stack.enter_context(self._desk.guard())
            self._desk.check_name(name, self.id)
            self._commit({"event": "changed", "name": name})

    def restage(self, turn: Turn) -> tuple[StagedPicture, ...]:
        """Return the pictures of a turn that was taken back, to be asked again.

        Those that were dropped or are missing are left out.
        """
        staged = []
        for picture in turn.pictures:
            if picture.is_in_prompt:
                with suppress(OSError):
                    data = read_back(picture.attachment)
                    size = picture.width, picture.height
                    staged.append(StagedPicture(picture.source, data, *size))
        return tuple(staged)

    def close(self) -> None:
        """Let others open it; idempotent. A session without name and question leaves nothing."""
        if self._journal is not None:
            self._journal.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def _pending(self) -> Turn:
        turn = self.conversation.pending
        if turn is None:
            raise ValueError("no turn is pending")
        return turn

    def _commit(self, event: Event) -> None:
        line = events.to_line({**event, "at": self._desk.now().isoformat(timespec="milliseconds")})
        # What is read back is applied, not what was meant: so typed and loaded are the same.
        conversation = events.apply(
            self.conversation, events.from_line(line), self._desk.folder.path
        )
        size = self._state[1]
        if self._journal is not None:
            # Without a question or a name a session is nothing to come back to.
            may_wait = not (conversation.turns or conversation.name)
            size = self._journal.append(line, at=size, may_wait=may_wait)
        self._state = (conversation, size)


def _record(staged: StagedPicture) -> Event:
    return {
        "source": shown_source(staged.source),
        "width": staged.width,
        "height": staged.height,
    }
