"""Each format writes a row that a script can read back, whatever the names and captions."""

from __future__ import annotations

import csv
import errno
import io
import json
import os
import re
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.sinks import SINKS
from idefics_cli.caption.sinks.base import Existing, Target
from idefics_cli.core.errors import IdeficsError, UsageError
from idefics_cli.core.escapes import escaped_name, plain_name
from idefics_cli.core.types import Attachment, CaptionRecord
from tests.support.outputs import (
    NON_UTF8_NAME,
    OF_FILES,
    Recorder,
    enter,
    every_sink,
    record,
    write_records,
    written_bytes,
)

# The formats with one line per picture; in CSV, a caption may have several lines.
ON_LINES = ("tsv", "jsonl")


on_lines = pytest.mark.parametrize("name", ON_LINES)


CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


WEIRD = [
    "new\nline",
    "tab\there",
    "crlf\r\n",
    "\x1b[31mred\x1b[0m",
    "bell\a nul\0 del\x7f",
    "csi\x9b31m nel\x85",
    "separators\u2028\u2029",
    "reversed\u202egpj.exe\u202c",
    "back\\slash \\n \\x41",
    "\"quoted\" 'too'",
    "Zürich 漢字 👩\u200d👧 שלום",
    " spaces ",
    "",
]


def read(name: str, data: bytes) -> list[tuple[str, str]]:
    """Return the path and caption of each line, as a script would read them back."""
    lines = data.decode().splitlines()
    if name == "jsonl":
        rows = [json.loads(line) for line in lines]
        return [(plain_name(row["file_name"]), plain_name(row["caption"] or "")) for row in rows]
    if name.startswith("csv"):
        return [(row["file_name"], row["caption"]) for row in read_rows(name, data)]
    fields = [line.split("\t") for line in lines]
    return [(unescaped(path), unescaped(caption)) for path, caption in fields]


def read_rows(name: str, data: bytes) -> Iterator[dict[str, Any]]:
    """Yield the rows by column, as a script would read them."""
    if name.startswith("csv"):
        encoding = "utf-8-sig" if name == "csvbom" else "utf-8"
        yield from csv.DictReader(io.StringIO(data.decode(encoding), newline=""))
    else:
        yield from map(json.loads, data.splitlines())


def unescaped(text: str) -> str:
    """Return what a field of the text format stands for, by the rule in its documentation."""

    def meaning(match: re.Match[str]) -> str:
        code = match[1]
        if code[0] == "u":
            return chr(int(code[1:], 16))
        if code[0] == "x":
            byte = int(code[1:], 16)
            return chr(byte) if byte < 0x80 else bytes([byte]).decode("utf-8", "surrogateescape")
        return {"n": "\n", "t": "\t", "r": "\r", "\\": "\\"}[code]

    return re.sub(r"\\(x..|u....|.)", meaning, text)


@on_lines
@pytest.mark.parametrize("text", [*WEIRD, NON_UTF8_NAME], ids=ascii)
def test_any_path_and_caption_is_one_line_and_comes_back(name: str, text: str) -> None:
    given = [record("a.jpg", text), record(f"{text}.jpg"), record("z.jpg")]

    data = written_bytes(name, given)
    assert data.count(b"\n") == 3
    assert read(name, data) == [(each.file_name, each.caption) for each in given]


@every_sink
@pytest.mark.parametrize("text", [*WEIRD, NON_UTF8_NAME], ids=ascii)
def test_no_control_character_gets_into_the_output(name: str, text: str) -> None:
    lines = written_bytes(name, [record(text, text)]).decode()

    assert not CONTROL.search(lines)


@every_sink
def test_every_record_is_flushed_when_it_is_written(name: str) -> None:
    stream = Recorder()
    with SINKS[name](Target(stream)) as sink:
        for number in range(3):
            sink.write(record(f"{number}.jpg"))
            assert stream.flushed == stream.data
            assert stream.data.count(b"\n") == number + 1 + name.startswith("csv")


