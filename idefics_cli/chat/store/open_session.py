"""An open session: it makes every change both in memory and on disk."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from datetime import datetime

from idefics_cli.chat.attachments import StagedPicture, data_uri, read_back
from idefics_cli.chat.conversation import Conversation, Reply, Turn, Value
from idefics_cli.chat.store import events
from idefics_cli.chat.store.events import Event
from idefics_cli.chat.store.journal import SessionJournal
from idefics_cli.chat.store.lock import FileLock
from idefics_cli.chat.store.pictures import PictureFolder, shown_source, unwritable
from idefics_cli.core.closing import Closing
from idefics_cli.core.types import Finish, Sampling


@dataclass(frozen=True, slots=True)
class StoreAccess:
    """The part of a store that an open session uses.

    Attributes:
        pictures: The folder of the pictures.
        now: Returns the time.
        lock_store: Locks the store against other processes.
        check_name: Takes a name and the id of a session; raises if the session may not have it.
    """

    pictures: PictureFolder
    now: Callable[[], datetime]
    lock_store: Callable[[], FileLock]
    check_name: Callable[[str, str], None]


class OpenSession(Closing):
    """A conversation that goes on. When a method returns, its change is on the disk.

    A store makes this object. A method that raises has changed nothing. Close the session, or use
    it in `with`.

    Attributes:
        id: The id of the session; "" if it is not saved.
    """

    def __init__(
        self,
        session_id: str,
        conversation: Conversation,
        store: StoreAccess,
        journal: SessionJournal | None,
        *,
        is_new: bool = False,
    ) -> None:
        self.id = session_id
        # Conversation and size are one attribute, so that Ctrl-C cannot come between two changes.
        self._state = (conversation, 0 if journal is None else journal.size)
        self._store = store
        self._journal = journal
        # A session that was on the disk before is never removed.
        self._has_answers = not is_new

    @property
    def conversation(self) -> Conversation:
        """The conversation as it stands."""
        return self._state[0]

    def ask(self, text: str, pictures: Sequence[StagedPicture] = ()) -> None:
        """Add a question, which is then pending.

        Raises:
            SessionError: If it cannot be saved.
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
                    # The store is locked until the event is written. Otherwise another process
                    # could remove the picture, because no session uses it yet.
                    stack.enter_context(self._store.lock_store())
                records = [_record(p) | {"file": self._store.pictures.add(p)} for p in pictures]
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
        """Add the answer to the pending question; see `conversation.Reply`.

        If the answer was stopped before its first word, call `roll_back` instead.
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
        self._has_answers = True

    def roll_back(self) -> Turn:
        """Take back the pending question, or end a retry; return the turn as it was.

        When a retry ends (`former` is set), the turn gets its former answer again.
        """
        turn = self._pending()
        self._commit({"event": "rolled_back"})
        return turn

    def retry(self) -> None:
        """Make the last question pending again; its answer becomes `former`.

        Raises:
            UsageError: If there is no question.
        """
        self._commit({"event": "retried"})

    def undo(self) -> Turn:
        """Take back the last turn; return it.

        Raises:
            UsageError: If there is no question.
        """
        turns = self.conversation.turns
        self._commit({"event": "undone"})
        return turns[-1]

    def edit(self, number: int) -> Turn:
        """Take back turn *number*, counted from 1, and all later turns; return that turn.

        Call it only when the new text is known, because these turns are lost then.

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
        """Take *count* more of the oldest turns out of the prompt; they stay in the session.

        Raises:
            UsageError: If no turn would be left.
        """
        self._commit({"event": "forgot", "turns": count})

    def set_system(self, text: str | None) -> None:
        """Change the instruction that precedes the conversation; None or "" removes it."""
        self._commit({"event": "changed", "system": text or None})

    def set_model(self, name: str) -> None:
        """Change the model that answers."""
        self._commit({"event": "changed", "model": name})

    def set_setting(self, key: str, value: Value) -> None:
        """Change a setting of this conversation; None removes it."""
        self._commit({"event": "set", "key": key, "value": value})

    def rename(self, name: str | None) -> None:
        """Give the session a name; None removes it.

        Raises:
            UsageError: If *name* is not valid, or another session has it.
        """
        if name is None:
            self._commit({"event": "changed", "name": None})
            return
        with ExitStack() as stack:
            if self._journal is not None:
                stack.enter_context(self._store.lock_store())
            self._store.check_name(name, self.id)
            self._commit({"event": "changed", "name": name})

    def staged_pictures(self, turn: Turn) -> tuple[StagedPicture, ...]:
        """Return the pictures of a turn that was taken back, for another question.

        Dropped and missing pictures are left out.
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
        """Close the session; idempotent.

        A new session leaves no file if its questions were all taken back, unless it has a name and
        an instruction or settings.
        """
        if self._journal is not None:
            conversation = self.conversation
            is_start = conversation.name and (conversation.system or conversation.settings)
            is_kept = self._has_answers or conversation.turns or is_start
            self._journal.close(removes_file=not is_kept)

    def _pending(self) -> Turn:
        turn = self.conversation.pending
        if turn is None:
            raise ValueError("no turn is pending")
        return turn

    def _commit(self, event: Event) -> None:
        line = events.to_line({**event, "at": self._store.now().isoformat(timespec="milliseconds")})
        # The event is applied as it is read back from its line. So the conversation here is equal
        # to the one that a later load of the session gives.
        pictures = None if self._journal is None else self._store.pictures.path
        conversation = events.apply(self.conversation, events.from_line(line), pictures)
        size = self._state[1]
        if self._journal is not None:
            # A session without a question or a name is not saved, because nobody opens it again.
            may_wait = not (conversation.turns or conversation.name)
            size = self._journal.append(line, at=size, may_wait=may_wait)
        self._state = (conversation, size)


def _record(staged: StagedPicture) -> Event:
    return {
        "source": shown_source(staged.source),
        "width": staged.width,
        "height": staged.height,
    }
