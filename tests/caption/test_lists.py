"""Lists of pictures: each entry is read as it was written, whatever program wrote it."""

from __future__ import annotations

import csv
import io
import json
import os
import random
from pathlib import Path

import pytest

from idefics_cli.caption.inputs.lists import FileList, parse_list, read_list
from idefics_cli.core.errors import InputError, UsageError


def paths(data: bytes, source: str = "-", *, null: bool = False) -> list[str]:
    return [entry.path for entry in parse_list(data, source, null=null).entries]


def rows(data: bytes, source: str) -> list[dict[str, str]]:
    return [dict(entry.columns) for entry in parse_list(data, source).entries]


def error(data: bytes, source: str = "list.txt", *, null: bool = False) -> UsageError:
    with pytest.raises(UsageError) as caught:
        parse_list(data, source, null=null)
    return caught.value


class TestPaths:
    def test_a_line_is_a_path_and_blank_lines_are_none(self) -> None:
        data = b"a.jpg\n\n  \nmy photos/b c.jpg\n"

        assert paths(data) == ["a.jpg", "my photos/b c.jpg"]
        assert [entry.line for entry in parse_list(data).entries] == [1, 4]

    def test_marks_line_ends_and_encodings_of_windows_change_nothing(self) -> None:
        plain = "café.jpg\nb.jpg\n"

        for text in (plain, plain.replace("\n", "\r\n"), plain.rstrip("\n")):
            for encoding in ("utf-8", "utf-8-sig", "utf-16"):
                assert paths(text.encode(encoding)) == ["café.jpg", "b.jpg"]

    def test_bytes_that_are_no_utf8_come_through(self) -> None:
        for null, end in ((False, b"\n"), (True, b"\0")):
            (path,) = paths(b"caf\xe9.jpg" + end, null=null)
            assert os.fsencode(path) == b"caf\xe9.jpg"

    def test_nul_keeps_all_that_a_name_can_hold(self) -> None:
        names = [b"two\nlines.jpg", b' "quoted" ', b'{"file_name": "x"}', b"file_name,b", b"cr\r"]

        found = paths(b"\0".join(names) + b"\0", null=True)
        assert [os.fsencode(path) for path in found] == names

    def test_a_name_is_only_a_name(self) -> None:
        names = ["*.jpg", "~/a.jpg", "https://x.org/a,b.jpg", "#1.jpg", "path, of sorts.jpg", "{x}"]

        for turn in range(len(names)):
            turned = names[turn:] + names[:turn]
            assert paths("\n".join(turned).encode()) == turned

    def test_quotes_around_a_line_are_no_part_of_it_unless_there_is_such_a_file(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        lines = b"\"C:\\my photos\\a.jpg\"\n'b.jpg'\n'70s.jpg\n"
        assert paths(lines) == ["C:\\my photos\\a.jpg", "b.jpg", "'70s.jpg"]
        if os.name != "nt":
            Path('"a.jpg"').touch()
            assert paths(b'"a.jpg"\n') == ['"a.jpg"']

    def test_the_wrong_separator_is_told_with_the_way_out(self) -> None:
        assert "--null" in str(error(b"a.jpg\0b.jpg\0").hint)
        assert "--null" in str(error(b"a.jpg\nb.jpg\n", null=True).hint)


class TestTables:
    def test_json_lines_and_csv_of_the_same_rows_are_the_same(self) -> None:
        cells = [
            {"file_name": "a.jpg", "subject": 'a "cat", black', "note": "two\nlines"},
            {"file_name": "photos/b é.jpg", "subject": "", "note": "; \t"},
        ]
        json_lines = "\n".join(json.dumps(row) for row in cells).encode()

        assert rows(json_lines, "l.jsonl") == cells
        for separator, name in ((",", "l.csv"), (";", "l.csv"), ("\t", "l.tsv")):
            for end in ("\n", "\r\n"):
                text = io.StringIO(newline="")
                writer = csv.DictWriter(
                    text, list(cells[0]), delimiter=separator, lineterminator=end
                )
                writer.writeheader()
                writer.writerows(cells)
                for encoding in ("utf-8", "utf-8-sig", "utf-16"):
                    data = text.getvalue().encode(encoding)
                    assert rows(data, name) == rows(data, "-") == cells
                    assert paths(data, name) == ["a.jpg", "photos/b é.jpg"]

    def test_the_first_line_tells_the_format_where_the_name_does_not(self) -> None:
        for source in ("-", "list.txt", "list"):
            assert paths(b'\n{"path": "a.jpg"}\n', source) == ["a.jpg"]
            assert paths(b"subject;path\nx;a.jpg\n", source) == ["a.jpg"]
            # A single word may be the name of a file, and an extension has precedence.
            assert paths(b"path\na.jpg\n", source) == ["path", "a.jpg"]
        assert paths(b"path\na.jpg\n", "list.CSV") == ["a.jpg"]

    def test_the_first_known_column_names_the_picture(self) -> None:
        assert paths(b"url,Image\nhttps://x.org/b.jpg,a.jpg\n", "l.csv") == ["a.jpg"]
        assert paths(b'{"image": "a.jpg", "file_name": "b.jpg"}', "l.jsonl") == ["b.jpg"]
        assert paths(b'{"image": "a.jpg", "file_name": null}', "l.jsonl") == ["a.jpg"]

    def test_values_that_are_no_text_are_written_as_json_and_null_is_none(self) -> None:
        data = b'{"path": "a", "n": 1.50, "b": true, "l": [1, "\xc3\xa9"], "none": null}'

        (row,) = rows(data, "l.jsonl")
        assert row == {"path": "a", "n": "1.5", "b": "true", "l": '[1, "é"]'}
        assert parse_list(data, "l.jsonl").columns == ("path", "n", "b", "l", "none")

    def test_rows_of_json_may_have_different_columns(self) -> None:
        data = b'{"path": "a", "x": "1"}\n{"path": "b", "y": "2"}\n'

        assert parse_list(data, "l.jsonl").columns == ("path", "x", "y")
        assert rows(data, "l.jsonl") == [{"path": "a", "x": "1"}, {"path": "b", "y": "2"}]

    def test_a_path_of_any_bytes_survives_and_other_text_must_be_utf8(self) -> None:
        (path,) = paths(b"path,x\ncaf\xe9.jpg,y\n", "l.csv")
        assert os.fsencode(path) == b"caf\xe9.jpg"
        # Our own rows write such a name with these escapes.
        (path,) = paths(b'{"file_name": "caf\\udce9.jpg"}', "l.jsonl")
        assert os.fsencode(path) == b"caf\xe9.jpg"
        assert str(error(b"path,x\na.jpg,caf\xe9\n", "l.csv")) == (
            "`l.csv`, line 2: `x` is not UTF-8 text"
        )

    def test_the_index_column_of_pandas_is_left_out(self) -> None:
        assert rows(b",path\n0,a.jpg\n", "l.csv") == [{"path": "a.jpg"}]

    @pytest.mark.parametrize(
        ("data", "source", "message"),
        [
            (b'{"path": "a"}\n{"path"\n', "l.jsonl", "line 2: no valid JSON (Expecting ':' del"),
            (b'{"path": "a"}\n["b"]\n', "l.jsonl", "line 2: no JSON object"),
            (b"[" * 9999, "l.jsonl", "line 1: no valid JSON"),
            (b'\n{"name": "a"}\n', "l.jsonl", "line 2: no column names the picture"),
            (b'{"path": 7}\n', "l.jsonl", "line 1: `path` is not text"),
            (b'{"path": " "}\n', "l.jsonl", "line 1: `path` is empty"),
            (b'{"path": "a\\u0000b"}\n', "l.jsonl", "line 1: `path` holds a NUL character"),
            (b"name,subject\na,b\n", "l.csv", "line 1: no column names the pictures"),
            (b"path,x,x\na,b,c\n", "l.csv", "line 1: two columns are named `x`"),
            (b'path,x\n\na,"1\n2"\nb\n', "l.csv", "line 5: 1 column, and the first line has 2"),
            (b'path,x\na,"b\n', "l.csv", "line 2: unexpected end of data"),
            (b'path,x\na,"b"c\n', "l.csv", "line 2: ',' expected after '\"'"),
            (b"path,x\n,b\n", "l.csv", "line 2: `path` is empty"),
        ],
    )
    def test_a_bad_row_is_told_with_its_file_and_line(
        self, data: bytes, source: str, message: str
    ) -> None:
        assert str(error(data, source)).startswith(f"`{source}`, {message}")

    def test_an_array_of_json_is_told_how_to_become_lines(self) -> None:
        assert "jq" in str(error(b'[\n{"path": "a"}]', "l.json").hint)

    def test_no_rows_are_an_empty_list(self) -> None:
        for data, source in ((b"", "l.csv"), (b"path\n", "l.csv"), (b"\n", "l.jsonl"), (b"", "-")):
            assert parse_list(data, source).entries == ()


def test_a_list_is_read_from_a_file_or_stdin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = b'{"path": "a.jpg"}\n'
    Path("l.jsonl").write_bytes(data)

    assert read_list("l.jsonl") == parse_list(data, "l.jsonl")
    assert read_list("-", io.BytesIO(data)) == parse_list(data, "-")
    assert FileList("sub/l.jsonl", ()).folder == "sub"
    with pytest.raises(InputError, match="no such list: `nosuch`"):
        read_list("nosuch")
    with pytest.raises(InputError, match=r"`\.` is a folder, not a list"):
        read_list(".")


# A lone `\r` is missing, because lines of Windows end with it. Surrogates are bytes that are not
# UTF-8.
LETTERS = "ab1 ,;\"'\t{}[]:/\\.-=é日\u2028\udcff"


def test_random_names_and_cells_come_out_of_every_format_as_they_went_in() -> None:
    random_ = random.Random(4)

    def text(letters: str, least: int = 0) -> str:
        return "".join(random_.choice(letters) for _ in range(random_.randint(least, 9)))

    for _ in range(300):
        names = [f"p{text(LETTERS)}x.jpg" for _ in range(random_.randint(1, 5))]
        raw = [os.fsencode(name) for name in names]
        assert paths(b"\n".join(raw)) == names
        assert paths(b"\r\n".join(raw) + b"\r\n") == names
        assert paths(b"\0".join(raw) + b"\0", null=True) == names
        cells = [
            {"file_name": name, "x": text(LETTERS[:-1] + "\n\r"), "y": text(LETTERS[:-1])}
            for name in names
        ]
        lines = "\n".join(json.dumps(row, ensure_ascii=random_.random() < 0.5) for row in cells)
        assert rows(os.fsencode(lines), "l.jsonl") == cells
        table = io.StringIO(newline="")
        separator = random_.choice(",;\t")
        writer = csv.DictWriter(table, ["file_name", "x", "y"], delimiter=separator)
        writer.writeheader()
        writer.writerows(cells)
        assert rows(os.fsencode(table.getvalue()), "l.csv") == cells


def test_a_list_without_end_is_refused() -> None:
    with pytest.raises(UsageError, match=r"the list `/dev/zero` is larger than 1 MiB"):
        read_list("/dev/zero", max_bytes=2**20)
    with pytest.raises(UsageError, match=r"the list on stdin is larger than 1 KiB"):
        read_list("-", io.BytesIO(b"a.jpg\n" * 1000), max_bytes=1024)
    assert len(read_list("-", io.BytesIO(b"a.jpg\n" * 100), max_bytes=1024).entries) == 100


def test_a_picture_in_the_list_itself_is_a_line() -> None:
    uri = "data:image/png;base64," + "A" * 200_000
    assert paths(f"{uri}\nb.jpg\n".encode()) == [uri, "b.jpg"]


def test_half_a_character_is_no_file_name() -> None:
    found = error(b'{"file_name": "a.jpg"}\n{"file_name": "\\ud800.png"}\n', "list.jsonl")
    assert (
        str(found)
        == "`list.jsonl`, line 2: `file_name` holds a character that no file name can have"
    )
    assert paths(b'{"file_name": "\\udcff.png"}\n', "list.jsonl") == ["\udcff.png"]
