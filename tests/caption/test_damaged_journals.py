"""A journal that something damaged: an error that changes nothing, or a run that loses no row."""

from __future__ import annotations

import json
import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest

from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.resume.journal import RunJournal
from idefics_cli.caption.resume.journal_lines import decode_line, encode_line
from idefics_cli.caption.resume.journaled_sink import JournaledSink
from idefics_cli.caption.sinks.base import Target
from idefics_cli.caption.sinks.jsonl import JsonlSink
from idefics_cli.core.errors import IdeficsError, ImageError
from idefics_cli.core.types import Attachment, CaptionRecord, GenerationRequest
from tests.support.commands import Ran, World, run
from tests.support.fakes import FakeEngine
from tests.support.json_values import places, replaced
from tests.support.outputs import FORMATS, Recorder, contents, destination

NAMES = tuple(f"{number}.jpg" for number in range(8))
JOURNAL = Path("out.jsonl.journal")
# `--retry-failed` continues a run even beside `--overwrite`, so the hint names both options.
WAY_OUT = "let `--overwrite` without `--retry-failed` begin anew"
BAD = ImageError("cannot read `photos/3.jpg`: it is cut off", kind="truncated")
VALUES: list[object] = [
    None, True, 0, -1, 10**30, 1.5, float("nan"), "", "x", "\ud800", [], {}, [1], {"a": 1}, [[]],
]  # fmt: skip
LINES = [
    b"[" * 100_000, b"{}", b"1", b"\0" * 100, b"\xff", b"", b'{"rows":[1],"end":0}',
    b'{"closed":1}', b'{"key":"x","record":null,"end":0}', b'{"fits":"x"}', b"1" * 5000,
]  # fmt: skip


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    for name in NAMES:
        (tmp_path / "photos" / name).write_text(name, "utf-8")
    return tmp_path


def describe(request: GenerationRequest) -> str:
    source = request.attachments[0].source
    if source == "photos/3.jpg":
        raise BAD
    return f"a picture named {Path(source).stem}"


def caption(*arguments: str, engine: FakeEngine | None = None) -> Ran:
    world = World(engine or FakeEngine(describe))
    return run("caption", "photos", "--batch-size", "2", *arguments, services=world.services)


def files() -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in sorted(Path().rglob("*")) if p.is_file()}


def damage(journal: Path, line: int) -> None:
    lines = journal.read_bytes().splitlines(keepends=True)
    lines[line - 1] = lines[line - 1].replace(b'"key"', b'"ke\0y"', 1)
    journal.write_bytes(b"".join(lines))


@pytest.mark.parametrize("format_", FORMATS)
@pytest.mark.parametrize(
    "arguments",
    [(), ("--retry-failed",), ("--overwrite", "--retry-failed"), ("--dry-run",)],
)
def test_a_damaged_line_is_named_and_nothing_changes(
    format_: str, arguments: tuple[str, ...]
) -> None:
    Path("out").mkdir()
    output = ("-f", format_, "-o", destination("out", format_))
    assert caption(*output).code == 3
    (journal,) = Path("out").rglob("*.journal")
    damage(journal, 4)
    before = files()

    ran = caption(*output, *arguments)
    assert ran.code == 1
    assert ran.err.startswith(
        f"error: line 4 of the journal `{journal}` is damaged; nothing was changed\n"
        "hint: put an undamaged copy back; or move the journal away and give `--existing skip`"
    )
    assert WAY_OUT in ran.err
    assert files() == before


@pytest.mark.parametrize("format_", FORMATS)
def test_a_run_that_overwrites_needs_no_journal_of_an_earlier_run(format_: str) -> None:
    Path("out").mkdir()
    output = ("-f", format_, "-o", destination("out", format_), "--overwrite")
    assert caption(*output).code == 3
    (journal,) = Path("out").rglob("*.journal")
    whole = contents(Path("out"))
    damage(journal, 4)
    before = files()
    assert caption(*output, "--dry-run").code == 0
    assert files() == before

    ran = caption(*output)
    told = f"warning: beginning anew, because line 4 of the journal `{journal}` is damaged\n"
    assert (ran.code, ran.err.startswith(told)) == (3, True), ran.err
    assert contents(Path("out")) == whole
    assert "damaged" not in caption(*output).err


def test_a_run_that_overwrites_takes_a_journal_of_another_version() -> None:
    JOURNAL.write_text('{"journal": 3, "settings": {}, "base": 0, "skipped": []}\n')
    ran = caption("-o", "out.jsonl", "--overwrite")
    told = f"warning: beginning anew, because `{JOURNAL}` is from another version of this program"
    assert (ran.code, ran.err.startswith(told)) == (3, True), ran.err
    with RunJournal(JOURNAL) as journal:
        assert len(journal.entries) == len(NAMES)


