"""Sessions on disk: one append-only file of JSON lines each, and a folder of pictures.

DATA/sessions/ID.jsonl    one event on each line; it is on the disk before the next prompt appears
DATA/sessions/ID.lock     exists while the session is open; contains the process id
DATA/pictures/SHA256.ext  a copy of each picture
"""

from __future__ import annotations

import os
import re
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from contextlib import ExitStack, suppress
from datetime import UTC, datetime
from pathlib import Path

from idefics_cli.chat.conversation import Conversation, Value
from idefics_cli.chat.store import events
from idefics_cli.chat.store.events import Event
from idefics_cli.chat.store.journal import SessionJournal, lock_path
from idefics_cli.chat.store.lock import FileLock, HeldElsewhereError
from idefics_cli.chat.store.open_session import OpenSession, StoreAccess
from idefics_cli.chat.store.pictures import (
    PICTURE_NAME,
    PictureFolder,
    make_private_folder,
    unwritable,
)
from idefics_cli.chat.store.session_info import (
    SessionInfo,
    describe_damaged,
    describe_session,
)
from idefics_cli.core.errors import SessionError, UsageError
from idefics_cli.core.files import is_unfinished, read_regular_file

__all__ = ["LAST", "NullStore", "OpenSession", "SessionInfo", "SessionStore", "check_name"]

LAST = "last"
_ID = re.compile(r"[a-z0-9]{8}")
_ALPHABET = "abcdefghjkmnpqrstuvwxyz23456789"  # no characters that look alike
_NAME_CHARACTERS = 80
_PATIENCE_SECONDS = 10.0
_LEFT_OVER_SECONDS = 3600.0
_MOST_BYTES = 1 << 28  # a session holds texts; a larger file is not a session


