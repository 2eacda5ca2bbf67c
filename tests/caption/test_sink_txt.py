"""One text file per picture, which is whole or does not exist."""

from __future__ import annotations

import errno
import os
import re
import stat
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest

from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.sinks.base import Existing, SidecarError, Sink, Target
from idefics_cli.caption.sinks.txt import TxtSink, folds_case
from idefics_cli.core.errors import IdeficsError, UsageError
from idefics_cli.core.files import unfinished_path
from idefics_cli.core.types import Attachment, CaptionRecord
from tests.support.outputs import spoil


class NoStream:
    def write(self, data: bytes) -> int:
        raise AssertionError("sidecars write nothing to stdout")

    def flush(self) -> None: ...


def record(key: str, caption: str = "a cat") -> CaptionRecord:
    return CaptionRecord(key, caption=caption, finish="stop")


def pictures(*keys: str) -> tuple[CaptionItem, ...]:
    """Return pictures that were found under the folder `photos`."""
    return tuple(CaptionItem(key, Attachment(key), key.removeprefix("photos/")) for key in keys)


def target(*keys: str, path: Path | None = None, existing: Existing = "error") -> Target:
    return Target(NoStream(), path, existing=existing, pictures=pictures(*keys))


def write(into: Target, records: Iterable[CaptionRecord] | None = None) -> None:
    with TxtSink(into) as sink:
        for each in records or [record(picture.key) for picture in into.pictures]:
            sink.write(each)


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "photos" / "sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path / "photos"


def texts(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): path.read_text("utf-8")
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def test_a_caption_lies_beside_its_picture(photos: Path) -> None:
    write(target("photos/a.jpg", "photos/sub/b.tar.png", "photos/no extension"))

    assert texts(photos) == {
        "a.txt": "a cat\n",
        "sub/b.tar.txt": "a cat\n",
        "no extension.txt": "a cat\n",
    }


def test_under_a_folder_the_tree_is_kept(tmp_path: Path, photos: Path) -> None:
    write(target("photos/a.jpg", "photos/sub/a.jpg", path=Path("out/deep")))

    assert texts(photos) == {}
    assert texts(tmp_path / "out") == {"deep/a.txt": "a cat\n", "deep/sub/a.txt": "a cat\n"}


@pytest.mark.parametrize(
    ("key", "relative", "name"),
    [
        ("https://x.org/p/c%2Fd.jpg?size=1", "", "c_d.txt"),
        ("https://x.org/", "", "picture.txt"),
        ("-", "", "stdin.txt"),
        ("data:image/png;base64,sha256-12", "", "data-image-png-base64-sha256-12.txt"),
        ("/abs/e.jpg", "/abs/e.jpg", "e.txt"),
        ("../f.jpg", "../f.jpg", "f.txt"),
    ],
)
def test_under_a_folder_any_picture_has_a_place_in_it(
    key: str, relative: str, name: str, tmp_path: Path
) -> None:
    one = CaptionItem(key, Attachment(key), relative)
    write(Target(NoStream(), Path("out"), pictures=(one,)))

    assert texts(tmp_path / "out") == {name: "a cat\n"}


def test_what_is_no_file_has_nothing_beside_it() -> None:
    with pytest.raises(UsageError, match=r"`https://x.org/a.jpg` has no folder") as caught:
        write(target("https://x.org/a.jpg"))
    assert caught.value.hint == "`-o FOLDER` says where"


def test_a_picture_that_failed_has_no_file_and_keeps_an_old_one(photos: Path) -> None:
    (photos / "b.txt").write_text("by hand")
    failures = [
        CaptionRecord(key, error="no", error_kind="x") for key in ("photos/a.jpg", "photos/b.jpg")
    ]
    write(target("photos/a.jpg", "photos/b.jpg", existing="overwrite"), failures)

    assert texts(photos) == {"b.txt": "by hand"}


def test_every_answer_has_a_line(photos: Path) -> None:
    answered = replace(record("photos/a.jpg", "both"), answers=(("s", "a cat"), ("m", "calm")))
    write(replace(target("photos/a.jpg"), columns=("s", "m")), [answered])

    assert texts(photos) == {"a.txt": "a cat\ncalm\n"}


@pytest.mark.parametrize(
    ("caption", "text"),
    [
        ("漢字 «x»\n\ttwo", "漢字 «x»\n\ttwo\n"),
        ("\x1b[31mred\r", "\\x1b[31mred\\x0d\n"),
        ("\udcff", "\\xff\n"),
    ],
)
def test_a_caption_is_text_that_harms_no_terminal(caption: str, text: str, photos: Path) -> None:
    write(target("photos/a.jpg"), [record("photos/a.jpg", caption)])

    assert (photos / "a.txt").read_bytes() == text.encode()


