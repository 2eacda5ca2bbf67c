"""Rows of files: in every format, from files that anybody may have written."""

from __future__ import annotations

import json
import os
import random
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import pytest

from idefics_cli.core.errors import InputError, UsageError
from idefics_cli.training.data.files import FORMATS, FileRow, read_file

Write = Callable[[str, bytes], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, content: bytes) -> Path:
        (tmp_path / name).write_bytes(content)
        return tmp_path / name

    return write


def cells(path: Path) -> list[object]:
    rows = list(read_file(path))
    assert not any(row.fault for row in rows)
    return [row.cells for row in rows]


def test_the_elements_of_an_array_are_those_of_the_json_library(write: Write) -> None:
    rng = random.Random(0)
    texts = ['a"b\\', "[{", "é漢", "\n", "x" * 300, "🙂"]
    rows = [
        {"t": "".join(rng.choices(texts, k=rng.randrange(60))), "n": [rng.random(), {"a": None}]}
        for _ in range(1500)
    ]
    for indent, is_ascii in ((None, True), (2, True), (None, False)):
        text = json.dumps(rows, indent=indent, ensure_ascii=is_ascii)
        path = write("a.json", b"\xef\xbb\xbf" + text.encode())
        assert path.stat().st_size > 2**21
        assert cells(path) == json.loads(text)


@pytest.mark.parametrize("end", range(2**20 - 3, 2**20 + 4))
def test_an_element_may_end_where_a_block_ends(end: int, write: Write) -> None:
    first = {"a": "x" * (end - 10)}
    path = write("a.json", json.dumps([first, {"b": 1}], separators=(",", ":")).encode())

    assert cells(path) == [first, {"b": 1}]


def test_an_array_is_not_read_as_a_whole(write: Write) -> None:
    row = json.dumps({"text": "x" * 1000}).encode()
    path = write("a.json", b"[" + b",".join([row] * 12_000) + b"]")
    tracemalloc.start()
    count = sum(1 for _ in read_file(path))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()

    assert (count, path.stat().st_size > 12_000_000) == (12_000, True)
    assert peak < 10_000_000


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b'[{"a": 1}', "ends before its JSON array does"),
        (b'[{"a": 1},', "ends before its JSON array does"),
        (b'[{"a": 1} {"a": 2}]', "row 2: no comma before it"),
        (b'[{"a": 1}] x', "has more text after its JSON array"),
        (b'[{"a": 1}, {"a": ', "row 2: no valid JSON"),
        (b'[{"a": 1}, {a: 2}]', "row 2: no valid JSON"),
        (b"[" + b'{"a":' * 100_000, "row 1: no valid JSON (it is nested too deeply)"),
        (b'[{"a": "caf\xe9"}]', "is not UTF-8 text"),
        (b"\xff\xfe[\0{\0", "is not UTF-8 text"),
    ],
)
def test_a_broken_array_is_named_with_the_place(content: bytes, fault: str, write: Write) -> None:
    with pytest.raises((InputError, UsageError)) as caught:
        list(read_file(write("a.json", content)))
    assert fault in str(caught.value)
    assert "a.json" in str(caught.value)


def test_elements_that_are_no_objects_are_faults_of_their_rows(write: Write) -> None:
    path = write("a.json", b'[12, {"a": 1}, "b", NaN, {"a": NaN}, {"a": 1, "a": 2}, [], 34]')
    rows = list(read_file(path))

    assert [row.key for row in rows] == [f"{path} row {n}" for n in range(1, 9)]
    assert [row.fault is None for row in rows] == [False, True, *[False] * 6]
    assert str(rows[4].fault) == "`a` is NaN, which is not a JSON number"
    assert "`a` is given twice" in str(rows[5].fault)


