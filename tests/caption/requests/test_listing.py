"""The list of a file's requests: what it finds, and what it holds."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from idefics_cli.caption.requests.listing import RequestList
from idefics_cli.core.errors import InputError, PromptError, UsageError

Open = Callable[..., RequestList]


@pytest.fixture
def listed() -> Iterator[Open]:
    """Returns the list of a file, or of bytes on stdin."""
    with ExitStack() as stack:

        def open_list(source: Path | bytes, *, folder: str | None = None) -> RequestList:
            if isinstance(source, Path):
                return stack.enter_context(RequestList(str(source), folder=folder))
            return stack.enter_context(RequestList("-", io.BytesIO(source), folder=folder))

        yield open_list


def test_rows_are_found_by_line_without_blank_lines_or_a_byte_order_mark(listed: Open) -> None:
    rows = listed(b'\xef\xbb\xbf{"a": 1}\r\n\n  \n{"b": 2}  \n{"c": 3}')

    keys = [item.key for item in rows]
    assert keys == ["1", "4", "5"]
    assert [rows.text(key) for key in keys] == [b'{"a": 1}', b'{"b": 2}', b'{"c": 3}']
    assert rows.place("4") == "stdin, line 4"
    assert (rows[1].key, len(rows), [item.key for item in rows[1:]]) == ("4", 3, ["4", "5"])


def test_a_row_is_known_again_wherever_it_stands(listed: Open) -> None:
    before = listed(b'{"a": 1}\n{"b": 2}\n{"a": 1}\n')
    after = listed(b'{"new": 0}\n{"b": 2}\n{"a": 1}\n{"a": 1}\n')

    assert before.identity("2") == after.identity("2")
    assert [before.identity(k) for k in "13"] == [after.identity(k) for k in "34"]
    assert before.identity("1") != before.identity("3")


def test_a_custom_id_is_repeated_only_by_lines_of_a_batch(listed: Open) -> None:
    lines = [
        {"custom_id": "a", "body": {}},
        {"custom_id": "a", "prompt": "x"},
        {"custom_id": "b", "body": {}},
        {"custom_id": "a", "url": "/v1/chat/completions"},
        {"custom_id": 5, "body": {}},
        {"custom_id": 5, "body": {}},
    ]
    rows = listed(b"\n".join(json.dumps(row).encode() for row in lines))

    assert [rows.same_id(item.key) for item in rows] == [None, None, None, "1", None, None]


def test_a_row_that_is_too_long_is_refused_without_its_neighbours(
    tmp_path: Path, listed: Open
) -> None:
    path = tmp_path / "requests.jsonl"
    with path.open("wb") as file:
        file.write(b'{"a": 1}' + b" " * 99 + b"\n")
        file.truncate(2**28 + 1000)  # a line of zeros, which takes no room on the disk
        file.seek(0, os.SEEK_END)
        file.write(b'\n{"b": 2}\n')
    rows = listed(path)

    assert [rows.text(key) for key in ("1", "3")] == [b'{"a": 1}', b'{"b": 2}']
    with pytest.raises(PromptError, match=r"^the row is longer than 256 MiB$"):
        rows.text("2")


def test_a_file_that_changes_during_the_run_is_noticed(tmp_path: Path, listed: Open) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_bytes(b'{"a": 1}\n')
    rows = listed(path)
    path.write_bytes(b'{"a": 2}\n')

    with pytest.raises(PromptError, match="has changed during the run"):
        rows.text("1")


@pytest.mark.parametrize(
    ("data", "kind", "message"),
    [
        ('{"a": 1}\n'.encode("utf-16"), InputError, "is not UTF-8 text"),
        (b"\x89PNG\r\n\x1a\n\0\0", InputError, "is not UTF-8 text"),
        (b'[{"prompt": "x"}]', UsageError, "holds a JSON array, not a request a line"),
    ],
)
def test_a_file_of_another_kind_is_refused_as_a_whole(
    data: bytes, kind: type[Exception], message: str, listed: Open
) -> None:
    with pytest.raises(kind, match=message):
        listed(data)


def test_a_missing_file_or_a_folder_is_named(tmp_path: Path, listed: Open) -> None:
    for source, reason in ((tmp_path / "no.jsonl", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(InputError, match=rf"^cannot read `{source}`: {reason}"):
            listed(source)
    with pytest.raises(InputError) as info:
        RequestList("https://example.com/r.jsonl")
    assert (
        info.value.hint == "`curl https://example.com/r.jsonl | idefics batch - -o answers.jsonl`"
    )


def test_a_device_without_an_end_is_refused(listed: Open) -> None:
    with pytest.raises(UsageError, match="a line of `/dev/zero` is longer than"):
        listed(Path("/dev/zero"))


def test_paths_are_relative_to_the_file_or_the_named_folder(tmp_path: Path, listed: Open) -> None:
    path = tmp_path / "requests.jsonl"
    path.write_bytes(b"{}\n")

    assert listed(path).resolve("a.jpg") == str(tmp_path / "a.jpg")
    assert listed(path, folder="x").resolve("a.jpg") == os.path.join("x", "a.jpg")
    assert listed(b"{}").resolve("a.jpg") == "a.jpg"
    assert listed(b"{}").resolve("~/a.jpg") == os.path.expanduser("~/a.jpg")