# Two captions for one file


@pytest.mark.parametrize(
    ("keys", "message", "hint"),
    [
        (
            ["photos/a.jpg", "photos/b.jpg", "photos/a.png"],
            "the captions of `photos/a.jpg` and `photos/a.png` would both be `photos/a.txt`",
            "`--full-names` makes it `a.png.txt`",
        ),
        (
            ["photos/a.txt"],
            "the caption of `photos/a.txt` would replace the picture `photos/a.txt`",
            "`--full-names` makes it `a.txt.txt`",
        ),
        (
            ["photos/a.jpg", "photos/a.txt"],
            "the caption of `photos/a.jpg` would replace the picture `photos/a.txt`",
            "`--full-names` makes it `a.jpg.txt`",
        ),
    ],
)
def test_two_captions_in_one_place_are_refused_or_have_full_names(
    keys: list[str], message: str, hint: str, photos: Path
) -> None:
    with pytest.raises(UsageError, match=re.escape(message)) as caught:
        write(target(*keys))
    assert caught.value.hint == hint
    assert texts(photos) == {}

    write(replace(target(*keys), full_names=True))
    assert texts(photos) == {f"{key.removeprefix('photos/')}.txt": "a cat\n" for key in keys}


@pytest.mark.parametrize(
    ("keys", "hint"),
    [
        (["photos/A.JPG", "photos/a.png"], "`--full-names` makes it `a.png.txt`"),
        (["photos/A.JPG", "photos/a.jpg"], "caption them in two runs, or leave `-o` out"),
    ],
)
def test_captions_that_differ_in_case_alone_are_refused_where_that_is_one_file(
    keys: list[str], hint: str, photos: Path
) -> None:
    write(target(*keys))
    assert texts(photos) == {"A.txt": "a cat\n", "a.txt": "a cat\n"}
    for name in ("A.txt", "a.txt"):
        (photos / name).unlink()

    with (
        pytest.raises(UsageError) as caught,
        TxtSink(target(*keys), folds_case=lambda folder: True),
    ):
        pass
    assert str(caught.value) == (
        f"the captions of `{keys[0]}` and `{keys[1]}` would both be `photos/a.txt`: "
        "upper and lower case are one there"
    )
    assert caught.value.hint == hint
    assert texts(photos) == {}