class SessionStore:
    """The sessions in a folder.

    Args:
        folder: `core.paths.data_folder`; made when something is written.
        now: Returns the time; None is the system clock.
    """

    def __init__(self, folder: Path, *, now: Callable[[], datetime] | None = None) -> None:
        self._root = folder
        self._sessions = folder / "sessions"
        self.pictures = PictureFolder(folder / "pictures")
        self._access = StoreAccess(
            self.pictures, now or _utc_now, self._lock_store, self._check_name
        )

    def create(
        self,
        model: str,
        name: str | None = None,
        *,
        system: str | None = None,
        settings: Mapping[str, Value] | None = None,
    ) -> OpenSession:
        """Return a new session; its file is written when it has a name or a question.

        Raises:
            UsageError: If *name* is not valid, or another session has it.
        """
        session_id = _new_id()
        while self._path(session_id).exists():
            session_id = _new_id()
        with ExitStack() as stack:
            if name is not None:
                stack.enter_context(self._lock_store())
                self._check_name(name, session_id)
            journal = SessionJournal(self._path(session_id))
            conversation = _begin(self._access, journal, model, name, system, settings)
        return OpenSession(session_id, conversation, self._access, journal, is_new=True)

    def open(self, key: str) -> OpenSession:
        """Open the session that `find` finds for *key*.

        A pending turn means that the program ended while the model answered. `roll_back` takes it
        back. `conversation.missing` are the pictures that cannot be found any more.

        Raises:
            SessionError: If there is no such session; or if it is open in another process, is
                damaged, or was written by a later version of this program.
        """
        session_id = self.find(key)
        path = self._path(session_id)
        # The file is read before the journal is resumed, because a file that this version cannot
        # read must not be changed.
        self._load(path)
        journal = SessionJournal.resume(path)
        try:
            conversation, _ = self._load(path)
            for picture in conversation.pictures:
                self.pictures.restore(Path(picture.attachment.source).name, picture.source)
        except BaseException:
            journal.close()
            raise
        return OpenSession(session_id, _with_missing(conversation), self._access, journal)

    def read(self, key: str) -> tuple[SessionInfo, Conversation]:
        """Return a session as it is on disk, even if another process has it open.

        Raises:
            SessionError: If there is none, it is damaged, or a later version wrote it.
        """
        path = self._path(self.find(key))
        conversation, log = self._load(path)
        return describe_session(path, conversation, log), _with_missing(conversation)

    def find(self, key: str) -> str:
        """Return the id of the session that *key* means.

        Args:
            key: An id, a name, the beginning of an id, or `last`.

        Raises:
            SessionError: If there is none, or more than one.
        """
        if _ID.fullmatch(key) and self._path(key).exists():
            return key
        infos = self.list()
        if key == LAST and infos:
            # A session that cannot be read or has no questions is skipped, because the user most
            # likely means another one.
            sound = [info for info in infos if info.problem is None]
            return max(sound or infos[:1], key=lambda info: info.turns > 0).id
        named = [info.id for info in infos if info.name == key]
        found = named or [info.id for info in infos if key and info.id.startswith(key)]
        if len(found) == 1:
            return found[0]
        if found:
            raise SessionError(f"`{key}` is the beginning of {len(found)} ids: {', '.join(found)}")
        if not infos:
            raise SessionError("there are no sessions yet", hint="`idefics chat` starts one")
        raise SessionError(f"no session `{key}`", hint="`idefics sessions` lists them")

    def list(self) -> list[SessionInfo]:
        """Return all sessions, the one that changed last first."""
        infos = []
        for path in self._sessions.glob("*.jsonl"):
            if not _ID.fullmatch(path.stem):
                continue
            with suppress(FileNotFoundError):  # removed in the meantime
                infos.append(self._describe(path))
        return sorted(infos, key=lambda info: (info.updated, info.id), reverse=True)

    def _describe(self, path: Path) -> SessionInfo:
        try:
            return describe_session(path, *self._load(path))
        except SessionError as error:
            return describe_damaged(path, str(error))

    def is_open(self, session_id: str) -> bool:
        """Return whether a process has the session open."""
        if not lock_path(self._path(session_id)).exists():
            return False
        try:
            FileLock(lock_path(self._path(session_id))).release()
        except HeldElsewhereError:
            return True
        return False

    def remove(self, keys: Iterable[str], *, dry_run: bool = False) -> int:
        """Remove sessions, and the pictures that no other session has; return the bytes freed.

        The pictures stay if another session cannot be read, because it may have them.

        Args:
            keys: The sessions, as for `find`.
            dry_run: Count the bytes without removing anything.

        Raises:
            SessionError: If a session is unknown, open, or cannot be removed.
        """
        paths = {self._path(self.find(key)) for key in keys}
        if not self._root.is_dir():
            return 0
        with ExitStack() as stack:
            for path in sorted(paths):
                stack.callback(SessionJournal.lock_only(path).close)
                _check_is_ours(path)
            stack.enter_context(self._lock_store())
            try:
                files = [*paths, *self._unwanted_pictures(paths), *self._left_over()]
                freed = sum(file.lstat().st_size for file in files)
                for file in () if dry_run else files:
                    file.unlink()
            except OSError as error:
                reason = (error.strerror or str(error)).lower()
                raise SessionError(f"cannot remove `{error.filename}`: {reason}") from error
        return freed

    def _left_over(self) -> Sequence[Path]:
        """Return the unfinished files of killed programs, but not those of running ones."""
        if not self._sessions.is_dir():
            return ()
        before = time.time() - _LEFT_OVER_SECONDS
        parts = (path for path in self._sessions.iterdir() if is_unfinished(path.name))
        return [path for path in parts if path.lstat().st_mtime < before]

    def _unwanted_pictures(self, removed: Set[Path]) -> Sequence[Path]:
        others = set(self._sessions.glob("*.jsonl")) - removed
        try:
            wanted = {name for path in others for name in _names_of_pictures(path)}
            former = {name for path in removed for name in _names_of_pictures(path)}
        except OSError:
            return ()
        return self.pictures.unwanted(wanted, former)

    def _path(self, session_id: str) -> Path:
        return self._sessions / f"{session_id}.jsonl"

    def _lock_store(self) -> FileLock:
        try:
            make_private_folder(self._root)
        except OSError as error:
            raise unwritable(f"sessions in `{self._root}`", error) from error
        return FileLock(self._root / "store.lock", wait_seconds=_PATIENCE_SECONDS)

    def _check_name(self, name: str, session_id: str) -> None:
        check_name(name)
        for info in self.list():
            if info.name == name and info.id != session_id:
                raise UsageError(
                    f"session {info.id} has the name `{name}`",
                    hint="choose another name, or open that session",
                )

    def _load(self, path: Path) -> tuple[Conversation, Sequence[Event]]:
        try:
            # Bytes after the last newline are an incomplete line: the program ended while it wrote
            # the line.
            *lines, _ = read_regular_file(path, limit_bytes=_MOST_BYTES).split(b"\n")
            log = [_event(line, number) for number, line in enumerate(lines, 1)]
            return events.replay(log, self.pictures.path), log
        except FileNotFoundError:
            raise
        except OSError as error:
            reason = (error.strerror or str(error)).lower()
            raise SessionError(f"cannot read session `{path.stem}`: {reason}") from error
        except SessionError as error:
            hint = error.hint or f"its file is `{path}`"
            raise SessionError(f"cannot read session `{path.stem}`: {error}", hint=hint) from error


