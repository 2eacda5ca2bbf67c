"""Disks that fill up, and folders and pictures that vanish, in the middle of a run."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import pytest

from idefics_cli.core.types import GenerationRequest
from idefics_cli.engine.protocol import OpenImage, Prepared
from idefics_cli.images.sources import no_such_file
from tests.support.commands import Ran, World, run
from tests.support.fakes import FakeEngine
from tests.support.http_servers import wait_for
from tests.support.outputs import FORMATS, OF_FILES, contents, destination, journal_in

COUNT = 60

every_format = pytest.mark.parametrize("format_", FORMATS)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for number in range(COUNT):
        Path(f"photos/{number:02}.jpg").write_text(str(number), "utf-8")
    return tmp_path


class Eventful(FakeEngine):
    """Checks that the files of pictures exist, and calls *event* at the third reply."""

    def __init__(self, event: Callable[[], object] = lambda: None) -> None:
        super().__init__(self._answer)
        self._event = event

    def prepare(
        self, request: GenerationRequest, *, open_image: OpenImage | None = None
    ) -> Prepared:
        if not os.path.exists(request.attachments[0].source):
            raise no_such_file(request.attachments[0].source)
        return super().prepare(request, open_image=open_image)

    def _answer(self, request: GenerationRequest) -> str:
        if len(self.requests) == 3:
            self._event()
        return f"a picture named {Path(request.attachments[0].source).stem}"


def caption(*arguments: str, event: Callable[[], object] = lambda: None) -> Ran:
    world = World(Eventful(event))
    return run("caption", "photos", "-r", "--batch-size", "2", *arguments, services=world.services)


@cache
def undisturbed(format_: str) -> dict[str, str]:
    """Return the output of all pictures; the first test of a format makes it for the others."""
    assert caption(*into("whole", format_)).code == 0
    return contents(Path("whole"))


def into(folder: str, format_: str) -> tuple[str, ...]:
    Path(folder).mkdir(exist_ok=True)
    return ("-f", format_, "-o", destination(folder, format_))


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """Mount a file system in memory at *folder*, or skip the test where that is not allowed."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    try:
        is_mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        is_mounted = False
    if not is_mounted:
        pytest.skip("no file system may be mounted here")
    try:
        yield
    finally:
        subprocess.run(["umount", str(folder)], check=True)


@every_format
@pytest.mark.parametrize("kib", [8, 12, 20, 24])
def test_a_disk_that_fills_up_ends_the_run_and_room_lets_it_go_on(format_: str, kib: int) -> None:
    whole = undisturbed(format_)
    with mounted(Path("parts"), f"size={kib}k"):
        ran = caption(*into("parts", format_))
        assert ran.code == 1
        *_, error, hint = (line for line in ran.err.splitlines() if not line.startswith("note"))
        assert error.startswith("error: cannot ")
        assert error.endswith(": No space left on device")
        assert hint == "hint: once that is fixed, the same command continues the run"

        subprocess.run(["mount", "-o", "remount,size=1m", "parts"], check=True)
        assert caption(*into("parts", format_)).code == 0
        assert contents(Path("parts")) == whole


@every_format
def test_an_output_folder_that_goes_ends_the_run_at_once(format_: str) -> None:
    arguments = into("out", format_)
    journal = journal_in("out", format_)

    def remove() -> None:
        # The output is opened for its first row. Before that, the error would name the output.
        wait_for(lambda: "photos/00.jpg" in journal.read_text("utf-8"))
        shutil.rmtree("out")

    ran = caption(*arguments, event=remove)

    assert ran.code == 1
    error, hint = ran.err.splitlines()[-2:]
    assert error.startswith("error: cannot keep the journal `out/")
    assert error.endswith("`: the file was removed while it was open")
    assert hint == "hint: once that is fixed, the same command continues the run"


@pytest.mark.parametrize("format_", sorted(OF_FILES - {"parquet"}))
def test_a_picture_that_vanishes_is_a_failed_row_and_the_others_go_on(format_: str) -> None:
    gone = [Path(f"photos/{COUNT - 1 - number}.jpg") for number in range(3)]

    def vanish() -> None:
        for path in gone:
            path.unlink()

    ran = caption(*into("out", format_), event=vanish)
    assert (ran.code, len(ran.err.split("no such file"))) == (3, 4)
    for path in gone:
        path.write_text(path.stem.lstrip("0"), "utf-8")
    assert caption(*into("out", format_), "--retry-failed").code == 0
    assert contents(Path("out")) == undisturbed(format_)


def test_a_folder_that_becomes_read_only_ends_the_run_and_it_goes_on_when_it_is_not() -> None:
    shelf = Path("photos/shelf")
    with mounted(shelf, "size=1m"):
        for number in range(3):
            (shelf / f"{number}.jpg").write_text(str(number), "utf-8")
        command = ["mount", "-o", "remount,ro", str(shelf)]
        ran = caption("-f", "txt", event=lambda: subprocess.run(command, check=True))

        assert ran.code == 1
        assert ran.err.splitlines()[-2:] == [
            "error: cannot write `photos/shelf/0.txt`: Read-only file system",
            "hint: once that is fixed, the same command continues the run",
        ]
        subprocess.run(["mount", "-o", "remount,rw", str(shelf)], check=True)
        assert caption("-f", "txt").code == 0
        assert sorted(os.listdir(shelf)) == [
            f"{n}.{end}" for n in range(3) for end in ("jpg", "txt")
        ]
    assert len(list(Path("photos").glob("*.txt"))) == COUNT