def test_a_run_that_overwrites_begins_anew_if_its_unfinished_output_was_changed() -> None:
    def stop(request: GenerationRequest) -> str:
        if request.attachments[0].source == "photos/5.jpg":
            raise KeyboardInterrupt
        return describe(request)

    assert caption("-o", "out.jsonl", engine=FakeEngine(stop)).code == 130
    with Path("out.jsonl").open("a") as file:
        file.write("{}\n")
    for arguments in ((), ("--overwrite", "--retry-failed")):
        refused = caption("-o", "out.jsonl", *arguments)
        assert (refused.code, WAY_OUT in refused.err) == (2, True)
    ran = caption("-o", "out.jsonl", "--overwrite")
    told = "warning: beginning anew, because `out.jsonl` was changed by something else since"
    assert (ran.code, ran.err.startswith(told)) == (3, True), ran.err
    rows = [json.loads(line) for line in Path("out.jsonl").read_text("utf-8").splitlines()]
    assert [row["file_name"] for row in rows] == [f"photos/{name}" for name in NAMES]


def test_a_file_that_is_no_journal_is_not_overwritten() -> None:
    JOURNAL.write_text("my diary\n", "utf-8")
    ran = caption("-o", "out.jsonl", "--overwrite")
    assert (ran.code, "is not the journal of a captioning run" in ran.err) == (2, True)
    assert JOURNAL.read_text("utf-8") == "my diary\n"


def test_a_line_that_is_missing_as_a_whole_is_noticed() -> None:
    assert caption("-o", "out.jsonl").code == 3
    journal = Path("out.jsonl.journal")
    lines = journal.read_bytes().splitlines(keepends=True)
    for gone in range(1, len(lines) - 1):
        journal.write_bytes(b"".join([*lines[:gone], *lines[gone + 1 :]]))
        ran = caption("-o", "out.jsonl")
        assert (ran.code, f"line {gone + 1} of the journal" in ran.err) == (1, True), ran.err


@pytest.mark.parametrize("format_", FORMATS)
def test_the_way_out_keeps_the_captions_and_makes_the_others(format_: str) -> None:
    Path("out").mkdir()
    output = ("-f", format_, "-o", destination("out", format_))
    assert caption(*output).code == 3
    (journal,) = Path("out").rglob("*.journal")
    damage(journal, 4)
    journal.rename("moved")
    before = contents(Path("out"))
    before = {name: text for name, text in before.items() if not name.endswith(".failures.txt")}

    engine = FakeEngine(lambda request: "a second try")
    assert caption(*output, "--existing", "skip", engine=engine).code == 0
    assert [request.attachments[0].source for request in engine.requests] == ["photos/3.jpg"]
    after = contents(Path("out"))
    for name, text in before.items():
        assert name in after
        assert format_ == "parquet" or after[name].startswith(text)


@pytest.mark.parametrize(
    "line",
    [
        b'{"key": "photos/6.jpg", "record": 5, "end": 1}',
        b'{"key": "photos/6.jpg", "record": {"error": null}, "end": 1}',
        b'{"record": {}}',
        b'{"rows": [7], "end": 1}',
        b'{"rows": [], "end": "x"}',
        b'{"fits": "many", "where": "cpu"}',
        b"\0" * 512,
        b"[" * 100_000,
    ],
)
def test_a_whole_last_line_that_is_not_of_a_journal_is_damage(line: bytes) -> None:
    caption("-o", "out.jsonl")
    for data in (line, encode_line(json.loads(line)) if line[:1] == b"{" else line):
        whole = JOURNAL.read_bytes()
        JOURNAL.write_bytes(whole + data.rstrip(b"\n") + b"\n")
        before = files()
        number = len(JOURNAL.read_bytes().splitlines())
        ran = caption("-o", "out.jsonl", "--retry-failed")
        assert (ran.code, files()) == (1, before)
        assert f"line {number} of the journal" in ran.err
        JOURNAL.write_bytes(whole)


def test_a_changed_digit_is_noticed() -> None:
    caption("-o", "out.jsonl")
    whole = JOURNAL.read_bytes()
    lines = whole.splitlines(keepends=True)
    end = decode_line(lines[2], needs_checksum=True)["end"]
    other = lines[2].replace(f'"end": {end}'.encode(), f'"end": {end - 1}'.encode())
    assert other != lines[2]
    JOURNAL.write_bytes(whole.replace(lines[2], other))
    assert "line 3 of the journal" in caption("-o", "out.jsonl").err


def test_a_journal_of_version_1_is_continued() -> None:
    caption("-o", "out.jsonl")
    fields = [decode_line(line + b"\n", needs_checksum=True) for line in
              JOURNAL.read_bytes().splitlines()]  # fmt: skip
    fields[0]["journal"] = 1
    JOURNAL.write_text("".join(json.dumps(each) + "\n" for each in fields))

    engine = FakeEngine(lambda request: "a second try")
    assert caption("-o", "out.jsonl", "--retry-failed", engine=engine).code == 0
    assert len(engine.requests) == 1
    assert len(Path("out.jsonl").read_text().splitlines()) == len(NAMES)
    assert caption("-o", "out.jsonl").code == 0


