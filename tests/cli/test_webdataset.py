"""`--format webdataset` writes a whole archive for each archive, however often the run ends."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from idefics_cli.core.errors import ImageError
from idefics_cli.core.types import GenerationRequest
from tests.support.commands import Ran, World, run
from tests.support.fakes import FakeEngine
from tests.support.tars import make_tar, members_of

OUTPUTS = [f"{number:05}.tar" for number in range(3)]


class Killed(BaseException):
    """The end of a process, at any place."""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The current folder, with 3 archives of 3 samples each, not in the order of their names."""
    monkeypatch.chdir(tmp_path)
    Path("data").mkdir()
    for number in range(3):
        make_tar(f"data/{number:05}.tar", samples(number))


def samples(number: int) -> dict[str, bytes]:
    members: dict[str, bytes] = {}
    for sample in ("2", "0", "1"):
        key = f"{number:05}{sample}"
        members[f"{key}.jpg"] = f"picture {key}".encode()
        members[f"{key}.txt"] = b"alt text"
        members[f"{key}.json"] = json.dumps({"key": key, "caption": "alt text"}).encode()
        members[f"{key}.npy"] = b"features"
    return members


def describe(request: GenerationRequest) -> str:
    name = os.path.basename(request.attachments[0].source)
    if name in Path("broken.txt").read_text().split():
        raise ImageError("it is broken", kind="truncated")
    return f"caption of {name}"


def caption(*arguments: str, make: Callable[[], FakeEngine] | None = None) -> Ran:
    if not Path("broken.txt").exists():
        Path("broken.txt").touch()
    engine = make() if make else FakeEngine(describe)
    return run(
        *("caption", "data", "-f", "webdataset", "-o", "out"),
        *arguments,
        services=World(engine).services,
    )


def expected(number: int, failed: str = "") -> dict[str, object]:
    """Return what the archive of *samples(number)* should become; JSON as objects, without rows."""
    found: dict[str, object] = {}
    for name, data in samples(number).items():
        key, _, end = name.partition(".")
        if key == failed:
            continue
        found[name] = data
        if end == "txt":
            found[name] = f"caption of {key}.jpg".encode()
        if end == "json":
            found[name] = json.loads(data)
    return found


def written(name: str) -> dict[str, object]:
    """Return an archive like `expected`; each row must be that of its picture."""
    found: dict[str, object] = {}
    for member, data in members_of(f"out/{name}").items():
        found[member] = data
        if member.endswith(".json"):
            fields = json.loads(data)
            row = fields.pop("idefics")
            assert (row["file_name"], row["status"]) == (member.replace("json", "jpg"), "ok")
            found[member] = fields
    return found


def files() -> list[str]:
    return sorted(path.name for path in Path("out").iterdir())


def test_each_archive_becomes_one_with_captions_in_its_order() -> None:
    ran = caption()

    assert ran.code == 0, ran.err
    assert files() == [*OUTPUTS, "idefics-caption.journal", "idefics-caption.run.json"]
    for number, name in enumerate(OUTPUTS):
        assert written(name) == expected(number)
        keys = [member.partition(".")[0][-1] for member in members_of(f"out/{name}")]
        assert keys == sorted(keys, key="201".index)
    before = Path("out/00001.tar").read_bytes()
    again = caption()
    assert (again.code, again.err.splitlines()[-1]) == (0, "nothing is left to caption")
    assert Path("out/00001.tar").read_bytes() == before
    assert files() == [*OUTPUTS, "idefics-caption.journal", "idefics-caption.run.json"]


def test_a_failed_sample_is_left_out_until_it_is_captioned() -> None:
    Path("broken.txt").write_text("000011.jpg")
    ran = caption()
    assert (ran.code, Path("out/idefics-caption.failures.txt").exists()) == (3, True)
    assert written("00001.tar") == expected(1, failed="000011")

    Path("broken.txt").write_text("")
    again = caption("--retry-failed")
    assert again.code == 0, again.err
    for number, name in enumerate(OUTPUTS):
        assert written(name) == expected(number)


