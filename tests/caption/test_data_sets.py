"""An output named `metadata.jsonl` is a data set that `datasets` reads, however a run ends.

`datasets` 5.2 raises an error for the whole set at a row whose picture it does not find, and takes
the columns from the first rows.
"""

from __future__ import annotations

import csv
import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from idefics_cli.core.errors import ImageError
from idefics_cli.core.types import GenerationRequest
from tests.support.commands import Ran, World, run
from tests.support.fakes import FakeEngine

HAS_PYARROW = importlib.util.find_spec("pyarrow") is not None
PARQUET = pytest.param(
    "parquet", marks=pytest.mark.skipif(not HAS_PYARROW, reason="pyarrow is not installed")
)
every_kind = pytest.mark.parametrize("kind", ["jsonl", "csv", PARQUET])
linux_names = pytest.mark.skipif(os.name == "nt", reason="such names are not allowed here")
NAMES = ("a.jpg", "b.jpg", "c.jpg", "sub/d.png", "sub/e.png")
BAD = ImageError("cannot read it: it is cut off", kind="truncated")


@pytest.fixture(autouse=True)
def photos(here: Path) -> Path:
    """A folder with files that the fake model takes for pictures."""
    for name in NAMES:
        Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        Path("photos", name).write_text(name)
    return here / "photos"


def describe(request: GenerationRequest) -> str:
    return f"a picture named {Path(request.attachments[0].source).name}"


def caption(
    kind: str, *arguments: str, bad: str | None = None, answer: Callable[..., str] = describe
) -> Ran:
    errors = {bad: BAD} if bad else {}
    world = World(FakeEngine(answer, image_errors=errors))
    output = ("-o", f"photos/metadata.{kind}", "--batch-size", "1")
    return run("caption", "photos", "-r", *output, *arguments, services=world.services)


def rows(kind: str) -> list[dict[str, Any]]:
    """Return the rows, after checking what `datasets` needs of them."""
    path = Path(f"photos/metadata.{kind}")
    found: list[dict[str, Any]]
    if kind == "parquet":
        from pyarrow import parquet

        found = parquet.read_table(path).to_pylist()
    elif kind == "csv":
        with path.open(encoding="utf-8", newline="") as file:
            found = list(csv.DictReader(file))
    else:
        found = list(map(json.loads, path.read_text("utf-8").splitlines()))
    for row in found:
        row["file_name"].encode()
        assert Path("photos", row["file_name"]).is_file()
        assert row["caption"]
        assert list(row) == list(found[0])
    return found


def names(kind: str) -> list[str]:
    return [row["file_name"] for row in rows(kind)]


@every_kind
def test_a_picture_that_fails_has_no_row_but_is_told_and_listed(kind: str) -> None:
    ran = caption(kind, bad="photos/b.jpg")

    assert ran.code == 3
    assert "cannot read it: it is cut off" in ran.err
    assert names(kind) == [name for name in NAMES if name != "b.jpg"]
    assert Path(f"photos/metadata.{kind}.failures.txt").read_text() == "photos/b.jpg\n"
    assert caption(kind, "--retry-failed").code == 0
    assert names(kind) == list(NAMES)


@every_kind
def test_rows_of_pictures_that_are_gone_go_and_come_back_with_them(kind: str, photos: Path) -> None:
    assert caption(kind).code == 0
    before = rows(kind)
    (photos / "a.jpg").rename(photos.parent / "kept")
    (photos / "c.jpg").rename(photos / "renamed.jpg")

    assert caption(kind).code == 0
    assert names(kind) == ["b.jpg", "renamed.jpg", "sub/d.png", "sub/e.png"]
    (photos.parent / "kept").rename(photos / "a.jpg")
    (photos / "renamed.jpg").rename(photos / "c.jpg")
    assert caption(kind).code == 0
    assert rows(kind) == before


@every_kind
@pytest.mark.parametrize("count", [0, 1, 2])
def test_an_interrupted_run_leaves_no_row_of_a_picture_that_is_gone(
    kind: str, count: int, photos: Path
) -> None:
    assert caption(kind).code == 0
    (photos / "b.jpg").unlink()
    for number in range(3):
        (photos / f"new{number}.jpg").write_text(f"{number}")
    left = count

    def interrupted(request: GenerationRequest) -> str:
        nonlocal left
        left -= 1
        if left < 0:
            raise KeyboardInterrupt
        return describe(request)

    assert caption(kind, answer=interrupted).code == 130
    assert "b.jpg" not in names(kind)
    assert len(names(kind)) == 4 + count
    assert caption(kind).code == 0
    assert names(kind) == ["a.jpg", "c.jpg", *(f"new{n}.jpg" for n in range(3)), *NAMES[3:]]


