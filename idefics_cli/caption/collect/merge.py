"""The merge of shards: their records, in the order of one run, become rows of one output."""

from __future__ import annotations

import heapq
import json
import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from idefics_cli.caption.collect.survey import ShardState, Survey, order_of
from idefics_cli.caption.records import failed
from idefics_cli.caption.resume.journal_lines import decode_line, decode_record, number, text
from idefics_cli.caption.resume.names import identity, reachable
from idefics_cli.caption.resume.run_files import RunFiles, write_beside, write_failures
from idefics_cli.caption.sinks import SINKS
from idefics_cli.caption.sinks.base import RecordError, Sink, Target
from idefics_cli.caption.sinks.dataset import check_dataset
from idefics_cli.core.errors import IdeficsError, UsageError
from idefics_cli.core.files import (
    cannot_write,
    check_place,
    remove_unfinished,
    stamp_of_file,
    unfinished_path,
)
from idefics_cli.core.types import CaptionRecord

# At most this many records of all shards together are in memory at a time.
_MOST_RECORDS = 20_000


@dataclass(frozen=True, slots=True)
class Collected:
    """What was written.

    Attributes:
        pictures: Number of pictures.
        failed: Number of those that failed.
        failures: List of the pictures that failed; None if there is none.
    """

    pictures: int
    failed: int
    failures: Path | None


def records_of(survey: Survey) -> Iterator[CaptionRecord]:
    """Yield the records of all shards in the order of one run, with names from the current folder.

    Raises:
        IdeficsError: If a journal changed since the survey, or cannot be read.
    """
    size = max(1, _MOST_RECORDS // len(survey.shards))
    streams = [_records(each, size) for each in survey.shards]
    for _, record in heapq.merge(*streams, key=lambda each: each[0]):
        yield record


def _records(state: ShardState, size: int) -> Iterator[tuple[tuple[int, str], CaptionRecord]]:
    folder = state.journal.parent
    for start in range(0, len(state.offsets), size):
        some, found = state.offsets[start : start + size], []
        # The file is opened anew for each group of records: there may be more shards than files
        # that a process may open at a time.
        try:
            with state.journal.open("rb") as file:
                for offset in some:
                    file.seek(offset)
                    found.append(_read(file.readline(), folder))
        except OSError as error:
            reason = error.strerror or str(error)
            raise IdeficsError(f"cannot read `{state.journal}`: {reason}") from error
        except (KeyError, TypeError, ValueError) as error:
            raise IdeficsError(
                f"`{state.journal}` changed while it was read", hint="wait until its run is done"
            ) from error
        yield from found


def _read(line: bytes, folder: Path) -> tuple[tuple[int, str], CaptionRecord]:
    fields = decode_line(line, needs_checksum=True)
    key, record = text(fields["key"]), decode_record(fields["record"])
    order = order_of(number(fields["order"]), key, folder)
    # The names in a record are relative to the folder in which its shard ran. From another folder,
    # such a name does not lead to the picture.
    name = record.file_name if identity(record.file_name, folder) == key else None
    return order, replace(record, file_name=name or reachable(key, folder))


def check_output(output: Path, *, overwrite: bool) -> None:
    """Check that *output* can be written: a new file, or one that was collected before.

    Raises:
        UsageError: If it is another file, or its folder is missing.
    """
    check_place(output)
    if output.exists() and not overwrite and _collected_stamp(output) != stamp_of_file(output):
        raise UsageError(
            f"`{output}` exists already", hint="`--overwrite` replaces it; or name another file"
        )


def _collected_stamp(output: Path) -> object:
    try:
        fields = json.loads(RunFiles.beside(output).header.read_bytes())
    except (OSError, ValueError):
        return None
    return fields.get("collected") if isinstance(fields, dict) else None


def write_collected(
    survey: Survey,
    output: Path,
    format_: str,
    *,
    on_row: Callable[[int], None] = lambda done: None,
) -> Collected:
    """Write the rows of all shards to *output*, whole or not at all, and the files beside it.

    Args:
        survey: The shards.
        output: The file.
        format_: A key of `SINKS`.
        on_row: Called with the number of rows that are written, after each.

    Raises:
        IdeficsError: If a journal cannot be read, or a file cannot be written.
    """
    count, names = _write_output(survey, output, format_, on_row)
    files = RunFiles.beside(output)
    write_failures(files.failures, names)
    _write_header(survey, output, files, {"collected": count - len(names), "failed": len(names)})
    return Collected(count, len(names), files.failures if names else None)


def _write_output(
    survey: Survey, output: Path, format_: str, on_row: Callable[[int], None]
) -> tuple[int, list[str]]:
    """Write the rows aside, then replace *output*; return what `_write_rows` does."""
    remove_unfinished(output.parent)
    temporary, table = unfinished_path(output), survey.table
    target = Target(
        _NoStream(),
        output,  # its name decides whether it is a data set
        existing="overwrite",
        columns=table.columns,
        fields=table.fields,
        samples=table.samples,
    )
    sink = SINKS[format_](replace(target, path=temporary))
    try:
        with sink:
            count, names = _write_rows(survey, sink, target, on_row)
        sink.finish()
        os.replace(temporary, output)
    except OSError as error:
        raise cannot_write(output, error) from error
    finally:
        for path in (temporary, sink.rows_path):
            if path is not None:
                with suppress(OSError):
                    path.unlink()
    return count, names


def _write_rows(
    survey: Survey, sink: Sink, target: Target, on_row: Callable[[int], None]
) -> tuple[int, list[str]]:
    """Write the rows; return their number, and the pictures that failed."""
    count, names = 0, []
    for record in records_of(survey):
        if target.is_dataset:
            assert target.path is not None
            check_dataset(target.path, [record.file_name], ())
            if not os.path.isfile(record.file_name):
                continue
        try:
            sink.write(record)
        except RecordError as error:
            record = failed(record.file_name, error)
            sink.write(record)
        count += 1
        if record.error is not None:
            names.append(record.file_name)
        on_row(count)
    return count, names


def _write_header(survey: Survey, output: Path, files: RunFiles, counts: dict[str, int]) -> None:
    fields = {
        "settings": dict(survey.settings),
        "commit": survey.commit,
        "shards": len(survey.shards),
        "pictures": counts,
        "collected": stamp_of_file(output),
    }
    write_beside(files.header, json.dumps(fields, indent=2).encode() + b"\n")


class _NoStream:
    """Takes nothing: the rows go to a file."""

    def write(self, data: bytes, /) -> None:
        raise TypeError("rows of shards go to a file")

    def flush(self) -> None:
        """Do nothing."""