def test_retrying_cuts_no_row_that_the_journal_lost() -> None:
    caption("-o", "out.jsonl")
    lines = JOURNAL.read_bytes().splitlines(keepends=True)
    JOURNAL.write_bytes(b"".join(lines[:6]))
    before = files()
    ran = caption("-o", "out.jsonl", "--retry-failed")
    assert (ran.code, files()) == (2, before)
    assert ran.err.startswith("error: `out.jsonl` has rows that are missing in its journal\n")

    assert caption("-o", "out.jsonl").code == 3
    assert Path("out.jsonl").read_bytes() == before["out.jsonl"]


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "sparse", "link"])
def test_a_journal_that_is_no_file_is_an_error(kind: str) -> None:
    if kind == "pipe":
        os.mkfifo(JOURNAL)
    elif kind == "device":
        JOURNAL.symlink_to("/dev/zero")
    elif kind == "folder":
        JOURNAL.mkdir()
    elif kind == "link":
        JOURNAL.symlink_to("somewhere")
    else:
        JOURNAL.write_bytes(b'{"journal":')
        os.truncate(JOURNAL, 400 * 10**9)
    ran = caption("-o", "out.jsonl")
    assert ran.code == 1
    assert ran.err.startswith("error: cannot keep the journal `out.jsonl.journal`: ")
    assert not Path("out.jsonl").exists()
    assert not Path("somewhere").exists()


# Fuzzing


def items() -> tuple[CaptionItem, ...]:
    return tuple(CaptionItem(name, Attachment(name), name) for name in ("0", "1", "2"))


def opened() -> JournaledSink:
    target = Target(Recorder(), Path("o.jsonl"), pictures=items())
    return JournaledSink(JsonlSink, target, Path("o.journal"), settings={"model": "demo"})


def rows() -> dict[str, str]:
    found = map(json.loads, Path("o.jsonl").read_text("utf-8").splitlines())
    return {row["file_name"]: row["caption"] for row in found}


def damaged_bytes(whole: bytes, count: int) -> Iterator[bytes]:
    chance = random.Random(3)
    for number in range(count):
        data = bytearray(whole)
        for _ in range(chance.choice([1, 1, 2, 6])):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        yield bytes(data) if number % 3 else whole[: chance.randrange(len(whole))]


def damaged_values(whole: bytes, count: int) -> Iterator[bytes]:
    """Yield journals with values of other types: with checksums, and of version 1 without."""
    lines = [decode_line(line + b"\n", needs_checksum=True) for line in whole.splitlines()]
    chance = random.Random(4)
    cases = [(p, value) for p in places(lines) if p for value in VALUES]
    for number, (path, value) in enumerate(chance.sample(cases, count)):
        each = replaced(lines, path, value)
        assert isinstance(each, list)
        if number % 2 and isinstance(each[0], dict):
            each[0]["journal"] = 1
            yield "".join(json.dumps(fields) + "\n" for fields in each).encode()
        else:
            data = (f if isinstance(f, dict) else {"value": f} for f in each)
            yield b"".join(map(encode_line, data))
    first = whole.splitlines(keepends=True)[0]
    for line in LINES:
        yield from (whole + line + b"\n", line + b"\n", first + line + b"\n")


def test_a_damaged_journal_is_an_error_of_ours_or_a_run_that_loses_no_row() -> None:
    with opened() as sink:
        for item in items():
            sink.write(
                CaptionRecord(item.key, caption="first", answers=(("q", "a"),), notes=("n",))
            )
    output, whole = Path("o.jsonl").read_bytes(), Path("o.journal").read_bytes()
    outcomes = {"refused": 0, "continued": 0}
    flipped = list(damaged_bytes(whole, 400))
    for number, data in enumerate([*flipped, *damaged_values(whole, 400)]):
        Path("o.journal").write_bytes(data)
        Path("o.jsonl").write_bytes(output)
        try:
            sink = opened()
            with sink:
                list(sink.records())
                todo = {item.key for item in sink.todo.pictures}
                for key in todo:
                    sink.write(CaptionRecord(key, caption="again"))
        except IdeficsError:
            outcomes["refused"] += 1
            # A journal without a whole line holds nothing that a run could lose.
            assert b"\n" not in data or Path("o.journal").read_bytes() == data, number
            assert Path("o.jsonl").read_bytes() == output, number
            continue
        outcomes["continued"] += 1
        if number < len(flipped):
            assert rows() == {k: "again" if k in todo else "first" for k in "012"}, number
    assert min(outcomes.values()) > 100


def test_every_cut_of_a_journal_is_continued_or_named(tmp_path: Path) -> None:
    path = tmp_path / "j"
    with RunJournal(path) as journal:
        journal.begin_run({"a": 1})
        journal.add("k", CaptionRecord("k", caption="c"), end=1)
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        with RunJournal(path) as journal:
            assert len(journal.entries) == (size == len(whole))
