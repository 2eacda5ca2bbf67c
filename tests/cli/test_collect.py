"""`idefics collect` makes of all shards the output of one run, and refuses what is not whole."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from idefics_cli.caption.resume.journal import RunJournal
from idefics_cli.caption.shards.shard import Shard
from idefics_cli.core.errors import ImageError
from idefics_cli.core.types import CaptionRecord
from tests.support.commands import Ran, World, run
from tests.support.fakes import FakeEngine
from tests.support.outputs import FORMATS, OF_ONE_FILE, contents
from tests.support.photo_folder import describe_photo
from tests.support.zygote import Zygote

COUNT = 4
_TABLES = [each for each in FORMATS if each.values[0] in (*OF_ONE_FILE, "parquet")]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with 20 pictures; two of them are missing, and two in another folder."""
    monkeypatch.chdir(tmp_path)
    for folder in ("photos/sub", "parts", "whole"):
        Path(folder).mkdir(parents=True)
    for number in range(16):
        Path(f"photos/{number:02}.jpg").write_bytes(b"%d" % number)
    for name in ("photos/sub/a.jpg", "photos/sub-b.jpg"):
        Path(name).write_bytes(b"x")
    return tmp_path


def caption(*arguments: str, make: Callable[[], FakeEngine] | None = None) -> Ran:
    engine = make() if make else FakeEngine(describe_photo)
    return run("caption", *arguments, services=World(engine).services)


def caption_shards(
    *arguments: str,
    output: str = "parts/out.jsonl",
    count: int = COUNT,
    make: Callable[[], FakeEngine] | None = None,
) -> None:
    for index in range(count):
        ran = caption(*arguments, "-o", output, "--shard", f"{index}/{count}", make=make)
        assert ran.code in (0, 3), ran.err


def shard_path(index: int, output: str = "parts/out.jsonl") -> Path:
    return Shard(index, COUNT).path(Path(output))


def name_of(row: str) -> str:
    return row.split('"')[3]


def rows(folder: str, name: str = "out.jsonl") -> str:
    return contents(Path(folder))[name]


def test_the_output_of_a_shard_is_never_replaced() -> None:
    caption_shards("photos", "-r")
    before = contents(Path("parts"))
    ran = run("collect", "parts/out.jsonl", "-o", str(shard_path(1)), "--overwrite")

    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        f"error: `{shard_path(1)}` is the output of the shard 1/{COUNT}\n"
        "hint: `-o parts/out.jsonl`, or another file\n"
    )
    assert contents(Path("parts")) == before


@pytest.mark.parametrize("format_", _TABLES)
def test_the_shards_of_any_table_become_the_file_of_one_run(format_: str) -> None:
    arguments = ("photos", "-r", "-f", format_, "--ask", "mood=Mood?", "--ask", "subject=What?")
    assert caption(*arguments, "-o", "whole/out").code == 0
    caption_shards(*arguments, output="parts/out")
    ran = run("collect", "parts/out")

    assert (ran.code, ran.out) == (0, "")
    assert ran.err == "collected 18 pictures from 4 shards into `parts/out`\n"
    assert rows("parts", "out") == rows("whole", "out")


def test_another_name_is_another_format_and_a_schema_gives_types() -> None:
    pytest.importorskip("pyarrow")
    make = partial(FakeEngine, lambda request: '{"caption": "a cat", "people": 2}')
    arguments = ("photos", "--schema", "caption, people int")
    assert caption(*arguments, "-o", "whole/out.parquet", make=make).code == 0
    caption_shards(*arguments, make=make)
    assert run("collect", "parts/out.jsonl", "-o", "parts/out.parquet").code == 0

    assert rows("parts", "out.parquet") == rows("whole", "out.parquet")
    assert '"people": 2' in rows("parts", "out.parquet")