@every_kind
def test_a_list_with_a_picture_that_is_gone_leaves_it_out(kind: str, photos: Path) -> None:
    assert caption(kind).code == 0
    (photos / "b.jpg").unlink()
    listed = ("--filelist", "list.txt")
    Path("list.txt").write_text("photos/a.jpg\nphotos/b.jpg\n")
    assert caption(kind, *listed).code == 0
    assert names(kind) == ["a.jpg", "c.jpg", "sub/d.png", "sub/e.png"]


@every_kind
def test_a_changed_picture_that_cannot_be_read_any_more_loses_its_row(
    kind: str, photos: Path
) -> None:
    assert caption(kind).code == 0
    (photos / "b.jpg").write_text("broken")
    assert caption(kind, bad="photos/b.jpg").code == 3
    assert names(kind) == [name for name in NAMES if name != "b.jpg"]


@linux_names
@every_kind
@pytest.mark.parametrize(
    ("name", "reason"),
    [
        (b"caf\xe9.jpg", "that is not UTF-8"),
        (b"a\\b.jpg", "with `\\`"),
        (b"a::b.jpg", "with `::`"),
        (b"$HOME.jpg", "with `$`"),
    ],
)
def test_a_name_that_datasets_cannot_read_is_an_error_of_that_picture(
    kind: str, name: bytes, reason: str, photos: Path
) -> None:
    path = Path(os.fsdecode(b"photos/" + name))
    path.write_text("x")
    ran = caption(kind)

    assert ran.code == 3
    assert f"`datasets` cannot read a name {reason}" in ran.err
    assert names(kind) == list(NAMES)
    failures = Path(f"photos/metadata.{kind}.failures.txt")
    assert failures.read_bytes() == b"photos/" + name + b"\n"
    ran = run(
        *("caption", "--filelist", str(failures), "-o", "o.jsonl"),
        services=World(FakeEngine(lambda request: "x")).services,
    )
    assert (ran.code, ran.err.count("error")) == (0, 0)
    path.rename(photos / "f.jpg")
    assert caption(kind).code == 0
    assert names(kind) == ["a.jpg", "b.jpg", "c.jpg", "f.jpg", *NAMES[3:]]