@every_sink
def test_a_file_holds_what_stdout_would_get(name: str, tmp_path: Path) -> None:
    given = [record("a.jpg"), record("b.jpg", "two\nlines")]
    path = tmp_path / "out"
    stdout = Recorder()

    with SINKS[name](Target(stdout, path)) as sink:
        for each in given:
            sink.write(each)
    assert path.read_bytes() == written_bytes(name, given)
    assert stdout.data == b""


@every_sink
def test_a_file_that_is_there_is_kept_unless_told(name: str, tmp_path: Path) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"mine")

    with pytest.raises(UsageError, match=r"`.*out` exists already") as caught:
        enter(SINKS[name](Target(Recorder(), path)))
    assert str(caught.value.hint).startswith("`--overwrite` replaces it, `--existing append` adds")
    assert path.read_bytes() == b"mine"

    with SINKS[name](Target(Recorder(), path, existing="overwrite")) as sink:
        assert path.read_bytes() == b"mine", "nothing is lost before there is something to write"
        sink.write(record("a.jpg"))
    assert path.read_bytes() == written_bytes(name, [record("a.jpg")])


@every_sink
def test_a_file_that_appears_while_the_model_loads_is_kept_too(name: str, tmp_path: Path) -> None:
    path = tmp_path / "out"

    with SINKS[name](Target(Recorder(), path)) as sink:
        path.write_bytes(b"another's")
        with pytest.raises(IdeficsError, match=r"cannot write `.*out`: File exists"):
            sink.write(record("a.jpg"))
        path.rename(tmp_path / "kept")
    assert (tmp_path / "kept").read_bytes() == b"another's"


@every_sink
def test_a_run_that_breaks_before_the_first_caption_leaves_an_old_file_alone(
    name: str, tmp_path: Path
) -> None:
    path = tmp_path / "out"
    path.write_bytes(b"mine")

    with pytest.raises(KeyError), SINKS[name](Target(Recorder(), path, existing="overwrite")):
        raise KeyError
    assert path.read_bytes() == b"mine"


@every_sink
def test_a_run_without_captions_leaves_an_empty_file(name: str, tmp_path: Path) -> None:
    with SINKS[name](Target(Recorder(), tmp_path / "out")):
        pass
    assert (tmp_path / "out").read_bytes() == written_bytes(name, [])


@every_sink
def test_a_target_that_cannot_be_written_is_told_at_once(name: str, tmp_path: Path) -> None:
    make = SINKS[name]

    with pytest.raises(UsageError, match="it is a folder"):
        enter(make(Target(Recorder(), tmp_path)))
    with pytest.raises(UsageError, match=r"no folder `.*missing`"):
        enter(make(Target(Recorder(), tmp_path / "missing" / "out")))


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="no devices here")
@every_sink
def test_a_device_is_written_though_it_exists(name: str) -> None:
    with SINKS[name](Target(Recorder(), Path("/dev/null"))) as sink:
        sink.write(record("a.jpg"))


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device here")
@every_sink
def test_a_full_disk_is_an_error_that_names_the_file(name: str) -> None:
    with (
        pytest.raises(IdeficsError, match="cannot write `/dev/full`: No space left on device"),
        SINKS[name](Target(Recorder(), Path("/dev/full"))) as sink,
    ):
        sink.write(record("a.jpg"))


class Broken(Recorder):
    def __init__(self, error: OSError) -> None:
        super().__init__()
        self._error = error

    def flush(self) -> None:
        raise self._error


@every_sink
def test_a_broken_pipe_is_left_to_the_caller_and_other_errors_are_told(name: str) -> None:
    pipe = Broken(BrokenPipeError(errno.EPIPE, "Broken pipe"))
    with pytest.raises(BrokenPipeError), SINKS[name](Target(pipe)) as sink:
        sink.write(record("a.jpg"))

    full = Broken(OSError(errno.ENOSPC, "No space left on device"))
    with (
        pytest.raises(IdeficsError, match="cannot write stdout: No space left on device"),
        SINKS[name](Target(full)) as sink,
    ):
        sink.write(record("a.jpg"))


@every_sink
def test_a_new_output_has_nothing_completed(name: str) -> None:
    with SINKS[name](Target(Recorder())) as sink:
        assert sink.completed() == frozenset()


