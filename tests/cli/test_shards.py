"""`idefics caption --shard`: tasks of a job array caption each picture once, in any format."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from idefics_cli.caption.shards.shard import Shard
from idefics_cli.caption.sinks import SINKS
from tests.support.commands import Ran, World, run
from tests.support.fakes import FakeEngine
from tests.support.outputs import FORMATS, contents, destination
from tests.support.photo_folder import describe_photo

COUNT = 3


@pytest.fixture(autouse=True)
def _photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for number in range(12):
        Path(f"photos/{number:02}.jpg").write_bytes(b"%d" % number)


def caption(*arguments: str, **variables: str) -> Ran:
    services = World(FakeEngine(describe_photo), environ=variables).services
    return run("caption", "photos", *arguments, services=services)


def shards(*arguments: str) -> list[Ran]:
    return [caption(*arguments, "--shard", f"{index}/{COUNT}") for index in range(COUNT)]


@pytest.mark.parametrize("format_", FORMATS)
def test_the_shards_of_any_format_hold_what_one_run_holds(format_: str) -> None:
    for folder in ("whole", "parts"):
        Path(folder).mkdir()
    assert caption("-f", format_, "-o", destination("whole", format_)).code == 0
    ran = shards("-f", format_, "-o", destination("parts", format_))

    assert [each.code for each in ran] == [0] * COUNT
    if SINKS[format_].output == "folder":
        assert contents(Path("parts")) == contents(Path("whole"))
        return
    whole = contents(Path("whole"))["out"].splitlines()
    parts = [
        line
        for index in range(COUNT)
        for line in contents(Path("parts"))[f"out-{index:05}-of-00003"].splitlines()
    ]
    assert set(parts) == set(whole)
    has_header = format_.startswith("csv")
    assert len(parts) == len(whole) + (COUNT - 1 if has_header else 0)


@pytest.mark.parametrize("format_", ["txt", "xmp"])
def test_sidecars_beside_the_pictures_are_written_once_and_a_shard_goes_on(format_: str) -> None:
    assert [each.code for each in shards("-f", format_)] == [0] * COUNT
    written = {path.name for path in Path("photos").iterdir() if path.suffix == f".{format_}"}
    assert len(written) == 12
    again = caption("-f", format_, "--shard", "1/3")
    assert (again.code, again.err.splitlines()[-1]) == (0, "nothing is left to caption")


def test_pictures_of_two_shards_never_have_one_sidecar() -> None:
    for number in range(12):
        Path(f"photos/{number:02}.png").write_bytes(b"png")
    for ran in shards("-f", "txt"):
        assert ran.code == 2
        assert "would both be" in ran.err
    assert not list(Path("photos").glob("*.txt"))


def test_a_shard_without_pictures_is_complete_and_loads_no_model() -> None:
    count = 500
    taken = {
        i for n in range(12) for i in range(count) if Shard(i, count).has(f"photos/{n:02}.jpg")
    }
    empty = min(set(range(count)) - taken)
    world = World(FakeEngine(describe_photo))
    ran = run(
        *("caption", "photos", "-o", "out.jsonl", "--shard", f"{empty}/{count}"),
        services=world.services,
    )

    assert ran.code == 0
    assert ran.err == (
        f"note: shard {empty}/{count}: 0 of 12 pictures\nnothing is left to caption\n"
    )
    assert world.specs == []
    path = Shard(empty, count).path(Path("out.jsonl"))
    assert path.read_bytes() == b""
    last = json.loads(Path(f"{path}.journal").read_text("utf-8").splitlines()[-1])
    assert (last["complete"], last["listed"]) == (True, 12)


def test_the_files_of_a_shard_beside_its_output_have_its_number() -> None:
    os.remove("photos/03.jpg")
    Path("photos/03.jpg").symlink_to("nowhere")
    engine = FakeEngine(describe_photo)
    own = next(i for i in range(COUNT) if Shard(i, COUNT).has("photos/03.jpg"))
    services = World(engine).services
    ran = run(
        *("caption", "photos", "-o", "out.csv", "--report", "page.html"),
        *("--shard", f"{own}/{COUNT}"),
        services=services,
    )
    assert ran.code in (0, 3)
    names = sorted(path.name for path in Path().iterdir() if path.is_file())
    assert all(f"-{own:05}-of-00003" in name for name in names), names
    assert f"page-{own:05}-of-00003.html" in names


def test_a_task_takes_its_number_from_its_scheduler_and_says_so() -> None:
    ran = caption("-o", "out.jsonl", "--shard", "auto/3", JOB_COMPLETION_INDEX="2")
    lines = Path("out-00002-of-00003.jsonl").read_text("utf-8").splitlines()
    assert ran.err.splitlines()[0] == (
        f"note: shard 2/3 (JOB_COMPLETION_INDEX): {len(lines)} of 12 pictures"
    )
    variable = caption("-o", "o.jsonl", IDEFICS_SHARD="auto/3", JOB_COMPLETION_INDEX="2")
    assert variable.err.splitlines()[0] == ran.err.splitlines()[0]


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (
            ["-o", "out.jsonl", "--shard", "3/3"],
            "error: there is no shard `3/3`: shards count from 0\n"
            "hint: `--shard 0/3` to `--shard 2/3`\n",
        ),
        (
            ["-o", "out.jsonl", "--shard", "1-3"],
            "error: --shard must be I/N, counted from 0, or what a scheduler says, such as auto, "
            "not `1-3`\n",
        ),
        (
            ["--shard", "0/3"],
            "error: the shard 0/3 needs an output file\nhint: `-o captions.jsonl`; `idefics "
            "collect captions.jsonl` then joins all shards\n",
        ),
        (
            ["-", "-o", "out.jsonl", "--shard", "0/3"],
            "error: --shard divides files, and stdin is one picture for every task\n"
            "hint: leave `--shard` out, or name files and folders\n",
        ),
        (
            ["clipboard:", "-o", "out.jsonl", "--shard", "0/3"],
            "error: --shard divides files, and the clipboard is one picture for every task\n"
            "hint: leave `--shard` out, or name files and folders\n",
        ),
        (
            ["-o", "metadata.jsonl", "--shard", "0/3", "--ask", "image=What?"],
            "error: `metadata.jsonl` is a data set, in which `image` cannot be the name of a "
            "question\nhint: name the question differently, or choose another name than "
            "`metadata.jsonl`\n",
        ),
    ],
)
def test_a_run_that_cannot_be_divided_is_refused(arguments: list[str], error: str) -> None:
    if "-" in arguments:
        with open("photos/00.jpg", "rb") as stdin:
            services = World(FakeEngine(describe_photo), stdin=stdin).services
            ran = run("caption", *arguments, services=services)
    else:
        ran = caption(*arguments)
    assert tuple(ran) == (2, "", error)
    assert [path.name for path in Path().iterdir()] == ["photos"]
