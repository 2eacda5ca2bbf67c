"""Sessions on disk: one append-only file of JSON lines each, and a folder of pictures.

    DATA/sessions/ID.jsonl    every event on a line, on the disk before the next prompt appears
    DATA/sessions/ID.lock     while it is open; holds the process id
    DATA/pictures/SHA256.ext  copies of all pictures, each once
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Self

from idefics_cli.chat import events
from idefics_cli.chat.events import Event
from idefics_cli.chat.journal import Journal, read_lines
from idefics_cli.chat.lock import FileLock, HeldElsewhereError, holder
from idefics_cli.chat.pictures import (
    PictureFolder,
    Staged,
    data_uri,
    make_private_folder,
    shown_source,
    unwritable,
)
from idefics_cli.chat.session import Conversation, Reply, Turn, Value
from idefics_cli.core.errors import SessionError, UsageError
from idefics_cli.core.types import Finish, Sampling

LAST = "last"
_ID = re.compile(r"[a-z0-9]{8}")
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"  # none that look alike
_NAME_CHARACTERS = 80
_PATIENCE_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What a listing tells of a session.

    Attributes:
        id: Eight letters and digits.
        name: Given by the user, if any.
        title: The name, or the first question on one line.
        model: Its current model.
        created: When it began.
        updated: When it last changed.
        turns: Questions that are answered.
        pictures: All that came with these.
        size_bytes: Of its file; pictures may be shared.
        problem: Why it cannot be opened, if so.
    """

    id: str
    name: str | None
    title: str
    model: str
    created: datetime
    updated: datetime
    turns: int = 0
    pictures: int = 0
    size_bytes: int = 0
    problem: str | None = None


class OpenSession:
    """A conversation that is being held; every change is on disk when a method returns.

    Made by a store. A method that raises has changed nothing. Close it, or use it in `with`.

    Attributes:
        id: "" when it is not saved.
        conversation: As it stands.
    """

    def __init__(
        self,
        session_id: str,
        conversation: Conversation,
        journal: Journal | None,
        folder: PictureFolder,
        *,
        guard: Callable[[], FileLock] | None = None,
        resources: ExitStack | None = None,
    ) -> None:
        self.id = session_id
        self.conversation = conversation
        self._journal = journal
        self._folder = folder
        self._guard = guard
        self._resources = resources or ExitStack()

    @property
    def is_saved(self) -> bool:
        """Whether anything is kept."""
        return self._journal is not None

    def ask(self, text: str, pictures: Sequence[Staged] = ()) -> None:
        """Add a question, which is then pending; `conversation.request` is what to send.

        Raises:
            SessionError: If it cannot be kept.
        """
        if self._journal is None:
            records = [_record(p) | {"attachment": data_uri(p)} for p in pictures]
            self._commit({"event": "asked", "text": text, "pictures": records})
            return
        with ExitStack() as stack:
            # Nobody may sweep a picture away before the event that names it is written.
            if self._guard and pictures:
                stack.enter_context(self._guard())
            try:
                records = [_record(p) | {"file": self._folder.add(p)} for p in pictures]
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
        raise NotImplementedError

    def restage(self, turn: Turn) -> tuple[Staged, ...]:
        """Return the pictures of a turn that was taken back, to be asked again."""
        raise NotImplementedError

    def close(self) -> None:
        """Let others open it; idempotent. A session without a single turn leaves nothing."""
        self._resources.close()

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
        raise NotImplementedError


class SessionStore:
    """The sessions in a folder.

    Args:
        folder: `core.paths.data_folder`; made when something is written.
        now: The time.
    """

    def __init__(self, folder: Path, *, now: Callable[[], datetime] | None = None) -> None: ...

    def create(
        self,
        model: str,
        name: str | None = None,
        *,
        system: str | None = None,
        settings: Mapping[str, Value] | None = None,
    ) -> OpenSession:
        """Return a new session; nothing is written before the first question.

        Raises:
            UsageError: If *name* is no name, or another session has it.
        """
        raise NotImplementedError

    def open(self, key: str) -> OpenSession:
        """Return a session to go on with; see `find` for *key*.

        A pending turn means that the program ended while the model answered: `roll_back`
        returns it. `conversation.missing` are the pictures that cannot be found any more.

        Raises:
            SessionError: If there is none, it is open elsewhere, damaged or of a later version.
        """
        raise NotImplementedError

    def read(self, key: str) -> tuple[SessionInfo, Conversation]:
        """Return a session as it is on disk, also while it is open elsewhere.

        Raises:
            SessionError: As `open`.
        """
        raise NotImplementedError

    def find(self, key: str) -> str:
        """Return the id of a session: by id, name, beginning of the id, or `last`.

        Raises:
            SessionError: If there is none or more than one.
        """
        raise NotImplementedError

    def list(self) -> list[SessionInfo]:
        """Return every session, the last changed first."""
        raise NotImplementedError

    def remove(self, keys: Collection[str]) -> int:
        """Remove sessions, and the pictures that no other has; return the bytes freed.

        Raises:
            SessionError: If one is unknown or open; then none is removed.
        """
        raise NotImplementedError


class NullStore:
    """Keeps nothing, for `--no-save`: pictures stay in memory."""

    def create(
        self,
        model: str,
        name: str | None = None,
        *,
        system: str | None = None,
        settings: Mapping[str, Value] | None = None,
        start: Conversation | None = None,
    ) -> OpenSession:
        """Return a new session that is not saved; *start* is a conversation to go on with."""
        raise NotImplementedError


def _record(staged: Staged) -> Event:
    return {
        "source": shown_source(staged.source),
        "width": staged.width,
        "height": staged.height,
    }