def test_a_line_of_text_is_path_tab_caption_and_failures_have_none() -> None:
    failed = CaptionRecord("b.jpg", error="cannot read `b.jpg`", error_kind="truncated")

    data = written_bytes("tsv", [record("a.jpg"), failed, record("c.jpg", "a dog")])
    assert data == b"a.jpg\ta cat\nc.jpg\ta dog\n"


def test_a_json_row_has_every_field_and_failures_have_a_row() -> None:
    failed = CaptionRecord("b.jpg", error="cannot read `b.jpg`", error_kind="truncated")

    data = written_bytes("jsonl", [record("a.jpg"), failed])
    assert data == (
        b'{"file_name": "a.jpg", "caption": "a cat", "status": "ok", "error": null, '
        b'"error_kind": null, "finish": "stop", "width": 640, "height": 480, "sha256": null, '
        b'"tokens": 3, "seconds": 0.123}\n'
        b'{"file_name": "b.jpg", "caption": null, "status": "error", '
        b'"error": "cannot read `b.jpg`", "error_kind": "truncated", "finish": null, '
        b'"width": null, "height": null, "sha256": null, "tokens": 0, "seconds": 0.0}\n'
    )


def test_a_file_name_that_is_no_text_comes_back_from_json_byte_by_byte() -> None:
    failed = CaptionRecord("b.jpg", error=f"cannot read `{NON_UTF8_NAME}`", error_kind="missing")
    named, told = map(
        json.loads, written_bytes("jsonl", [record(NON_UTF8_NAME), failed]).splitlines()
    )

    # Lone surrogates are JSON that pyarrow, pandas and jq refuse, with the whole file.
    assert named["file_name"] == r"caf\xe9 \xff\xfe.jpg"
    assert os.fsencode(plain_name(named["file_name"])) == b"caf\xe9 \xff\xfe.jpg"
    assert told["error"] == r"cannot read `caf\xe9 \xff\xfe.jpg`"


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a\\b.jpg", "a\\b.jpg"),
        ("\\", "\\"),
        ("a\x1b[2J.jpg", r"a\x1b[2J.jpg"),
        ("a\x1b\\b.jpg", r"a\x1b\\b.jpg"),
        ("\x85\u202e\udcff", r"\u0085\u202e\xff"),
        (r"a\x1b[2J.jpg", r"a\\x1b[2J.jpg"),
        (r"a\\b.jpg", r"a\\\\b.jpg"),
        (r"\u202e\b", r"\u202e\b"),
        ("two\nlines\t.jpg", "two\nlines\t.jpg"),
    ],
)
def test_a_name_is_escaped_only_if_it_must_be(name: str, expected: str) -> None:
    assert escaped_name(name) == expected
    assert plain_name(expected) == name


def given_back(name: str, path: Path) -> dict[str, str]:
    """Return the captions by picture that are in *path*, as a script would read them."""
    if name == "txt":
        return {
            f"{found.relative_to(path).as_posix()}": found.read_text("utf-8").removesuffix("\n")
            for found in path.rglob("*.txt")
        }
    if name == "xmp":
        found = {p.relative_to(path).as_posix(): ElementTree.parse(p) for p in path.rglob("*.xmp")}
        item = ".//{http://www.w3.org/1999/02/22-rdf-syntax-ns#}li"
        return {key.removesuffix(".xmp"): root.findtext(item) or "" for key, root in found.items()}
    if name == "parquet":
        parquet = pytest.importorskip("pyarrow.parquet")
        rows = parquet.read_table(path, columns=["file_name", "caption"]).to_pylist()
        return {row["file_name"]: row["caption"] for row in rows if row["caption"] is not None}
    return {key: text for key, text in read(name, path.read_bytes()) if text}


