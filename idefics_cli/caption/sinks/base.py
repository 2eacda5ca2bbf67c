"""The protocol of sinks, which store the records of captions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.shards.shard import Shard
from idefics_cli.caption.sinks.dataset import is_dataset
from idefics_cli.core.errors import IdeficsError
from idefics_cli.core.types import CaptionRecord
from idefics_cli.engine.schema.form import ReplyColumn

TEXT_EXTENSION = ".txt"
"""Extension of sidecars if the user gives none."""

Existing = Literal["error", "skip", "overwrite", "append", "prepend"]
"""What to do with captions that exist already."""


class ByteStream(Protocol):
    """A stream of bytes, such as `sys.stdout.buffer`."""

    def write(self, data: bytes, /) -> object:
        """Write all of *data*."""
        ...

    def flush(self) -> object:
        """Pass buffered bytes on to the stream's destination."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """Where a sink writes.

    Attributes:
        stdout: Receives the records if there is no *path*.
        path: The file to write, or the folder of the sidecars (text files, one for each picture).
            Without a folder, sidecars are written beside the pictures.
        existing: What to do with captions that exist already. In a single file, `append` and
            `skip` add rows at the end, `skip` only for pictures without a row.
        resume_at: Size in bytes to which the file is cut before rows are added. With None, the
            file begins as *existing* says. Sidecars and stdout ignore it.
        columns: Names of the answers; empty for the single caption of a run.
        fields: The properties of replies that are JSON objects. *columns* are then their names.
        samples: Number of neighbouring *columns* that are samples of the answer to one question.
        pictures: All pictures of the run, done or not. Sidecars and `existing="skip"` need them
            before the first record.
        others: Pictures of other shards of the run, which have sidecars in the same folders.
        shard: The shard of the run that the sink writes; None if there are no shards.
        full_names: Whether sidecars are named `a.jpg.txt` instead of `a.txt`. With None, the
            format decides.
        text_extension: Extension of sidecars, with its dot.
        is_dataset: Whether the file has only rows that the library `datasets` can read: captions of
            pictures whose files exist. The name of *path* decides. It stays true if
            `dataclasses.replace` then changes *path*.
    """

    stdout: ByteStream
    path: Path | None = None
    existing: Existing = "error"
    resume_at: int | None = None
    columns: tuple[str, ...] = ()
    pictures: Sequence[CaptionItem] = ()
    full_names: bool | None = None
    text_extension: str = TEXT_EXTENSION
    fields: tuple[ReplyColumn, ...] = field(default=(), kw_only=True)
    samples: int = field(default=1, kw_only=True)
    others: Sequence[CaptionItem] = field(default=(), kw_only=True)
    shard: Shard | None = field(default=None, kw_only=True)
    is_dataset: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        if is_dataset(self.path):
            object.__setattr__(self, "is_dataset", True)

    @property
    def shard_fields(self) -> dict[str, object] | None:
        """The shard, and the columns of its rows, as values for JSON; None without shards."""
        if self.shard is None:
            return None
        fields = [[field.name, field.kind] for field in self.fields]
        table = {"columns": list(self.columns), "fields": fields, "samples": self.samples}
        return {"index": self.shard.index, "count": self.shard.count, **table}


class RecordError(IdeficsError):
    """The caption of one picture cannot be stored; the run goes on with the other pictures."""


class SidecarError(RecordError):
    """The sidecar of a picture cannot be written."""


class FileNameError(RecordError):
    """The name of a picture cannot be in the output."""


class Sink(Protocol):
    """Stores records. There is one writer, in the process of the run; workers never write."""

    def check_place(self) -> None:
        """Check that the target can be written, before the pictures are known; write nothing.

        Raises:
            UsageError: If the target exists already, or cannot be written.
            IdeficsError: If the disk is full or fails.
        """
        ...

    def __enter__(self) -> Self:
        """Check that the target can be written.

        The target does not change before the first record. The exception is a file that is resumed:
        the torn row of a killed run is cut off here.

        Raises:
            UsageError: If the target exists already, cannot be written, or would get two captions
                in one place.
        """
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def completed(self) -> AbstractSet[str]:
        """Return the keys of the pictures that have a caption, if `existing` is "skip"."""
        ...

    @property
    def run_path(self) -> Path | None:
        """Path of the output. The other files of the run are named after it: `out.csv.journal`.

        None for stdout and devices, which a later call cannot continue.
        """
        ...

    @property
    def rows_path(self) -> Path | None:
        """Path of the file that has the rows, which a run may cut and write anew.

        None for stdout, devices and sidecars.
        """
        ...

    def position(self) -> int | None:
        """Return the size in bytes of the rows in `rows_path`, for `Target.resume_at`.

        None if there is no such file.
        """
        ...

    def write(self, record: CaptionRecord) -> CaptionRecord | None:
        """Store *record* and flush. If this fails, the records before it stay complete.

        Returns:
            If the sink has changed the picture, the record with its new digest and stamp.

        Raises:
            RecordError: If only this record cannot be stored.
            IdeficsError: If the target cannot be written.
            BrokenPipeError: If stdout is a pipe that was closed.
        """
        ...

    def finish(self) -> None:
        """Make the output from the rows, after the sink is closed, however the run ended.

        Raises:
            IdeficsError: If the output cannot be written. The rows then stay.
        """
        ...


@dataclass(frozen=True, slots=True)
class SinkFormat:
    """A format of captions.

    Attributes:
        make: Makes the sink that writes the format.
        extensions: Extensions of output files of this format, in lower case.
        output: What the format can write: "stream" means stdout or a file, "file" means a file
            only, and "folder" means one file for each picture, which stands beside the picture if
            no folder is named.
        variant_of: Another format with files of the same extensions.
        full_names: For sidecars, the default of `Target.full_names`.
    """

    make: Callable[[Target], Sink]
    extensions: tuple[str, ...] = ()
    output: Literal["stream", "file", "folder"] = "stream"
    variant_of: str | None = None
    full_names: bool | None = None

    def __call__(self, target: Target) -> Sink:
        """Make the sink for *target*."""
        return self.make(target)

    def other_full_names(self, given: bool | None) -> bool | None:
        """Return *given* (see `Target.full_names`) if files have other names than by default."""
        return None if self.full_names is None or given == self.full_names else given