def test_failures_are_rows_and_are_listed_as_after_one_run() -> None:
    Path("photos/03.jpg").unlink()
    Path("photos/03.jpg").symlink_to("nowhere")
    bad = {"photos/03.jpg": ImageError("no file", kind="missing")}
    make = partial(FakeEngine, describe_photo, image_errors=bad)
    assert caption("photos", "-o", "whole/out.jsonl", make=make).code == 3
    caption_shards("photos", make=make)
    ran = run("collect", "parts/out.jsonl")

    assert ran.code == 3
    assert ran.err == (
        "collected 17 pictures from 4 shards into `parts/out.jsonl`, 1 failed\n"
        "note: `parts/out.jsonl.failures.txt` lists what failed\n"
    )
    assert rows("parts") == rows("whole")
    assert rows("parts", "out.jsonl.failures.txt") == rows("whole", "out.jsonl.failures.txt")


def test_a_data_set_is_one_that_a_single_run_would_have_written() -> None:
    assert caption("photos", "-r", "-o", "photos/metadata.jsonl").code == 0
    whole = contents(Path("photos"))["metadata.jsonl"]
    for path in Path("photos").glob("metadata*"):
        path.unlink()
    caption_shards("photos", "-r", output="photos/metadata.jsonl")
    assert run("collect", "photos/metadata.jsonl").code == 0
    assert contents(Path("photos"))["metadata.jsonl"] == whole


def test_the_order_is_that_of_the_arguments_and_lists() -> None:
    Path("list.txt").write_text("photos/09.jpg\nphotos/01.jpg\nphotos/sub\nphotos/05.jpg\n")
    # A glob in a shell becomes several arguments.
    pictures = ("photos/12.jpg", "photos/sub-b.jpg", "photos/03.jpg", "photos/04.jpg", "photos/1*")
    arguments = (*pictures, "https://127.0.0.1:1/a.jpg", "--filelist", "list.txt")
    caption(*arguments, "-o", "whole/out.jsonl")
    caption_shards(*arguments)
    run("collect", "parts/out.jsonl")
    assert rows("parts") == rows("whole")
    assert len(rows("parts").splitlines()) == 14


def test_names_are_right_from_another_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    caption("photos", "-o", "photos/whole.jsonl")
    caption_shards("photos", output="photos/out.jsonl")
    monkeypatch.chdir("whole")
    assert run("collect", "../photos/out.jsonl").code == 0
    assert contents(Path("../photos"))["out.jsonl"] == contents(Path("../photos"))["whole.jsonl"]


def test_absolute_names_stay_absolute(here: Path) -> None:
    caption(str(here / "photos"), "-o", "whole/out.jsonl")
    caption_shards(str(here / "photos"))
    run("collect", "parts/out.jsonl")
    assert rows("parts") == rows("whole")
    assert name_of(rows("parts").splitlines()[0]).startswith("/")


def test_collecting_again_changes_nothing_and_takes_what_is_new() -> None:
    caption_shards("photos")
    assert run("collect", "parts/out.jsonl").code == 0
    first = Path("parts/out.jsonl").read_bytes()
    assert run("collect", "parts/out.jsonl").code == 0
    assert Path("parts/out.jsonl").read_bytes() == first

    Path("photos/10b.jpg").write_bytes(b"new")
    caption_shards("photos")
    assert run("collect", "parts/out.jsonl").code == 0
    caption("photos", "-o", "whole/out.jsonl")
    assert rows("parts") == rows("whole")


def test_the_output_of_other_commands_is_not_that_of_collect() -> None:
    caption_shards("photos")
    world = World(FakeEngine(describe_photo), IDEFICS_OUTPUT="parts/other.tsv")
    ran = run("collect", "parts/out.jsonl", services=world.services)
    assert ran.err == "collected 17 pictures from 4 shards into `parts/out.jsonl`\n"
    assert not Path("parts/other.tsv").exists()


def test_a_file_of_something_else_is_not_replaced_unless_asked() -> None:
    caption_shards("photos")
    Path("parts/out.jsonl").write_text("mine\n")
    ran = run("collect", "parts/out.jsonl")
    assert tuple(ran) == (
        2,
        "",
        "error: `parts/out.jsonl` exists already\n"
        "hint: `--overwrite` replaces it; or name another file\n",
    )
    assert Path("parts/out.jsonl").read_text() == "mine\n"
    assert run("collect", "parts/out.jsonl", "--overwrite").code == 0
    assert rows("parts").count("\n") == 17