@pytest.mark.parametrize("existing", ["error", "overwrite", "skip", "append"])
@pytest.mark.parametrize("name", sorted(OF_FILES))
def test_every_format_gives_back_the_captions_that_it_got(
    name: str, existing: Existing, tmp_path: Path
) -> None:
    if name == "parquet":
        pytest.importorskip("pyarrow")
    folder = tmp_path / "in"
    captions = {"a.jpg": "a cat, «ünd» 漢", "sub/b.png": 'two\n"lines", and = tab\t', "c.webp": "x"}
    pictures = tuple(CaptionItem(f"{folder}/{key}", Attachment(""), key) for key in captions)
    path = folder / ("out" if SINKS[name].output == "folder" else "out.file")
    folder.mkdir()
    target = Target(Recorder(), path, existing=existing, pictures=pictures)
    records = [record(f"{folder}/{key}", text) for key, text in captions.items()]
    failed = CaptionRecord(f"{folder}/c.webp", error="no", error_kind="missing")
    with SINKS[name](target) as sink:
        assert sink.completed() == frozenset()
        for each in (records[0], records[1], failed):
            sink.write(each)
            position = sink.position()
            assert position is None or position > 0
    sink.finish()

    keys = {"a.txt": "a.jpg", "sub/b.txt": "sub/b.png"}
    found = {keys.get(key, key): text for key, text in given_back(name, path).items()}
    assert found == {key: text for key, text in captions.items() if key != "c.webp"}


@pytest.mark.parametrize("name", ["tsv", "jsonl", "csv"])
def test_a_picture_is_named_from_the_folder_of_the_file_if_it_lies_below(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    names = {
        "photos/sub/a.jpg": "sub/a.jpg",
        str(tmp_path / "photos" / "b.jpg"): "b.jpg",
        "photos-of-others/c.jpg": "photos-of-others/c.jpg",
        "photos/https:/d.jpg": "./https:/d.jpg",
        "../e.jpg": "../e.jpg",
        "https://x.org/f.jpg": "https://x.org/f.jpg",
        "-": "-",
    }
    path = Path("photos/out")
    write_records(name, Target(Recorder(), path), map(record, names))
    assert [name for name, _ in read(name, path.read_bytes())] == list(names.values())
    assert [key for key, _ in read(name, written_bytes(name, map(record, names)))] == list(names)


@pytest.mark.parametrize("name", ["tsv", "jsonl", "csv"])
def test_every_question_has_a_column(name: str) -> None:
    answered = replace(
        record("a.jpg", "a cat\ncalm"), answers=(("subject", "a cat"), ("mood", "calm"))
    )
    failed = CaptionRecord("b.jpg", error="no", error_kind="missing")
    stream = Recorder()
    write_records(name, Target(stream, columns=("subject", "mood")), [answered, failed])

    if name == "tsv":
        assert stream.data == b"a.jpg\ta cat\tcalm\n"
        return
    rows = list(read_rows(name, stream.data))
    assert [row["subject"] for row in rows] == ["a cat", "" if name == "csv" else None]
    assert rows[0]["mood"] == "calm"
    assert "caption" not in rows[0]


def test_notes_are_in_a_json_row_when_there_are_any_and_always_a_column() -> None:
    noted = replace(record("a.jpg"), notes=("answered alone: out of memory", "asked again"))
    rows = list(read_rows("jsonl", written_bytes("jsonl", [noted, record("b.jpg")])))
    assert rows[0]["notes"] == ["answered alone: out of memory", "asked again"]
    assert "notes" not in rows[1]

    rows = list(read_rows("csv", written_bytes("csv", [noted, record("b.jpg")])))
    assert rows[0]["notes"] == "answered alone: out of memory; asked again"
    assert rows[1]["notes"] == ""


@pytest.mark.parametrize(
    "text", [*WEIRD, NON_UTF8_NAME, "=1+1", "-2", '"', 'a,"b"\n,c', "\n"], ids=ascii
)
def test_a_csv_cell_comes_back_but_for_what_is_no_text(text: str) -> None:
    (row,) = read_rows("csv", written_bytes("csv", [record(text, text)]))

    is_text = not (CONTROL.search(text) or set(text) & set("\r\u2028") or text is NON_UTF8_NAME)
    assert row["caption"] == text if is_text else unescaped(row["caption"]) == text