@pytest.mark.parametrize("after", range(9))
def test_a_run_that_is_killed_goes_on_and_no_archive_is_torn(
    after: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run ends while it writes the row of a picture, or the archive of which it is the last."""
    from idefics_cli.caption.sinks import webdataset

    sink, write = webdataset.WebdatasetSink, webdataset.WebdatasetSink.write
    whole, count = webdataset.write_archive, 0

    def killed_write(self: webdataset.WebdatasetSink, record: object) -> None:
        nonlocal count
        write(self, record)  # type: ignore[arg-type] # it passes through
        count += 1
        if count == after + 1:
            raise Killed

    def torn(*arguments: object) -> None:
        if count == after:
            arguments[1].write(b"torn")  # type: ignore[attr-defined] # a file
            raise Killed
        whole(*arguments)  # type: ignore[arg-type] # it passes through

    with monkeypatch.context() as patches:
        patches.setattr(sink, "write", killed_write)
        patches.setattr(webdataset, "write_archive", torn)
        with pytest.raises(Killed):
            caption("--batch-size", "2")
    for name in OUTPUTS:
        if Path("out", name).exists():
            assert written(name) == expected(OUTPUTS.index(name))
    ran = caption()
    assert ran.code == 0, ran.err
    for number, name in enumerate(OUTPUTS):
        assert written(name) == expected(number)
    assert not [name for name in files() if name.startswith(".")]


def test_a_picture_that_changes_gets_a_new_caption_in_a_new_archive() -> None:
    assert caption().code == 0
    members = samples(1)
    members["000011.jpg"] = b"another picture"
    make_tar("data/00001.tar", members)
    again = caption()

    assert "captioned 1 of 1" in again.err, again.err
    found = members_of("out/00001.tar")
    assert found["000011.jpg"] == b"another picture"
    assert (len(found), written("00000.tar")) == (12, expected(0))


def test_an_archive_that_changes_before_it_is_written_is_not_mixed_with_old_captions() -> None:
    def change(request: GenerationRequest) -> str:
        if request.attachments[0].source.endswith("000012.jpg"):  # the last of its archive
            members = samples(1)
            members["000010.jpg"] = b"other bytes here"
            make_tar("data/00001.tar", members)
        return describe(request)

    ran = caption("--batch-size", "1", make=lambda: FakeEngine(change))
    assert ran.code == 1
    assert "`000010.jpg` in `data/00001.tar` has changed since it was captioned" in ran.err
    assert not Path("out/00001.tar").exists()
    assert caption().code == 0
    assert members_of("out/00001.tar")["000010.jpg"] == b"other bytes here"


def test_shards_write_their_archives_into_one_folder() -> None:
    for index in range(4):
        ran = caption("--shard", f"{index}/4")
        assert ran.code == 0, ran.err
    assert [name for name in files() if name.endswith(".tar")] == OUTPUTS
    for number, name in enumerate(OUTPUTS):
        assert written(name) == expected(number)


def test_samples_of_several_pictures_and_other_members_are_kept() -> None:
    members = {"a.left.jpg": b"l", "a.right.jpg": b"r", "a.json": b"[1]", "b.jpg": b"b"}
    members |= {"b.png": b"p", "b.txt": b"old", "readme": b"words", "._b.jpg": b"mac"}
    make_tar("data/00000.tar", members)
    assert caption().code == 0
    found = members_of("out/00000.tar")

    captioned = {f"a.{side}": f"a.{side}.jpg" for side in ("left", "right")}
    captioned |= {name: name for name in ("b.jpg", "b.png")}
    texts = {f"{stem}.txt": f"caption of {name}".encode() for stem, name in captioned.items()}
    kept = {name: data for name, data in members.items() if name != "._b.jpg"}
    rows = {f"{stem}.json" for stem in captioned}
    assert {name: data for name, data in found.items() if name not in rows} == {**kept, **texts}
    assert rows < found.keys()


def test_archives_that_are_there_are_replaced_only_on_request() -> None:
    assert caption().code == 0
    Path("out/idefics-caption.journal").unlink()
    Path("out/00002.tar").unlink()
    before = Path("out/00001.tar").stat().st_mtime_ns
    assert "`out/00000.tar` and 1 other archive exist already" in caption().err
    skipped = caption("--existing", "skip")
    assert (skipped.code, "captioned 3 of 3" in skipped.err) == (0, True), skipped.err
    assert Path("out/00001.tar").stat().st_mtime_ns == before
    Path("out/idefics-caption.journal").unlink()
    assert caption("--overwrite").code == 0
    assert Path("out/00001.tar").stat().st_mtime_ns != before
    assert written("00002.tar") == expected(2)


def test_what_cannot_become_archives_is_refused() -> None:
    Path("more").mkdir()
    make_tar("more/00000.tar", samples(0))
    Path("a.jpg").write_bytes(b"a")
    for arguments, message in (
        (("-o", "data"), "`data/00000.tar` would replace the archive with the pictures"),
        (("more/00000.tar",), "`data/00000.tar` and `more/00000.tar` would both be in"),
        (("a.jpg",), "webdataset writes an archive for each archive, and `a.jpg` is in none"),
        (("-o", "new.tar"), "webdataset writes archives into a folder, and `new.tar` names an"),
        (
            ("-o", "x/new.Tar.gz"),
            "hint: `-o x/new`: each new archive in it keeps the name of its source",
        ),
        (("-o", "new.tgz"), "hint: `-o new`: each new archive in it keeps the name of its source"),
        (("--existing", "append"), "`--existing append` is for files of one caption each"),
    ):
        ran = caption(*arguments)
        assert (ran.code, message in ran.err) == (2, True), ran.err
    ran = run("caption", "data", "-f", "webdataset", services=World(FakeEngine()).services)
    assert (ran.code, "webdataset needs a folder" in ran.err) == (2, True)
    assert not Path("out").exists()