class NullStore:
    """A store for `--no-save`: it saves nothing, and pictures stay in memory."""

    def __init__(self, *, now: Callable[[], datetime] | None = None) -> None:
        def no_lock() -> FileLock:
            raise RuntimeError("nothing is saved, so there is nothing to lock")

        folder = PictureFolder(Path("/nonexistent"))
        self._access = StoreAccess(
            folder, now or _utc_now, no_lock, lambda name, _: check_name(name)
        )

    def create(
        self,
        model: str,
        name: str | None = None,
        *,
        system: str | None = None,
        settings: Mapping[str, Value] | None = None,
        start: Conversation | None = None,
    ) -> OpenSession:
        """Return a new session that is not saved; it continues the conversation *start*, if given.

        Raises:
            UsageError: If *name* is not valid.
        """
        if name is not None:
            check_name(name)
        conversation = start or _begin(self._access, None, model, name, system, settings)
        return OpenSession("", conversation, self._access, None)


def check_name(name: str) -> None:
    """Check that *name* is valid for a session.

    Raises:
        UsageError: If it is not.
    """
    if not name.strip() or not name.isprintable() or len(name) > _NAME_CHARACTERS:
        raise UsageError(
            "this name is not valid for a session",
            hint=f"a name is one line of 1 to {_NAME_CHARACTERS} characters",
        )
    if name == LAST:
        raise UsageError(f"`{LAST}` always means the last session", hint="choose another name")


def _begin(
    access: StoreAccess,
    journal: SessionJournal | None,
    model: str,
    name: str | None,
    system: str | None,
    settings: Mapping[str, Value] | None,
) -> Conversation:
    at = access.now().isoformat(timespec="milliseconds")
    line = events.to_line({**events.started(model, name, system, settings or {}), "at": at})
    if journal is not None:
        journal.append(line, at=0, may_wait=name is None)
    return events.apply(None, events.from_line(line), access.pictures.path)


def _event(line: bytes, number: int) -> Event:
    try:
        return events.from_line(line)
    except (ValueError, RecursionError) as error:
        raise SessionError(f"line {number} is damaged") from error


def _with_missing(conversation: Conversation) -> Conversation:
    paths = {p.digest: p.attachment.source for p in conversation.pictures if p.digest}
    gone = frozenset(digest for digest, path in paths.items() if not os.path.isfile(path))
    return conversation.with_missing(gone)


def _check_is_ours(path: Path) -> None:
    """Check that the file at *path* was a session, even if it is damaged now.

    Raises:
        SessionError: If it was none. A user may keep other files in the folder, or link to one.
    """
    try:
        data = read_regular_file(path, limit_bytes=_MOST_BYTES)
    except OSError as error:
        raise SessionError(
            f"cannot read `{path}`: {(error.strerror or str(error)).lower()}",
            hint="if it is a session, remove the file yourself",
        ) from error
    if b'"event"' not in data and data.strip(b"\0"):
        raise SessionError(f"`{path}` is not a session", hint="remove the file yourself")


def _names_of_pictures(path: Path) -> set[str]:
    # The names are found by a search in the raw bytes. The events of a damaged session, or of one
    # by a later version, cannot be read, but its pictures must stay too.
    data = read_regular_file(path, limit_bytes=_MOST_BYTES)
    return {match[0] for match in PICTURE_NAME.finditer(data.decode("latin-1"))}


def _new_id() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(8))


def _utc_now() -> datetime:
    return datetime.now(UTC)