@linux_names
@every_kind
@pytest.mark.parametrize("name", ["http:x.png", "data:a,b.jpg", "file:c.jpg", "clipboard:.jpg"])
def test_a_file_whose_name_looks_like_a_uri_has_a_row(
    kind: str, name: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = photos / name
    path.write_text(name)

    first = caption(kind)
    found = {row["file_name"] for row in rows(kind)}
    again = caption(kind)
    monkeypatch.chdir(photos)
    inside = run(
        "caption",
        ".",
        "-r",
        "-o",
        f"metadata.{kind}",
        services=World(FakeEngine(describe)).services,
    )

    assert first.code == again.code == inside.code == 0
    assert f"./{path.name}" in found
    assert len(found) == len(NAMES) + 1
    assert "nothing is left to caption" in again.err
    assert "nothing is left to caption" in inside.err


@linux_names
def test_control_characters_in_a_name_are_data_in_json_and_an_error_in_csv(photos: Path) -> None:
    (photos / "\x1b\u202e\n.jpg").write_text("x")
    assert caption("jsonl").code == 0
    assert names("jsonl") == ["\x1b\u202e\n.jpg", *NAMES]
    ran = caption("csv")
    assert ran.code == 3
    assert "cannot read a name with control characters" in ran.err
    assert names("csv") == list(NAMES)


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_notes_are_a_text_in_each_row_because_the_first_rows_decide_the_columns(kind: str) -> None:
    asked: set[str] = set()

    def empty_once(request: GenerationRequest) -> str:
        source = request.attachments[0].source
        is_second = source in asked
        asked.add(source)
        return describe(request) if is_second or not source.endswith("c.jpg") else ""

    assert caption(kind, answer=empty_once).code == 0
    notes = {row["file_name"]: row["notes"] for row in rows(kind)}
    assert notes.pop("c.jpg")
    assert set(notes.values()) == {""}


@every_kind
def test_pictures_outside_of_the_folder_are_refused_before_the_model_is_loaded(kind: str) -> None:
    Path("other").mkdir()
    Path("other/x.jpg").write_text("x")
    for argument in ("other/x.jpg", "https://example.com/a.jpg"):
        ran = caption(kind, argument)
        assert ran.code == 2
        assert f"`photos/metadata.{kind}` is a data set, and the picture `{argument}`" in ran.err
    assert not list(Path("photos").glob("metadata*"))


@every_kind
@pytest.mark.parametrize("existing", ["append", "skip"])
def test_rows_are_added_only_to_a_data_set_that_can_be_read(
    kind: str, existing: str, photos: Path
) -> None:
    assert caption(kind).code == 0
    Path(f"photos/metadata.{kind}.journal").unlink()
    (photos / "f.jpg").write_text("f")
    assert caption(kind, "--existing", existing).code == 0
    count = 6 if existing == "skip" else 11
    assert len(rows(kind)) == count

    (photos / "b.jpg").unlink()
    before = Path(f"photos/metadata.{kind}").read_bytes()
    ran = caption(kind, "--existing", existing, "-p", "Other?")
    assert (ran.code, Path(f"photos/metadata.{kind}").read_bytes()) == (2, before)
    assert "it has a row for `b.jpg`, which does not exist" in ran.err


@pytest.mark.parametrize("column", ["image", "file_names", "other_file_name"])
def test_a_question_with_the_name_of_a_picture_column_is_refused(column: str) -> None:
    ran = caption("jsonl", "--ask", f"{column}=What is it?")
    assert ran.code == 2
    assert f"`{column}` cannot be the name of a question" in ran.err
    assert not list(Path("photos").glob("metadata*"))


@pytest.mark.parametrize(
    ("name", "is_split"),
    [
        ("train/x.jpg", True),
        ("sub/my test 2/x.jpg", True),
        ("dev.jpg", True),
        ("test_1.jpg", True),
        ("a-val.jpg", True),
        ("contest.jpg", False),
        ("latest/x.jpg", False),
        ("Train/x.jpg", False),
        ("trained.jpg", False),
    ],
)
def test_a_name_that_datasets_takes_for_a_split_is_told(
    name: str, is_split: bool, photos: Path
) -> None:
    (photos / name).parent.mkdir(parents=True, exist_ok=True)
    (photos / name).write_text("x")
    ran = caption("jsonl")
    assert ran.code == 0
    note = f"note: because of its name, `datasets` reads `{name}` as a split, without"
    assert (note in ran.err) == is_split
    world = World(FakeEngine(describe))
    other = run("caption", "photos", "-r", "-o", "photos/o.jsonl", services=world.services)
    assert "as a split" not in other.err


def as_version_0_1(journal: bytes) -> list[dict[str, object]]:
    """Return the lines without checksums, and each record where its row was written."""
    entries: list[dict[str, object]] = []
    waiting: dict[int, dict[str, object]] = {}
    offset = 0
    for line in journal.splitlines(keepends=True):
        entry = {k: v for k, v in json.loads(line).items() if k != "crc"}
        if entry.pop("waits", False):
            waiting[offset] = entry
        elif "written" in entry:
            entries += ({**waiting[at], "end": entry["end"]} for at in entry["written"])
        else:
            entries.append(entry)
        offset += len(line)
    return entries


@pytest.mark.parametrize("kind", ["jsonl", "csv"])
def test_failures_that_version_0_1_wrote_into_a_data_set_go(kind: str) -> None:
    whole = Path(f"photos/o.{kind}")
    world = World(FakeEngine(describe, image_errors={"photos/b.jpg": BAD}))
    arguments = ("photos", "-r", "--batch-size", "1", "-o", str(whole))
    assert run("caption", *arguments, services=world.services).code == 3
    # Its data sets had all rows, and its journals no checksums.
    entries = as_version_0_1(Path(f"{whole}.journal").read_bytes())
    entries = [{**entry, "journal": 1} if "journal" in entry else entry for entry in entries]
    text = "".join(json.dumps(entry) + "\n" for entry in entries)
    Path(f"photos/metadata.{kind}.journal").write_text(text, "utf-8")
    whole.rename(f"photos/metadata.{kind}")

    assert caption(kind).code == 3
    assert names(kind) == [name for name in NAMES if name != "b.jpg"]


def test_other_outputs_have_every_row() -> None:
    world = World(FakeEngine(describe, image_errors={"photos/b.jpg": BAD}))
    output = ("-o", "photos/o.jsonl")
    assert run("caption", "photos", "-r", *output, services=world.services).code == 3
    found = map(json.loads, Path("photos/o.jsonl").read_text("utf-8").splitlines())
    assert [(row["file_name"], row["status"]) for row in found] == [
        (name, "error" if name == "b.jpg" else "ok") for name in NAMES
    ]