def test_a_missing_shard_is_named_and_nothing_is_written() -> None:
    caption_shards("photos", count=16)
    journal = Path("parts/out-00011-of-00016.jsonl.journal")
    journal.unlink()
    ran = run("collect", "parts/out.jsonl")
    assert tuple(ran) == (
        1,
        "",
        f"shard 11/16  missing     `{journal}`: it has not begun\n"
        "error: shard 11 of 16 is not complete\n"
        "hint: run the same command with `--shard 11/16`, or collect what is there with "
        "`--partial`\n",
    )
    assert not Path("parts/out.jsonl").exists()

    told = run("collect", "parts/out.jsonl", "--json")
    assert (told.code, told.record["output"]) == (1, None)
    assert [each["shard"] for each in told.record["unfit"]] == ["11/16"]
    part = run("collect", "parts/out.jsonl", "--partial", "--json")
    there = len(Path("parts/out.jsonl").read_bytes().splitlines())
    assert part.code == 3
    assert (part.record["pictures"], part.record["shards"]) == (there, 16)
    assert part.err.endswith(
        f"collected {there} pictures from 15 of 16 shards into `parts/out.jsonl`\n"
    )


def test_a_shard_whose_run_was_stopped_or_runs_is_not_complete() -> None:
    caption_shards("photos")
    journal = Path(f"{shard_path(2)}.journal")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(lines[:-2]))  # as if killed before its last row
    assert (
        f"shard 2/4  incomplete  `{journal}`: its run has not ended\n"
        in run("collect", "parts/out.jsonl").err
    )
    with RunJournal(journal):
        ran = run("collect", "parts/out.jsonl")
    assert "shard 2/4  running     another run is writing this output" in ran.err
    assert ran.code == 1


def test_a_shard_with_other_settings_or_another_model_is_named_with_the_difference() -> None:
    caption_shards("photos")
    for path in Path("parts").glob("out-00001*"):
        path.unlink()
    other = ("--prompt", "What is it?", "-o", "parts/out.jsonl", "--shard", "1/4")
    assert caption("photos", *other).code == 0
    ran = run("collect", "parts/out.jsonl", "--partial")
    assert ran.code == 1
    assert "shard 1/4  unequal     " in ran.err
    assert "here `What is it?`" in ran.err
    assert "error: shard 1 of 4 cannot be joined with the others\n" in ran.err

    for path in Path("parts").glob("out-00001*"):
        path.unlink()
    make = partial(FakeEngine, describe_photo, revision="fedc987")
    caption("photos", "-o", "parts/out.jsonl", "--shard", "1/4", make=make)
    ran = run("collect", "parts/out.jsonl")
    assert "commit: `0123abc`, here `fedc987`" in ran.err
    assert not Path("parts/out.jsonl").exists()


def test_the_output_of_one_shard_is_not_taken_for_all() -> None:
    caption_shards("photos", "-r")
    ran = run("collect", str(shard_path(1)))
    assert tuple(ran) == (
        2,
        "",
        f"error: `{shard_path(1)}` is the output of the shard 1/4 alone\n"
        "hint: `idefics collect parts/out.jsonl` joins all shards\n",
    )


def test_a_journal_without_one_of_its_lines_is_never_collected() -> None:
    caption_shards("photos", "-r")
    (journal,) = Path("parts").glob("*00002-of-00004.jsonl.journal")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join([*lines[:3], *lines[4:]]))
    ran = run("collect", "parts/out.jsonl")

    assert (ran.code, Path("parts/out.jsonl").exists()) == (1, False)
    assert "shard 2/4  damaged     line 4 of the journal" in ran.err


