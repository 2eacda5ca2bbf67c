"""A picture that hangs costs nothing but itself: all others are journaled, and a limit holds."""

from __future__ import annotations

import re
import shutil
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from idefics_cli.caption.job import CaptionJob
from idefics_cli.caption.outcome import RunOutcome
from idefics_cli.caption.output import CaptionOutput
from idefics_cli.caption.resume.journal import RunJournal
from idefics_cli.caption.resume.journal_lines import decode_line, encode_line
from idefics_cli.caption.run import caption_pictures
from idefics_cli.core.types import GenerationRequest
from idefics_cli.engine.protocol import OpenImage, Prepared
from tests.support.captioning import describe, photo_job
from tests.support.fakes import FAKE_SPEC, EngineOf, FakeEngine
from tests.support.outputs import contents

pytestmark = pytest.mark.usefixtures("here")


class Hanging(FakeEngine):
    """Reads `00.jpg` only after `release` is set, and `07.jpg` only after `release_last` is set."""

    def __init__(self) -> None:
        super().__init__(describe)
        self.release, self.release_last = threading.Event(), threading.Event()
        self.release_last.set()

    def prepare(
        self, request: GenerationRequest, *, open_image: OpenImage | None = None
    ) -> Prepared:
        if request.attachments[0].source == "00.jpg":
            assert self.release.wait(30)
        if request.attachments[0].source == "07.jpg":
            assert self.release_last.wait(30)
        return super().prepare(request, open_image=open_image)


def job(count: int, *, batch_size: int = 2) -> CaptionJob:
    for number in range(count):
        Path(f"{number:02}.jpg").write_bytes(b"%d" % number)
    names = [f"{number:02}.jpg" for number in range(count)]
    return replace(photo_job(names, batch_size=batch_size), patience_seconds=0.01)


def caption(job: CaptionJob, folder: str, engine: FakeEngine) -> RunOutcome:
    output = CaptionOutput("jsonl", Path(folder, "out.jsonl"))
    return caption_pictures(job, output, FAKE_SPEC, factory=EngineOf(engine))


def wait_for(lines: int, path: Path) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b'"record"') >= lines:
            return
        time.sleep(0.005)
    raise AssertionError(f"{path} has no {lines} records")


def test_what_was_done_beside_a_hanging_picture_is_not_done_again_after_a_crash() -> None:
    for folder in ("hung", "crashed", "whole"):
        Path(folder).mkdir()
    engine, work = Hanging(), job(20)
    run = threading.Thread(target=caption, args=(work, "hung", engine))
    run.start()
    wait_for(19, Path("hung/out.jsonl.journal"))
    for path in Path("hung").iterdir():  # as a crash leaves them
        shutil.copy(path, "crashed")
    engine.release.set()
    run.join()

    again = FakeEngine(describe)
    assert caption(work, "crashed", again).captioned == 1
    assert [request.attachments[0].source for request in again.requests] == ["00.jpg"]
    assert caption(work, "whole", FakeEngine(describe)).captioned == 20
    assert contents(Path("crashed")) == contents(Path("whole"))
    assert contents(Path("hung")) == contents(Path("whole"))


def test_a_record_that_waited_has_its_row_noted_and_is_read_back() -> None:
    Path("hung").mkdir()
    engine, work = Hanging(), job(8)
    run = threading.Thread(target=caption, args=(work, "hung", engine))
    run.start()
    path = Path("hung/out.jsonl.journal")
    wait_for(7, path)
    engine.release.set()
    run.join()
    text = path.read_text("utf-8")
    assert text.count('"waits": true') == 7
    (written,) = re.findall(r'{"written": \[(.*)\], "end"', text)
    assert len(written.split(", ")) == 7, "one line notes all rows that were written together"
    with RunJournal(path) as journal:
        assert list(journal.rows) == [f"../{number:02}.jpg" for number in range(8)]
        assert journal.end == Path("hung/out.jsonl").stat().st_size
        assert journal.is_complete
    # Clones of the repository before version 0.2.0 wrote a line for each row.
    before, _, after = path.read_bytes().partition(b'{"written": ')
    for offset in written.split(", "):
        before += encode_line({"row": int(offset), "end": journal.end, "at": len(before)})
    closed = after.splitlines()[-1] + b"\n"
    end = decode_line(closed, needs_checksum=True) | {"at": len(before)}
    path.write_bytes(before + encode_line(end))
    with RunJournal(path) as journal:
        assert list(journal.rows) == [f"../{number:02}.jpg" for number in range(8)]
        assert journal.is_complete


def test_rows_that_the_journal_has_not_noted_before_a_crash_are_written_from_their_records() -> (
    None
):
    for folder in ("hung", "crashed", "whole"):
        Path(folder).mkdir()
    engine, work = Hanging(), job(8)
    engine.release_last.clear()
    run = threading.Thread(target=caption, args=(work, "hung", engine))
    run.start()
    wait_for(6, Path("hung/out.jsonl.journal"))
    engine.release.set()
    wait_for(7, Path("hung/out.jsonl.journal"))
    while Path("hung/out.jsonl").read_bytes().count(b"\n") < 7:
        time.sleep(0.005)
    for path in Path("hung").iterdir():
        shutil.copy(path, "crashed")
    engine.release_last.set()
    run.join()
    assert '"written"' not in Path("crashed/out.jsonl.journal").read_text("utf-8")

    again = FakeEngine(describe)
    assert caption(work, "crashed", again).captioned == 1
    assert [request.attachments[0].source for request in again.requests] == ["07.jpg"]
    assert caption(work, "whole", FakeEngine(describe)).captioned == 8
    assert contents(Path("crashed")) == contents(Path("whole"))


def test_only_so_many_pictures_begin_after_one_that_hangs() -> None:
    Path("hung").mkdir()
    engine, work = Hanging(), job(99, batch_size=1)
    run = threading.Thread(target=caption, args=(work, "hung", engine))
    run.start()
    wait_for(63, Path("hung/out.jsonl.journal"))
    time.sleep(0.2)
    assert len(engine.prepared) == 63, "64 batches, of which the first hangs"
    engine.release.set()
    run.join()
    assert len(engine.requests) == 99
