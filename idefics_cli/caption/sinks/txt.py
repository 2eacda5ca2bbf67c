"""The format txt: one text file for each picture, a sidecar, beside it or in another folder."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Callable, Collection, Sequence
from collections.abc import Set as AbstractSet
from functools import cache, lru_cache
from itertools import islice
from pathlib import Path, PurePosixPath
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.sinks.base import SidecarError, Target
from idefics_cli.core.caption_file import read_caption
from idefics_cli.core.errors import UsageError
from idefics_cli.core.escapes import escaped
from idefics_cli.core.files import (
    cannot_write,
    check_folder,
    remove_unfinished,
    write_whole,
)
from idefics_cli.core.sources import is_uri
from idefics_cli.core.types import CaptionRecord
from idefics_cli.images.tars import is_tar, split_member

# After one of these errors, every other picture would fail too, so they end the run.
_ENDS_THE_RUN = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS})


class TxtSink:
    """Writes the caption of each picture to a separate file; see `Sink`.

    A caption is written to a temporary file, which then replaces the sidecar. So no program can
    read half a caption. Files are not synced to the disk (fsync): after a power failure, one may be
    missing or empty. For a picture that failed, no file is written, and an existing file stays.

    Args:
        target: Where the sink writes.
        folds_case: Returns whether a folder treats upper and lower case as equal. None uses the
            function `folds_case`, which looks into the folder.
    """

    run_name = "idefics-caption"
    """Start of the names of the files of a run."""
    has_one = "exists"
    """What is said of a sidecar that has a caption."""
    existing_hint = "`--existing skip` leaves them alone; or overwrite, append, prepend"

    def __init__(self, target: Target, *, folds_case: Callable[[str], bool] | None = None) -> None:
        self._target = target
        self._folds_case = folds_case
        self._paths: dict[str, str] = {}
        self._completed: AbstractSet[str] = frozenset()

    def check_place(self) -> None:
        """Check that the folder, if one is named, takes files; see `Sink.check_place`."""
        if self._target.path is not None:
            check_folder(self._target.path)

    def __enter__(self) -> Self:
        self._paths = self.find_paths()
        self.check_place()
        folders = {Path(f) for f in set(map(os.path.dirname, self._paths.values()))}
        if self._target.path is None:
            _check_folders(folders)
        if self._target.existing not in ("append", "prepend"):
            self._completed = self.find_captions()
        if self._target.existing == "error" and self._completed:
            raise self._existing()
        for folder in folders:
            remove_unfinished(folder)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def completed(self) -> AbstractSet[str]:
        """Return the keys with an existing sidecar; see `Sink.completed`."""
        return self._completed

    @property
    def run_path(self) -> Path:
        """Path in the folder of the sidecars, or in the common folder of all pictures."""
        target = self._target
        mark = target.shard.mark if target.shard else ""
        folder = target.path or _common_folder([*target.pictures, *target.others])
        return folder / f"{self.run_name}{mark}"

    @property
    def rows_path(self) -> None:
        """None; see `Sink.rows_path`."""
        return None

    def position(self) -> None:
        """Return None; see `Sink.position`."""
        return None

    def write(self, record: CaptionRecord) -> CaptionRecord | None:
        """Write the sidecar of *record*; see `Sink.write`."""
        if record.caption is None:
            return None
        path, shown = Path(self._paths[record.file_name]), Path(self.shown(record.file_name))
        try:
            if self._target.path is not None:
                path.parent.mkdir(parents=True, exist_ok=True)
            return self.store(record, path)
        except OSError as error:
            if error.errno in _ENDS_THE_RUN:
                raise cannot_write(shown, error) from error
            raise SidecarError(f"cannot write `{shown}`: {error.strerror or error}") from error

    def finish(self) -> None:
        """Do nothing, because every sidecar is complete already; see `Sink.finish`."""

    def find_paths(self) -> dict[str, str]:
        """Return the path of each sidecar by the key of its picture; see `sidecars`."""
        return sidecars(self._target, self._folds_case or folds_case)

    def shown(self, key: str) -> str:
        """Return how messages name the file for the caption of the picture *key*."""
        return self._paths[key]

    def find_captions(self) -> set[str]:
        """Return the keys of the pictures that the run leaves alone, or must not begin with.

        "append" and "prepend" do not ask.
        """
        return {key for key, path in self._paths.items() if self.has_caption(path)}

    def has_caption(self, path: str) -> bool:
        """Return whether the sidecar *path* has what the run leaves alone; see `find_captions`."""
        return self._target.existing != "overwrite" and os.path.lexists(path)

    def store(self, record: CaptionRecord, path: Path) -> CaptionRecord | None:
        """Write the sidecar *path* of *record*, which has a caption; see `Sink.write`.

        Raises:
            OSError: If it cannot be written.
            SidecarError: If it must not be written.
        """
        old = _read(path).rstrip() if self._target.existing in ("append", "prepend") else ""
        text = self.joined(self.text(record), old)
        # The sidecar is written without fsync, which would take longer than some captions take to
        # generate.
        write_whole(path, f"{text}\n".encode("utf-8", "surrogateescape"), durable=False)
        return None

    def text(self, record: CaptionRecord) -> str:
        """Return the text of *record*, which has a caption: the caption, or a line per answer."""
        return record_text(record, self._target)

    def joined(self, text: str, old: str) -> str:
        """Return *text* joined with the *old* text of the sidecar, as `existing` says.

        If the old text already has *text* at the end or the start, it is returned unchanged.
        """
        existing = self._target.existing
        if old in ("", text.rstrip()):
            return text
        if existing == "append":
            joint = "" if re.match(r"[\s,.;:]", text) else " "
            return old if old.endswith(f"{joint}{text}".rstrip()) else f"{old}{joint}{text}"
        joint = "" if text[-1:].isspace() else " "
        return old if old.startswith(f"{text}{joint}") else f"{text}{joint}{old}"

    def _existing(self) -> UsageError:
        count, total = len(self._completed), len(self._paths)
        first = next(self.shown(key) for key in self._paths if key in self._completed)
        what = f"`{first}` {self.has_one}" if count == 1 else f"{count} of {total} captions exist"
        example = "" if count == 1 else f", such as `{first}`"
        return UsageError(
            f"{what} already{example}",
            hint=self.existing_hint,
        )


def record_text(record: CaptionRecord, target: Target) -> str:
    """Return the text of *record*, which has a caption: the caption, or a line per answer."""
    answers = [text for _, text in record.answers] if target.columns else []
    if target.samples > 1:  # kohya's `enable_wildcard` takes a line at random
        answers = [" ".join(text.split()) for text in answers]
    return escaped("\n".join(answers) if answers else record.caption or "")


def _common_folder(pictures: Sequence[CaptionItem]) -> Path:
    folders = {os.path.dirname(os.path.abspath(picture.key)) for picture in pictures}
    try:
        return Path(os.path.relpath(os.path.commonpath(folders)))
    except ValueError:  # on several drives
        return Path()


def sidecars(target: Target, folds_case: Callable[[str], bool]) -> dict[str, str]:
    """Return the path of the sidecar of each of `target.pictures`, by the key of the picture.

    Args:
        target: Where the sink writes.
        folds_case: As in `TxtSink`.

    Raises:
        UsageError: If two pictures have the same sidecar, if a sidecar is a picture of the run, or
            if a picture is not a file and so has no folder.
    """
    paths: dict[str, str] = {}
    # The archives of other shards stand for pictures that this task has not listed.
    others = (picture for picture in target.others if not is_tar(picture.key))
    every = [*target.pictures, *others]
    taken = {_identity(p.key): p.key for p in every if not is_uri(p.key)}
    folded: dict[tuple[str, ...], str] = {}
    for picture in every:
        path = _sidecar(picture, target)
        identity = _identity(path)
        if identity in taken:
            raise _collision(taken[identity], picture.key, path, target)
        taken[identity] = picture.key
        other = folded.setdefault(tuple(map(str.casefold, identity)), picture.key)
        if other != picture.key and folds_case(os.path.dirname(path)):
            raise _collision(other, picture.key, path, target, folds=True)
        paths[picture.key] = path
    return {picture.key: paths[picture.key] for picture in target.pictures}


@cache
def folds_case(folder: str) -> bool:
    """Return whether `A.txt` and `a.txt` are the same file in *folder*, which may not exist yet.

    The test writes nothing. It looks for existing files by their names in the other case.
    """
    while not os.path.isdir(folder):
        folder = os.path.dirname(os.path.abspath(folder))
    here = os.path.abspath(folder)
    with os.scandir(here) as entries:
        names = [os.path.join(here, entry.name) for entry in islice(entries, 9)]
    for path in [*names, here]:
        head, name = os.path.split(path)
        other = os.path.join(head, name.swapcase())
        if other != path:
            return os.path.exists(other) and os.path.samefile(path, other)
    return False


# Paths are strings here, because `Path` takes several times as long for 200,000 pictures.
def _sidecar(picture: CaptionItem, target: Target) -> str:
    if target.path is not None:
        relative = picture.relative or _name(picture.key)
        if relative.startswith("/") or ".." in relative.split("/"):
            relative = relative.rpartition("/")[2]
        path = os.path.join(target.path, relative or "picture")
    elif is_uri(picture.key) or split_member(picture.key) is not None:
        raise UsageError(
            f"`{picture.key}` has no folder to put a caption file in",
            hint="`-o FOLDER` says where",
        )
    else:
        path = picture.key
    name = path if target.full_names else os.path.splitext(path)[0]
    return f"{name}{target.text_extension}"


def _name(key: str) -> str:
    if key == "-":
        return "stdin"
    if not is_uri(key):
        return PurePosixPath(key).name
    if re.match("(data|clipboard):", key, re.IGNORECASE):
        return re.sub(r"[^\w.-]+", "-", key)
    # A `%2F` in a URL is not a folder separator, so the slash is replaced after decoding.
    return unquote(urlsplit(key).path.rpartition("/")[2]).replace("/", "_").replace("\0", "_")


def _identity(path: str) -> tuple[str, str]:
    folder, name = os.path.split(path)
    return _absolute(folder, os.getcwd()), os.path.normcase(name)


@lru_cache(maxsize=1024)
def _absolute(folder: str, current: str) -> str:
    return os.path.normcase(os.path.normpath(os.path.join(current, folder)))


def _collision(
    first: str, second: str, path: str, target: Target, *, folds: bool = False
) -> UsageError:
    message = f"the captions of `{first}` and `{second}` would both be `{path}`"
    if folds:
        message += ": upper and lower case are one there"
    elif first == second or _identity(first) == _identity(path):
        message = f"the caption of `{second}` would replace the picture `{first}`"
    is_apart = PurePosixPath(first).suffix.casefold() != PurePosixPath(second).suffix.casefold()
    if not target.full_names and (is_apart or not folds):
        full = f"{PurePosixPath(second).name}{target.text_extension}"
        return UsageError(message, hint=f"`--full-names` makes it `{full}`")
    return UsageError(message, hint="caption them in two runs, or leave `-o` out")


def _check_folders(folders: Collection[Path]) -> None:
    """Raise a UsageError if no sidecar can be written at all."""
    unwritable = [folder for folder in folders if not os.access(folder, os.W_OK | os.X_OK)]
    if unwritable and len(unwritable) == len(folders):
        reason = "permission denied" if unwritable[0].exists() else "no such folder"
        raise UsageError(
            f"cannot write to `{unwritable[0]}`: {reason}",
            hint="`-o FOLDER` puts the captions elsewhere",
        )


def _read(path: Path) -> str:
    try:
        return read_caption(path).decode("utf-8", "surrogateescape")
    except FileNotFoundError:
        return ""
    except OSError as error:
        reason = error.strerror or str(error)
        raise SidecarError(f"cannot read the caption `{path}`: {reason}") from error