def test_each_wrong_line_is_a_fault_of_its_row(write: Write) -> None:
    deep = b'{"a":' * 2000 + b"1" + b"}" * 2000
    lines = [b'\xef\xbb\xbf{"a": 1}', b"", b"{", b"3", deep, b'{"a": "\xe9"}', b'{"a": 2}']
    path = write("a.jsonl", b"\r\n".join(lines))
    rows = list(read_file(path))

    assert [row.key for row in rows] == [f"{path}:{n}" for n in (1, 3, 4, 5, 6, 7)]
    assert [row.cells for row in rows if row.fault is None] == [{"a": 1}, {"a": 2}]
    assert "not valid JSON" in str(rows[1].fault)
    assert str(rows[4].fault) == "not UTF-8 text (byte 8)"


def test_a_line_without_end_is_refused(write: Write) -> None:
    path = write("a.jsonl", b'{"a": "' + b"x" * (65 * 2**20))
    with pytest.raises(InputError, match="a line is longer than 64 MiB"):
        list(read_file(path))


def test_values_of_tables_may_have_separators_quotes_and_line_breaks(write: Write) -> None:
    content = b'image,caption\r\n0.png,"a, ""b""\r\nc"\r\n\r\n1.png,\r\n'
    path = write("a.csv", content)
    wanted = [FileRow(f"{path}:2", {"image": "0.png", "caption": 'a, "b"\r\nc'})]
    wanted.append(FileRow(f"{path}:5", {"image": "1.png", "caption": ""}))
    assert list(read_file(path)) == wanted

    utf16 = write("b.csv", content.decode().encode("utf-16"))
    assert [row.cells for row in read_file(utf16)] == [row.cells for row in wanted]


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b'image,caption\n0.png,"a\n', ":2: unexpected end of data"),
        (b'image,caption\n0.png,"a"b\n', ":2: "),
        (b"image,caption\n0.png,caf\xe9\n", "is not UTF-8 text"),
        (b"image,caption\n0.png,a\0b\n", ":2: NUL characters"),
        (b"image,caption,caption\n0.png,a,b\n", ":1: two columns are named `caption`"),
        (b"caption\nA cat\n", ":1: no column names the pictures"),
        (b"image,caption\n0.png," + b"a" * 140_000, ":2: field larger than field limit"),
        (b"image,caption\n0.png," + b"a" * 5_000_000, ":2: more than 4 million characters"),
    ],
)
def test_a_broken_table_is_named_with_the_place(content: bytes, fault: str, write: Write) -> None:
    with pytest.raises((InputError, UsageError)) as caught:
        list(read_file(write("a.csv", content)))
    assert fault in str(caught.value)
    assert "a.csv" in str(caught.value)


def test_a_row_with_more_or_fewer_columns_is_a_fault_of_that_row(write: Write) -> None:
    path = write("a.csv", b"image,caption\n0.png,a,b\n1.png\n2.png,c\n")
    rows = list(read_file(path))

    assert [str(row.fault) for row in rows[:2]] == [
        "3 columns, and the first line has 2",
        "1 column, and the first line has 2",
    ]
    assert rows[2] == FileRow(f"{path}:4", {"image": "2.png", "caption": "c"})


def test_a_broken_parquet_file_is_named(write: Write) -> None:
    pytest.importorskip("pyarrow")
    with pytest.raises(InputError, match=r"cannot read `.*a\.parquet`: "):
        list(read_file(write("a.parquet", b"PAR1 and then nothing")))


def test_without_pyarrow_the_error_says_how_to_install_it(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UsageError, match="needs the library pyarrow") as caught:
        list(read_file(write("a.parquet", b"")))
    assert caught.value.hint == "pip install 'idefics-cli[parquet]'"


@pytest.mark.parametrize("extension", FORMATS)
def test_what_is_no_regular_file_is_refused_and_not_waited_for(
    extension: str, tmp_path: Path
) -> None:
    path = tmp_path / f"a{extension}"
    with pytest.raises(InputError, match="no such file"):
        list(read_file(path))
    os.mkfifo(path)
    with pytest.raises(InputError, match="is not a regular file"):
        list(read_file(path))