def test_existing_files_tell_whether_upper_and_lower_case_are_one(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert not folds_case(str(photos))
    folds_case.cache_clear()
    # This imitates a disk that ignores upper and lower case: a file is found by any spelling.
    same = os.path.samefile

    def exists(path: str) -> bool:
        head, name = os.path.split(path)
        return name.lower() in map(str.lower, os.listdir(head))

    monkeypatch.setattr(os.path, "exists", exists)
    monkeypatch.setattr(os.path, "samefile", lambda a, b: a.lower() == b.lower() or same(a, b))
    empty = photos / "empty"
    empty.mkdir()
    for folder in (photos, empty, photos / "new" / "folder"):
        assert folds_case(str(folder)), folder
    folds_case.cache_clear()


def test_pictures_of_two_folders_can_meet_in_one() -> None:
    both = [CaptionItem(f"{folder}/a.jpg", Attachment(""), "a.jpg") for folder in ("one", "two")]
    with pytest.raises(UsageError, match=r"`one/a.jpg` and `two/a.jpg` would both") as caught:
        write(Target(NoStream(), Path("out"), pictures=both, full_names=True))
    assert caught.value.hint == "caption them in two runs, or leave `-o` out"


# Existing captions


def test_a_file_that_is_there_is_an_error_before_anything_is_done(photos: Path) -> None:
    (photos / "b.txt").write_text("by hand")
    with pytest.raises(UsageError, match=r"^`photos/b.txt` exists already$") as caught:
        write(target("photos/a.jpg", "photos/b.jpg"))
    assert "--existing skip" in str(caught.value.hint)

    (photos / "c.txt").write_text("by hand")
    with pytest.raises(
        UsageError, match=r"^2 of 3 captions exist already, such as `photos/b.txt`$"
    ):
        write(target("photos/a.jpg", "photos/b.jpg", "photos/c.jpg"))
    assert texts(photos) == {"b.txt": "by hand", "c.txt": "by hand"}


def test_skip_names_the_pictures_that_have_one(photos: Path) -> None:
    (photos / "b.txt").write_text("by hand")
    sink: Sink = TxtSink(target("photos/a.jpg", "photos/b.jpg", existing="skip"))
    with sink:
        assert sink.completed() == {"photos/b.jpg"}
        assert sink.position() is None


@pytest.mark.parametrize(
    ("existing", "old", "caption", "text"),
    [
        ("overwrite", "by hand", "a cat", "a cat"),
        ("append", "by hand\n", "a cat", "by hand a cat"),
        ("append", "1girl, solo", ", a cat", "1girl, solo, a cat"),
        ("append", "", "a cat", "a cat"),
        ("append", "by hand", "\na cat", "by hand\na cat"),
        ("prepend", "by hand\n", "a cat", "a cat by hand"),
        ("prepend", "by hand", "a cat, ", "a cat, by hand"),
        ("prepend", "", "a cat", "a cat"),
    ],
)
def test_old_and_new_make_one_caption_once(
    existing: Existing, old: str, caption: str, text: str, photos: Path
) -> None:
    (photos / "a.txt").write_text(old)
    into = target("photos/a.jpg", existing=existing)
    for _ in range(2):  # a run that was killed after the file and before its journal
        write(into, [record("photos/a.jpg", caption)])
        assert texts(photos) == {"a.txt": f"{text}\n"}


def test_an_old_caption_keeps_bytes_that_are_no_utf8(photos: Path) -> None:
    (photos / "a.txt").write_bytes(b"caf\xe9")
    write(target("photos/a.jpg", existing="append"))

    assert (photos / "a.txt").read_bytes() == b"caf\xe9 a cat\n"


@pytest.mark.parametrize("kind", ["device", "pipe", "large", "sparse"])
@pytest.mark.parametrize("existing", ["append", "prepend"])
def test_an_old_caption_without_end_is_the_failure_of_its_picture(
    existing: Existing, kind: str, photos: Path
) -> None:
    spoil(photos / "a.txt", kind)
    before = (photos / "a.txt").lstat()
    with TxtSink(target("photos/a.jpg", "photos/b.jpg", existing=existing)) as sink:
        with pytest.raises(SidecarError, match=r"cannot read the caption `photos/a\.txt`: "):
            sink.write(record("photos/a.jpg"))
        sink.write(record("photos/b.jpg"))
    assert (photos / "b.txt").read_text() == "a cat\n"
    assert (photos / "a.txt").lstat() == before


# Whole files


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (photos / "a.txt").write_text("old\n")

    def refuse(old: object, new: object) -> None:
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(SidecarError, match=r"cannot write `photos/a.txt`: Permission denied"):
        write(target("photos/a.jpg", existing="overwrite"))
    assert texts(photos) == {"a.txt": "old\n"}


def test_a_full_disk_ends_the_run(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(old: object, new: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(IdeficsError, match="No space left on device") as caught:
        write(target("photos/a.jpg"))
    assert not isinstance(caught.value, SidecarError)
    assert texts(photos) == {}


def test_a_name_that_is_too_long_is_the_failure_of_its_picture(photos: Path) -> None:
    long = f"photos/{'x' * 250}.j"
    with TxtSink(replace(target(long, "photos/b.jpg"), full_names=True)) as sink:
        with pytest.raises(SidecarError, match="File name too long"):
            sink.write(record(long))
        sink.write(record("photos/b.jpg"))
    assert texts(photos) == {"b.jpg.txt": "a cat\n"}


def test_the_files_of_a_killed_run_are_removed_but_not_those_of_a_running_one(photos: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        write(target("photos/a.jpg"))
        ended = unfinished_path(photos / "c.txt", process=_ended())
        running = unfinished_path(photos / "c.txt", process=other.pid)
        elsewhere = photos / ended.name.replace(".idefics-", ".idefics-x")
        for path in (ended, running, elsewhere):
            path.touch()
        write(target("photos/b.jpg"))
        assert not ended.exists()
        assert running.exists()
        assert elsewhere.exists()
        other.communicate(b"\n")


def _ended() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    return process.pid


@pytest.mark.skipif(os.name == "nt", reason="no umask here")
def test_permissions_are_as_the_umask_says(photos: Path) -> None:
    before = os.umask(0o027)
    try:
        write(target("photos/a.jpg"))
    finally:
        os.umask(before)
    assert stat.S_IMODE((photos / "a.txt").stat().st_mode) == 0o640


# Folders


def test_a_folder_that_nothing_can_be_written_to_is_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot write to `nowhere`: no such folder"):
        write(target("nowhere/a.jpg"))

    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot write to `file/x`: `file` is not a folder"):
        write(target("photos/a.jpg", path=Path("file/x")))


def test_one_folder_that_is_gone_fails_only_its_pictures(photos: Path) -> None:
    with TxtSink(target("photos/a.jpg", "nowhere/b.jpg")) as sink:
        with pytest.raises(SidecarError, match=r"cannot write `nowhere/b.txt`: No such file"):
            sink.write(record("nowhere/b.jpg"))
        sink.write(record("photos/a.jpg"))
    assert texts(photos) == {"a.txt": "a cat\n"}
