"""The folder of a tuning run: the adapter, what it was made of, the log, and checkpoints."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idefics_cli.core.append_log import AppendLog, read_lines
from idefics_cli.core.closing import Closing
from idefics_cli.core.errors import IdeficsError, UsageError
from idefics_cli.core.files import cannot_write, check_folder, remove_unfinished, write_whole
from idefics_cli.core.json_text import parse_json
from idefics_cli.core.paths import display_path
from idefics_cli.models.hub.adapters import CONFIG, RECORD, REPLAY, WEIGHTS

if TYPE_CHECKING:
    from idefics_cli.training.checkpoints import Checkpoints

LOG, CARD, PLOT, SAMPLES = "training.jsonl", "README.md", "loss.svg", "samples.html"
_STATE = "state"
_RUN = "run"


def check_folder_of_run(path: Path) -> None:
    """Check that a run can write to the folder *path*: a new or empty one, or that of a run.

    Raises:
        UsageError: If it holds something else, or takes no files.
        IdeficsError: If the disk is full or fails.
    """
    if os.path.exists(path) and not os.path.isdir(path):
        raise UsageError(f"{display_path(path)} is not a folder", hint="name a folder: `-o`")
    check_folder(path)
    if path.exists() and any(path.iterdir()) and not (path / LOG).is_file():
        raise UsageError(
            f"{display_path(path)} holds other files", hint="name a new folder with `-o`"
        )


class OutputFolder(Closing):
    """The folder *path*, which this process alone may write while it is open.

    Args:
        path: The folder; it is made if it does not exist.
        overwrite: Whether an earlier run in it is removed.

    Raises:
        UsageError: If the folder holds something else, or another process writes to it.
        IdeficsError: If it cannot be written.
    """

    def __init__(self, path: Path, *, overwrite: bool = False) -> None:
        self.path = path
        check_folder_of_run(path)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._log = AppendLog(path / LOG, creates=True, is_locked=True, is_synced=False)
        except BlockingIOError as error:
            raise UsageError(
                f"another run writes to {display_path(path)}", hint="wait until it is done"
            ) from error
        except OSError as error:
            raise cannot_write(path, error) from error
        if overwrite:
            self._clear()
        remove_unfinished(path)
        self._size = sum(len(line) for _, line in read_lines(path / LOG))

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of the run."""
        from idefics_cli.training.checkpoints import Checkpoints

        return Checkpoints(self.path / _STATE)

    @property
    def log_size(self) -> int:
        """Number of bytes of the log."""
        return self._size

    def start(self, run: Mapping[str, object]) -> bool:
        """Begin the run that *run* describes, or go on with it; return whether it is done already.

        Args:
            run: All that the result depends on, as JSON can hold it.

        Raises:
            UsageError: If the folder has a run with other data or settings.
            IdeficsError: If the folder cannot be written.
        """
        known = self._read()
        if known is None or _RUN not in known:
            self.write_record({_RUN: run, "finished": False})
            return False
        changed = _changes(known[_RUN], json.loads(json.dumps(run)))
        if changed:
            raise UsageError(
                f"{display_path(self.path)} has a run with other settings: {'; '.join(changed)}",
                hint="`--overwrite` starts again; another folder keeps both",
            )
        return known.get("finished") is True

    def read_record(self) -> dict[str, Any]:  # Any: JSON
        """Return what the last `write_record` wrote."""
        return self._read() or {}

    def write_record(self, record: Mapping[str, object]) -> None:
        """Write idefics.json, whole or not at all.

        Raises:
            IdeficsError: If it cannot be written.
        """
        self.write(RECORD, json.dumps(record, indent=1, ensure_ascii=False).encode() + b"\n")

    def write(self, name: str, data: bytes) -> None:
        """Write the file *name*, whole or not at all.

        Raises:
            IdeficsError: If it cannot be written.
        """
        try:
            write_whole(self.path / name, data)
        except OSError as error:
            raise cannot_write(self.path / name, error) from error

    def read(self, name: str) -> bytes | None:
        """Return the content of the file *name*; None if it cannot be read."""
        try:
            return (self.path / name).read_bytes()
        except OSError:
            return None

    def append(self, line: Mapping[str, object]) -> None:
        """Append *line* to the log.

        Raises:
            IdeficsError: If it cannot be written.
        """
        data = json.dumps(line).encode() + b"\n"
        try:
            self._size = self._log.append(data, at=self._size)
        except OSError as error:
            raise cannot_write(self.path / LOG, error) from error

    def cut_log(self, size: int) -> None:
        """Cut off everything after the first *size* bytes of the log."""
        self._size = min(size, self._size)
        self._log.cut(self._size)

    def log_lines(self) -> list[dict[str, Any]]:  # Any: JSON
        """Return the lines of the log."""
        found = (parse_json(line) for _, line in read_lines(self.path / LOG))
        return [line for line in found if isinstance(line, dict)]

    def discard(self) -> bool:
        """Remove the run if it has no checkpoint, and close it; return whether it was removed."""
        if self.checkpoints.latest() is not None:
            return False
        self._clear()
        self.close()
        with contextlib.suppress(OSError):
            (self.path / LOG).unlink()
            self.path.rmdir()  # other files of the user stay
        return True

    def close(self) -> None:
        """Let other processes write to the folder; idempotent."""
        self._log.close()

    def _clear(self) -> None:
        """Remove what an earlier run wrote; other files stay."""
        try:
            for name in (RECORD, CARD, PLOT, SAMPLES, REPLAY, CONFIG, WEIGHTS):
                (self.path / name).unlink(missing_ok=True)
            shutil.rmtree(self.path / _STATE, ignore_errors=True)
            self._log.cut(0)
        except OSError as error:
            raise cannot_write(self.path, error) from error

    def _read(self) -> dict[str, Any] | None:
        path = self.path / RECORD
        try:
            record = parse_json(path.read_bytes())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise IdeficsError(
                f"cannot read `{path}`: {error}", hint="`--overwrite` starts again"
            ) from error
        return record if isinstance(record, dict) else None


def _changes(before: object, now: object, name: str = "") -> list[str]:
    """Return each value that differs, as `name: before, now after`."""
    if before == now:
        return []
    if isinstance(before, dict) and isinstance(now, dict):
        keys = dict.fromkeys([*before, *now])
        parts = (_changes(before.get(key), now.get(key), str(key)) for key in keys)
        return [change for part in parts for change in part]
    if name == "digest":
        return ["the data has changed"]
    return [f"{name.replace('_', ' ')} was {_shown(before)}, now {_shown(now)}"]


def _shown(value: object) -> str:
    return "not set" if value is None else value if isinstance(value, str) else json.dumps(value)
