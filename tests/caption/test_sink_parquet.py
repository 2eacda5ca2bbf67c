"""A Parquet file takes its place when the run ends, however it ends."""

from __future__ import annotations

import errno
import importlib.util
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.sinks import SINKS
from idefics_cli.caption.sinks.base import Existing, Target
from idefics_cli.caption.sinks.parquet import rows_file
from idefics_cli.core.errors import IdeficsError, UsageError
from idefics_cli.core.types import Attachment, CaptionRecord

has_pyarrow = importlib.util.find_spec("pyarrow") is not None
needs_pyarrow = pytest.mark.skipif(not has_pyarrow, reason="pyarrow is not installed")
NAMES = "file_name caption status error error_kind finish width height sha256 tokens seconds notes"


class NoStream:
    def write(self, data: bytes) -> int:
        raise AssertionError("a file writes nothing to stdout")

    def flush(self) -> None: ...


def record(key: str, caption: str = "a cat") -> CaptionRecord:
    return CaptionRecord(
        key, caption=caption, finish="stop", width=640, height=480, new_tokens=3, seconds=0.12345
    )


FAILED = CaptionRecord("b.jpg", error="no", error_kind="missing")


def write(target: Target, records: Iterable[CaptionRecord]) -> None:
    """Write a whole Parquet file, also if *records* raises in the middle."""
    sink = SINKS["parquet"](target)
    try:
        with sink:
            for each in records:
                sink.write(each)
    except UsageError:
        raise
    except BaseException:
        sink.finish()
        raise
    sink.finish()


def target(path: Path, existing: Existing = "error", **more: Any) -> Target:
    return Target(NoStream(), path, existing=existing, **more)


def read(path: Path) -> list[dict[str, Any]]:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as file:
        return list(file.read().to_pylist())


def test_without_the_library_the_error_says_how_to_get_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UsageError, match="parquet needs the library pyarrow") as caught:
        write(target(tmp_path / "out.parquet"), [])
    assert caught.value.hint == "pip install 'idefics-cli[parquet]'"


def test_it_is_not_written_to_stdout() -> None:
    with pytest.raises(UsageError, match="parquet needs a file"):
        write(Target(NoStream()), [])


@needs_pyarrow
def test_it_holds_the_rows_that_json_lines_would(tmp_path: Path) -> None:
    noted = replace(record("c.jpg", "new\nline, \x1b ünd 漢"), notes=("one", "two"))
    given = [record("a.jpg"), FAILED, noted]
    path = tmp_path / "out.parquet"
    write(target(path), given)
    with SINKS["jsonl"](target(tmp_path / "out.jsonl")) as sink:
        for each in given:
            sink.write(each)

    lines = (tmp_path / "out.jsonl").read_text("utf-8").splitlines()
    assert read(path) == [{"notes": None, **json.loads(line)} for line in lines]
    assert list(read(path)[0]) == NAMES.split()
    assert sorted(path.name for path in tmp_path.glob("out*")) == ["out.jsonl", "out.parquet"]


@needs_pyarrow
def test_columns_have_their_types_though_no_row_has_a_value(tmp_path: Path) -> None:
    from pyarrow import parquet

    path = tmp_path / "out.parquet"
    write(target(path), [])
    schema = parquet.read_schema(path)
    assert schema.names == NAMES.split()
    assert [str(schema.field(name).type) for name in ("caption", "width", "seconds", "notes")] == [
        "string",
        "int64",
        "double",
        "list<element: string>",
    ]


@needs_pyarrow
def test_a_name_that_is_no_text_is_written_as_text(tmp_path: Path) -> None:
    write(target(tmp_path / "out.parquet"), [record(os.fsdecode(b"caf\xe9.jpg"))])

    assert read(tmp_path / "out.parquet")[0]["file_name"] == r"caf\xe9.jpg"


@needs_pyarrow
def test_every_question_has_a_column(tmp_path: Path) -> None:
    answered = replace(record("a.jpg", "x\ny"), answers=(("subject", "x"), ("mood", "y")))
    path = tmp_path / "out.parquet"
    write(target(path, columns=("subject", "mood")), [answered, FAILED])

    assert [(row["subject"], row["mood"]) for row in read(path)] == [("x", "y"), (None, None)]
    assert "caption" not in read(path)[0]