def test_what_is_foreign_or_damaged_is_never_collected() -> None:
    caption_shards("photos")
    files = {index: Path(f"{shard_path(index)}.journal") for index in range(COUNT)}
    kept = {index: path.read_bytes() for index, path in files.items()}

    shutil.copy(files[1], files[2])
    assert "it is the journal of the shard 1/4" in run("collect", "parts/out.jsonl").err
    files[2].write_bytes(kept[2])
    strange = next(f"{n}.jpg" for n in range(99) if not Shard(2, 4).has(f"{n}.jpg"))
    with RunJournal(files[2]) as journal:
        journal.add(strange, CaptionRecord(strange, caption="x"), end=None, order=1)
    assert f"`{strange}` is a picture of another shard" in run("collect", "parts/out.jsonl").err
    files[2].write_bytes(kept[2].replace(b"a picture", b"A picture", 1))
    assert "damaged" in run("collect", "parts/out.jsonl", "--partial").err
    files[2].write_bytes(kept[2])
    caption("photos", "-o", "whole/out.jsonl")
    shutil.copy("whole/out.jsonl.journal", files[2])
    ran = run("collect", "parts/out.jsonl", "--partial")
    assert (ran.code, "it is the journal of a run without shards" in ran.err) == (1, True)
    assert not Path("parts/out.jsonl").exists()
    files[2].write_bytes(kept[2])
    assert run("collect", "parts/out.jsonl").code == 0


def test_two_divisions_beside_each_other_are_refused() -> None:
    caption_shards("photos")
    caption_shards("photos", count=2)
    ran = run("collect", "parts/out.jsonl")
    assert tuple(ran) == (
        1,
        "",
        "error: there are shards of two divisions of `parts/out.jsonl`: of 2 and of 4\n"
        "hint: move the files of one division to another folder\n",
    )


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        (["none.jsonl"], 1, "there are no shards of `none.jsonl`"),
        (["photos"], 2, "cannot write `photos`: it is a folder"),
        (["parts/out.jsonl", "-o", "no/x.jsonl"], 2, "cannot write `no/x.jsonl`: no folder `no`"),
        (["parts/out.jsonl", "-o", "-"], 2, "`idefics collect` writes a file"),
        (["parts/out.jsonl", "-o", "x.json"], 2, "no format for `x.json`"),
        (["parts/out.jsonl", "-f", "txt", "-o", "x"], 2, "`--format txt` writes a file for each"),
    ],
)
def test_what_cannot_be_collected_is_told(arguments: list[str], code: int, error: str) -> None:
    caption_shards("photos")
    before = sorted(os.listdir("parts"))
    ran = run("collect", *arguments)
    assert ran.code == code
    assert ran.err.startswith(f"error: {error}"), ran.err
    assert sorted(os.listdir("parts")) == before


@pytest.mark.skipif(os.name == "nt", reason="POSIX processes")
def test_eight_shards_with_kills_and_new_files_hold_every_picture_once(here: Path) -> None:
    for number in range(0, 300, 2):
        Path(f"photos/p{number:03}.jpg").write_bytes(b"%d" % number)
    Path("r.jsonl").write_text('{"prompt": "Hi"}', "utf-8")
    first = here / "photos/p000.jpg"
    late: list[str] = []
    killed = 0
    with Zygote("fake", picture=first, requests=here / "r.jsonl") as zygote:

        def task(index: int, number: int = 0) -> int:
            where = ("-o", "parts/out.jsonl", "--shard", f"{index}/8", "--batch-size", "2")
            journal = Path(f"parts/out-{index:05}-of-00008.jsonl.journal")
            after = journal if number else None
            return zygote.run("photos", *where, number=number, after=after)[0]

        for index in range(8):
            if index in (1, 3, 4, 7):
                killed += task(index, number=signal.SIGKILL) == -signal.SIGKILL
            assert task(index) == 0
            name = f"photos/p{index * 30 + 1:03}.jpg"
            Path(name).write_bytes(b"late")
            if any(Shard(i, 8).has(f"../{name}") for i in range(index + 1)):
                late.append(name)
        assert killed >= 2, "the signals hit the runs"
        assert run("collect", "parts/out.jsonl").code == 0
        assert zygote.run("photos", "-o", "whole/out.jsonl")[0] == 0
        whole = rows("whole").splitlines()
        assert 0 < len(late) < 8
        assert rows("parts").splitlines() == [row for row in whole if name_of(row) not in late]
        assert all(task(index) == 0 for index in range(8))
    assert run("collect", "parts/out.jsonl").code == 0
    assert rows("parts").splitlines() == whole
