"""The format webdataset: a tar archive of samples with captions for each archive of pictures.

A run keeps its rows as JSON lines. When all pictures of an archive have theirs, the new archive is
written under an unfinished name and then renamed. So an archive with its final name is whole.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from array import array
from collections import Counter
from collections.abc import Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Self

from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.sinks.base import Target
from idefics_cli.caption.sinks.jsonl import JsonlSink, encode
from idefics_cli.caption.sinks.rows import Row, Value
from idefics_cli.caption.sinks.txt import record_text
from idefics_cli.core.errors import IdeficsError, UsageError
from idefics_cli.core.escapes import NOT_UTF8, escaped_name
from idefics_cli.core.files import (
    cannot_write,
    check_folder,
    is_unfinished,
    limited_lines,
    remove_unfinished,
    replacing,
)
from idefics_cli.core.json_text import parse_json
from idefics_cli.core.types import CaptionRecord
from idefics_cli.core.units import counted
from idefics_cli.images.folders import has_picture_name
from idefics_cli.images.tars import (
    TarMember,
    index_tar,
    is_tar,
    open_member,
    sample_key,
    split_member,
    without_archive_suffix,
)

_RUN_NAME = "idefics-caption"
_ROW = "idefics"
"""The key of our row in the `.json` of a sample."""
_MOST_JSON_BYTES = 2**20


@dataclass(slots=True)
class _Archive:
    """An archive of the run.

    Attributes:
        source: The archive with the pictures.
        output: The archive to write.
        pictures: Number of its pictures in the run.
        offsets: Offsets of their rows.
        is_begun: Whether this sink has written a row of it.
    """

    source: str
    output: Path
    pictures: int = 0
    offsets: array[int] = field(default_factory=lambda: array("Q"))
    is_begun: bool = False

    @property
    def is_done(self) -> bool:
        return len(self.offsets) == self.pictures


class WebdatasetSink(JsonlSink):
    """Writes an archive for each archive; see `Sink`.

    The new archive has the members of the old one, in their order, with `.txt` and `.json` for each
    caption. A sample whose pictures all failed is left out.

    Args:
        target: Where the sink writes; its path is a folder. While a run writes its rows anew, it is
            an unfinished file, and the sink writes only rows.
    """

    def __init__(self, target: Target) -> None:
        if target.path is None:
            raise UsageError("webdataset needs a folder", hint="`-f webdataset -o FOLDER`")
        if target.path.name in ("", ".."):
            raise UsageError(f"webdataset needs a folder of its own, not `{target.path}`")
        folder = target.path.with_name(without_archive_suffix(target.path.name))
        if folder != target.path and not target.path.is_dir():
            raise UsageError(
                f"webdataset writes archives into a folder, and `{target.path}` names an archive",
                hint=f"`-o {folder}`: each new archive in it keeps the name of its source",
            )
        self._folder = target.path
        self._has_only_rows = is_unfinished(target.path.name)
        mark = target.shard.mark if target.shard else ""
        self._run = target.path / f"{_RUN_NAME}{mark}"
        self._rows_file = target.path
        if not self._has_only_rows:
            self._rows_file = self._run.with_name(f"{self._run.name}.rows.jsonl")
        self._given = target
        self._archives: dict[str, _Archive] = {}
        super().__init__(replace(target, path=self._rows_file, existing="overwrite"))

    def check_place(self) -> None:
        """Check that the folder takes files; see `Sink.check_place`."""
        check_folder(self._folder)

    def __enter__(self) -> Self:
        """Check the archives; see `Sink`."""
        if self._has_only_rows:
            return super().__enter__()
        self.check_place()
        self._archives = _archives(self._given)
        self._check_existing()
        self._folder.mkdir(parents=True, exist_ok=True)
        for folder in {archive.output.parent for archive in self._archives.values()}:
            remove_unfinished(folder)
        super().__enter__()
        if self._given.resume_at:
            self._find_rows()
        return self

    def _check_existing(self) -> None:
        existing = self._given.existing
        if existing in ("append", "prepend"):
            raise UsageError(
                f"`--existing {existing}` is for files of one caption each",
                hint="`skip` leaves out the archives that already exist",
            )
        there = [each.output for each in self._archives.values() if each.output.exists()]
        if there and existing == "error" and self._given.resume_at is None:
            more = f" and {counted(len(there) - 1, 'other archive')} exist"
            raise UsageError(
                f"`{there[0]}`{more if len(there) > 1 else ' exists'} already",
                hint="`--existing skip` leaves such archives alone; `--overwrite` replaces them",
            )

    def completed(self) -> AbstractSet[str]:
        """Return the pictures of the archives that are written; see `Sink.completed`."""
        if self._given.existing != "skip":
            return frozenset()
        return {
            picture.key
            for picture in self._given.pictures
            if self._archives[_source_of(picture)].output.exists()
        }

    @property
    def run_path(self) -> Path:
        """Path in the folder; see `Sink.run_path`."""
        return self._run

    def write(self, record: CaptionRecord) -> None:
        """Write the row of *record*, and the archive if it is the last one of it."""
        row = self.cells(record, self._name(record.file_name))
        text = None if record.caption is None else record_text(record, self._given)
        data = encode({"text": text, **row})
        if self._has_only_rows:
            self._write_bytes(data)
            return
        archive = self._archives[_archive_of(record.file_name)[0]]
        if not archive.is_begun:
            # From here on, an archive of an earlier run lacks this caption.
            try:
                archive.output.unlink(missing_ok=True)
            except OSError as error:
                raise cannot_write(archive.output, error) from error
            archive.is_begun = True
        archive.offsets.append(self.position() or 0)
        self._write_bytes(data)
        if archive.is_done:
            self._build(archive)

    def finish(self) -> None:
        """Write the archives that are complete and lack a file, then remove the rows."""
        if self._has_only_rows or not self._rows_file.exists():
            return
        if lacking := [a for a in self._archives.values() if not a.output.exists()]:
            self._find_rows()  # a run may have sorted the rows
        for archive in filter(lambda each: each.is_done, lacking):
            self._build(archive)
        if all(each.output.exists() for each in lacking):
            self._rows_file.unlink()

    def _name(self, key: str) -> str:
        """Return the picture *key* as its row names it, from whatever folder the run is started."""
        try:
            path = os.path.relpath(key, self._folder.parent)
        except ValueError:  # on another drive
            path = os.path.abspath(key)
        return escaped_name(path.replace(os.sep, "/"), NOT_UTF8)

    def _find_rows(self) -> None:
        """Find the rows of each archive in the file of the rows."""
        owners: dict[str, _Archive] = {}
        for archive in self._archives.values():
            archive.offsets = array("Q")
            owners[self._name(archive.source)] = archive
        offset = 0
        with self._rows_file.open("rb") as file:
            for line in limited_lines(file):
                name = json.loads(line)["file_name"] if line.endswith(b"\n") else ""
                if (owner := _owner(name, owners)) is not None:
                    owner.offsets.append(offset)
                offset += len(line)

    def _build(self, archive: _Archive) -> None:
        start, rows = len(self._name(archive.source)) + 1, dict[str, Row]()
        with self._rows_file.open("rb") as file:
            for offset in archive.offsets:
                file.seek(offset)
                row = json.loads(file.readline())
                rows[row["file_name"][start:]] = {**row, "file_name": row["file_name"][start:]}
        try:
            archive.output.parent.mkdir(parents=True, exist_ok=True)
            with replacing(archive.output, durable=True) as target:
                write_archive(archive.source, target, rows)
        except OSError as error:
            raise cannot_write(archive.output, error) from error


def _owner(name: str, owners: Mapping[str, _Archive]) -> _Archive | None:
    """Return the archive of the picture *name*: the longest part of its path that is one."""
    while name:
        name = name.rpartition("/")[0]
        if name in owners:
            return owners[name]
    return None


def _archives(target: Target) -> dict[str, _Archive]:
    """Return the archives of a run by their path.

    Raises:
        UsageError: If a picture is in none, or if two archives would become one file.
    """
    assert target.path is not None
    archives: dict[str, _Archive] = {}
    for picture in target.pictures:
        source = _source_of(picture)
        if source not in archives:
            name = _archive_of(picture.key)[1]
            relative = picture.relative.removesuffix(f"/{name}")
            if relative == picture.relative:  # the user names the picture, and not the archive
                relative = os.path.basename(source)
            archives[source] = _Archive(source, target.path / relative)
        archives[source].pictures += 1
    others = [(p.key, target.path / p.relative) for p in target.others if is_tar(p.key)]
    taken: dict[str, str] = {}
    for source, output in [*((a.source, a.output) for a in archives.values()), *others]:
        path = os.path.normcase(os.path.abspath(output))
        if path == os.path.normcase(os.path.abspath(source)):
            raise UsageError(
                f"`{output}` would replace the archive with the pictures",
                hint="`-o` names another folder",
            )
        if taken.setdefault(path, source) != source:
            raise UsageError(
                f"the captions of `{taken[path]}` and `{source}` would both be in `{output}`",
                hint="name the folder above both, or caption them in two runs",
            )
    return archives


def _source_of(picture: CaptionItem) -> str:
    return _archive_of(picture.key)[0]


def _archive_of(key: str) -> tuple[str, str]:
    found = split_member(key)
    if found is None:
        raise UsageError(
            f"webdataset writes an archive for each archive, and `{key}` is in none",
            hint="`-f txt` or `-f jsonl` is for files",
        )
    return found


def write_archive(source: str, target: BinaryIO, rows: Mapping[str, Row]) -> None:
    """Write the archive with the captions of the archive *source* to *target*.

    Args:
        source: The archive with the pictures.
        target: An open file.
        rows: Name of each picture -> its row, with the `text` of the caption; None if it failed.

    Raises:
        IdeficsError: If a picture is not the one that was captioned, or cannot be read.
        OSError: If the archive cannot be written.
    """
    members = index_tar(source).members
    plan = _Plan(members, rows)
    with tarfile.open(fileobj=target, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, member in members.items():
            if not plan.keeps(name):
                continue
            row = rows.get(name)
            with open_member(f"{source}/{name}", _span(member)) as stream:
                _add(archive, name, member.size, _Checked(stream, source, name, row))
            if row is not None:
                for added, data in plan.added(source, name, row):
                    _add(archive, added, len(data), io.BytesIO(data))


class _Plan:
    """Which members of an archive are copied, and which are added."""

    def __init__(self, members: Mapping[str, TarMember], rows: Mapping[str, Row]) -> None:
        self._members = members
        self._rows = rows
        captioned = [name for name, row in rows.items() if row["text"] is not None]
        stems = Counter(map(_stem, captioned))
        # Two pictures of one name, such as a.jpg and a.png, cannot both have a.txt.
        self._stems = {n: n if stems[_stem(n)] > 1 else _stem(n) for n in captioned}
        ends = (".txt", ".json")
        self._replaced = {f"{stem}{end}" for stem in self._stems.values() for end in ends}
        self._lost = {sample_key(name) for name in members if self._is_picture(name)} - {
            sample_key(name) for name in captioned
        }

    def _is_picture(self, name: str) -> bool:
        return name in self._rows or has_picture_name(name)

    def keeps(self, name: str) -> bool:
        """Whether the member *name* is copied."""
        if self._is_picture(name):
            return name in self._stems
        is_hidden = name.startswith(".") or "/." in name
        return not is_hidden and name not in self._replaced and sample_key(name) not in self._lost

    def added(self, source: str, name: str, row: Row) -> Iterator[tuple[str, bytes]]:
        """Yield the names and contents of the caption and the row of the picture *name*."""
        stem = self._stems[name]
        yield f"{stem}.txt", str(row["text"]).encode("utf-8", "surrogateescape")
        former: dict[str, Value] = {}
        member = self._members.get(f"{stem}.json")
        if member is not None:
            former = _object(source, member)
        cells = {column: value for column, value in row.items() if column != "text"}
        yield f"{stem}.json", encode({**former, _ROW: cells})


def _object(source: str, member: TarMember) -> dict[str, Value]:
    if member.size > _MOST_JSON_BYTES:
        return {}
    with open_member(f"{source}/{member.name}", _span(member)) as stream:
        try:
            found = parse_json(stream.read())
        except ValueError:
            return {}
    return found if isinstance(found, dict) else {}


class _Checked:
    """The bytes of a member. At their end, a picture must be the one that was captioned."""

    def __init__(self, stream: BinaryIO, source: str, name: str, row: Row | None) -> None:
        self._stream = stream
        self._names = source, name
        self._row = row
        self._digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        data = self._stream.read(size)
        self._digest.update(data)
        return data

    def check(self) -> None:
        """Raise an IdeficsError if the bytes are not those that were captioned."""
        if self._row is not None and self._row["sha256"] != self._digest.hexdigest():
            source, name = self._names
            raise IdeficsError(
                f"`{name}` in `{source}` has changed since it was captioned",
                hint="run the same command again",
            )


def _add(archive: tarfile.TarFile, name: str, size: int, stream: io.BytesIO | _Checked) -> None:
    info = tarfile.TarInfo(name)
    info.size = size
    archive.addfile(info, stream)
    if isinstance(stream, _Checked):
        stream.check()


def _span(member: TarMember) -> tuple[int, int] | None:
    return None if member.is_link else (member.offset, member.size)


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))
