"""The protocol of what stores caption records."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Literal, Protocol, Self

from idefics_cli.caption.item import CaptionItem
from idefics_cli.core.errors import IdeficsError
from idefics_cli.core.types import CaptionRecord

# What becomes of captions that are there already.
Existing = Literal["error", "skip", "overwrite", "append", "prepend"]


class ByteStream(Protocol):
    """What bytes can be written to, as `sys.stdout.buffer`."""

    def write(self, data: bytes, /) -> object:
        """Take all of *data*."""
        ...

    def flush(self) -> object:
        """Pass on what was written."""
        ...


@dataclass(frozen=True, slots=True)
class Target:
    """Where a sink writes.

    Attributes:
        stdout: Takes the records when there is no *path*.
        path: The file to write; the folder, for sidecars, which lie beside the pictures if it
            is None.
        existing: What becomes of captions that are there already. Of one file: `append` and
            `skip` write behind its rows, `skip` only of pictures that have no row in it.
        resume_at: Go on with the file: cut it to so many bytes, and write behind them. None
            begins it, by *existing*. Without meaning for sidecars and stdout.
        columns: Names of the questions; empty for the one caption of a run.
        pictures: All pictures of the run, done or not, for sinks that must know them before
            the first record: sidecars, and `existing="skip"`.
        full_names: Sidecars are named `a.jpg.txt` instead of `a.txt`.
    """

    stdout: ByteStream
    path: Path | None = None
    existing: Existing = "error"
    resume_at: int | None = None
    columns: tuple[str, ...] = ()
    pictures: Sequence[CaptionItem] = ()
    full_names: bool = False


class SidecarError(IdeficsError):
    """The caption of one picture cannot be stored; those of others may."""


class Sink(Protocol):
    """Where caption records go. One writer, in the driver process; never called from a worker."""

    def __enter__(self) -> Self:
        """Check that the target can be written; it is left alone until the first record.

        Only a file that is resumed is touched: what a killed run left behind is cut off.

        Raises:
            UsageError: If it is there already, cannot be written, or would get two captions in
                one place.
        """
        ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def completed(self) -> AbstractSet[str]:
        """Return the keys of pictures to leave out: with `existing="skip"`, the captioned ones."""
        ...

    @property
    def run_path(self) -> Path | None:
        """Path of the output, whose name the files of a run extend: `out.csv.journal`.

        None for an output that does not stay: stdout and devices.
        """
        ...

    @property
    def rows_path(self) -> Path | None:
        """Path of the file that has the rows, which a run may cut and write anew.

        None for stdout, devices and sidecars.
        """
        ...

    def position(self) -> int | None:
        """Return the number of bytes that `rows_path` keeps, as `Target.resume_at` takes them.

        None where there is no such file.
        """
        ...

    def write(self, record: CaptionRecord) -> None:
        """Store *record* and flush. After an error, what was written before is still whole.

        Raises:
            SidecarError: If only this record cannot be stored.
            IdeficsError: If the target cannot be written.
            BrokenPipeError: If nobody reads stdout any more.
        """
        ...

    def finish(self) -> None:
        """Make the output from the rows, once the sink is closed, however the run ended.

        Raises:
            IdeficsError: If the output cannot be written; the rows then stay.
        """
        ...


@dataclass(frozen=True, slots=True)
class SinkFormat:
    """A format of captions.

    Attributes:
        make: Makes the sink that writes the format.
        extensions: Extensions of output files that mean this format, in lower case.
        output: What the format can write: a "stream" is stdout or a file, a "file" a file only;
            a "folder" is one file for each picture, beside the pictures if no folder is named.
    """

    make: Callable[[Target], Sink]
    extensions: tuple[str, ...] = ()
    output: Literal["stream", "file", "folder"] = "stream"

    def __call__(self, target: Target) -> Sink:
        """Make the sink for *target*."""
        return self.make(target)