@needs_pyarrow
@pytest.mark.parametrize("error", [KeyboardInterrupt, IdeficsError])
def test_a_run_that_breaks_off_leaves_a_file_with_what_it_wrote(
    error: type[BaseException], tmp_path: Path
) -> None:
    path = tmp_path / "out.parquet"

    def broken() -> Iterator[CaptionRecord]:
        yield record("a.jpg")
        raise error("stop")

    with pytest.raises(error):
        write(target(path), broken())
    assert [row["file_name"] for row in read(path)] == ["a.jpg"]


@needs_pyarrow
def test_a_killed_run_is_gone_on_with_from_its_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    sink = SINKS["parquet"](target(path)).__enter__()
    sink.write(record("a.jpg"))
    end = sink.position()
    with rows_file(path).open("ab") as file:
        file.write(b'{"file_name": "b.jp')
    assert not path.exists()

    write(target(path, resume_at=end), [record("b.jpg")])
    assert [row["file_name"] for row in read(path)] == ["a.jpg", "b.jpg"]


@needs_pyarrow
def test_a_file_that_is_there_is_kept_replaced_or_gone_on_with(tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    write(target(path), [record("a.jpg"), FAILED])
    before = path.read_bytes()
    with pytest.raises(UsageError, match="exists already"):
        write(target(path), [])
    assert path.read_bytes() == before

    write(target(path, "append"), [record("c.jpg")])
    assert [row["file_name"] for row in read(path)] == ["a.jpg", "b.jpg", "c.jpg"]

    keys = [str(tmp_path / name) for name in ("a.jpg", "b.jpg", "d.jpg")]
    pictures = tuple(CaptionItem(key, Attachment(key)) for key in keys)
    with SINKS["parquet"](target(path, "skip", pictures=pictures)) as sink:
        assert sink.completed() == {keys[0]}
        sink.write(record(keys[2]))
    sink.finish()
    assert [row["file_name"] for row in read(path)] == ["a.jpg", "b.jpg", "c.jpg", "d.jpg"]

    write(target(path, "overwrite"), [record("z.jpg")])
    assert [row["file_name"] for row in read(path)] == ["z.jpg"]


@needs_pyarrow
def test_a_device_cannot_be_replaced_by_a_parquet_file() -> None:
    with pytest.raises(UsageError, match="cannot write `/dev/null`: parquet needs a file"):
        write(target(Path("/dev/null")), [])
    assert Path("/dev/null").is_char_device()


@needs_pyarrow
@pytest.mark.parametrize("existing", ["append", "skip"])
def test_another_kind_of_file_is_not_gone_on_with(existing: Existing, tmp_path: Path) -> None:
    path = tmp_path / "out.parquet"
    path.write_bytes(b"mine")
    with pytest.raises(UsageError, match=r"cannot continue `.*out.parquet`: "):
        write(target(path, existing), [])
    assert path.read_bytes() == b"mine"
    path.unlink()

    write(target(path, columns=("mood",)), [])
    with pytest.raises(UsageError, match="it has other columns"):
        write(target(path, existing), [])


@needs_pyarrow
def test_a_full_disk_leaves_the_old_file_and_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "out.parquet"
    write(target(path), [record("a.jpg")])
    before = path.read_bytes()

    def full(old: object, new: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(IdeficsError, match=r"cannot write `.*out.parquet`: No space left"):
        write(target(path, "overwrite"), [record("b.jpg")])
    assert path.read_bytes() == before
    assert rows_file(path).exists()
    assert sorted(path.name for path in tmp_path.glob("out*")) == [
        "out.parquet",
        "out.parquet.rows.jsonl",
    ]


@needs_pyarrow
def test_a_relative_name_with_a_colon_is_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path = Path("run-10:30.parquet")
    pictures = tuple(CaptionItem(key, Attachment(key)) for key in ("a.jpg", "b.jpg"))
    write(target(path), [record("a.jpg")])
    write(target(path, "skip", pictures=pictures), [record("b.jpg")])
    assert [row["file_name"] for row in read(path.absolute())] == ["a.jpg", "b.jpg"]
