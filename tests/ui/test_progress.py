"""The progress of a captioning run, on a terminal and in a log."""

from __future__ import annotations

import os
import re
import threading
import time
from collections.abc import Callable
from dataclasses import replace

import pytest

from idefics_cli.caption.events import BatchReduced, ModelLoading, Ready, Started
from idefics_cli.core.types import CaptionRecord
from idefics_cli.ui.terminal.console import Console
from idefics_cli.ui.views.progress import CaptionProgress
from idefics_cli.ui.views.progress_bar import RunCounts
from tests.support.commands import Stream
from tests.support.fakes import FakeClock
from tests.support.screen import screen


def done(name: str = "a.jpg") -> CaptionRecord:
    return CaptionRecord(name, caption="a cat")


def failed(name: str, error: str = "cannot read it", hint: str | None = None) -> CaptionRecord:
    return CaptionRecord(name, error=error, error_kind="truncated", hint=hint)


def wait_for(condition: Callable[[], bool], seconds: float = 20) -> None:
    """Wait until another thread has made *condition* true."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.01)


@pytest.fixture(autouse=True)
def _eighty_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)


def test_captions_failures_and_the_bar_share_a_terminal_without_tearing() -> None:
    terminal = Stream(terminal=True)
    with CaptionProgress(Console(terminal, terminal), clock=FakeClock(0.5)) as progress:
        progress.handle(Started(30))
        progress.handle(Ready())
        for number in range(10):
            progress.stdout.write(f"{number}.jpg\ta cat on a mat\n".replace("\t", " ").encode())
            progress.stdout.flush()
            progress.handle(done())
            progress.handle(failed(f"bad{number}.jpg"))
        wait_for(lambda: "20 of 30" in screen(terminal.text())[-1])
        shown = screen(terminal.text())

    bar = shown.pop()
    assert "20 of 30, 10 failed, 2.0/s, 5.0 s left" in bar
    assert shown == [
        line
        for number in range(10)
        for line in (f"{number}.jpg a cat on a mat", f"error: bad{number}.jpg: cannot read it")
    ]
    assert screen(terminal.text())[-1] == "", "the bar is gone at the end"


@pytest.mark.parametrize(
    ("width", "expected"),
    [
        (100, "1003 of 3000, 3 failed, 40 skipped, 1.0/s, 2 tokens/s, 33 min left"),
        (70, "1003 of 3000, 3 failed, 40 skipped, 1.0/s, 2 tokens/s, 33 min left"),
        (60, "1003 of 3000, 3 failed, 40 skipped, 1.0/s, 33 min left"),
        (45, "1003 of 3000, 3 failed, 1.0/s, 33 min left"),
        (40, "1003 of 3000, 3 failed, 33 min left"),
    ],
)
def test_on_a_narrow_terminal_what_matters_most_stays(width: int, expected: str) -> None:
    terminal = Stream(terminal=True)
    console = Console(terminal, terminal, environ={"COLUMNS": str(width)})
    with CaptionProgress(console, clock=FakeClock(1.0)) as progress:
        progress.handle(Started(3000, skipped=40))
        progress.handle(Ready())
        for _ in range(1000):
            progress.handle(replace(done(), new_tokens=2))
        for number in range(3):
            progress.handle(failed(f"{number}.jpg"))
        wait_for(lambda: "1003 of" in screen(terminal.text())[-1])
        shown = screen(terminal.text())[-1]

    assert (shown.endswith(expected), len(shown) <= width) == (True, True)
    assert ("━" in shown) == (width == 100)


def test_while_the_model_loads_its_name_and_phase_are_shown() -> None:
    terminal = Stream(terminal=True)
    console = Console(terminal, terminal)
    with CaptionProgress(console, clock=FakeClock(0.5), model="demo") as progress:
        progress.handle(Started(30))
        wait_for(lambda: "loading demo" in terminal.text())
        progress.handle(ModelLoading("reading weights", 0.5))
        wait_for(lambda: "reading weights 50%" in terminal.text())
        progress.handle(Ready())
        assert screen(terminal.text())[-1] == ""


def test_nothing_loads_and_nothing_is_shown_when_nothing_is_left_to_do() -> None:
    before = threading.active_count()
    terminal = Stream(terminal=True)
    with CaptionProgress(Console(terminal, terminal), clock=FakeClock(0.5)) as progress:
        progress.handle(Started(0, skipped=30))
        assert threading.active_count() == before
    assert terminal.text() == ""


def test_the_rest_of_the_bar_is_faint_on_any_background() -> None:
    terminal = Stream(terminal=True)
    with CaptionProgress(Console(terminal, terminal), clock=FakeClock(0.5)) as progress:
        progress.handle(Started(30))
        progress.handle(Ready())
        progress.handle(done())
        wait_for(lambda: "1 of 30" in terminal.text())
    assert re.search(r"\x1b\[2m[^\x1b]*━{20,}\x1b\[0m", terminal.text())


def test_a_file_as_stdout_gets_the_bytes_only_and_the_bar_is_not_stopped_for_them() -> None:
    out, err = Stream(terminal=False), Stream(terminal=True)
    with CaptionProgress(Console(out, err), clock=FakeClock()) as progress:
        progress.handle(Started(2))
        progress.handle(Ready())
        before = err.text().count("\x1b[?25h")
        progress.stdout.write(b"a.jpg\tcaf\xc3\xa9\n")
        assert err.text().count("\x1b[?25h") == before
    assert out.text() == "a.jpg\tcafé\n"


def test_the_first_row_for_a_pipe_ends_the_bar_because_its_reader_may_share_the_terminal() -> None:
    reading, writing = os.pipe()
    terminal = Stream(terminal=True)
    with (
        open(reading, "rb") as pipe,
        open(writing, "w", encoding="utf-8") as out,
        CaptionProgress(Console(out, terminal), clock=FakeClock(4.0)) as progress,
    ):
        progress.handle(Started(20))
        progress.handle(Ready())
        wait_for(lambda: "0 of 20" in screen(terminal.text())[-1])
        for number in range(4):
            progress.stdout.write(f"{number}.jpg\ta cat\n".encode())
            assert pipe.readline() == f"{number}.jpg\ta cat\n".encode()
            assert "━" not in screen(terminal.text())[-1]
            progress.handle(done())
        progress.handle(failed("b.jpg"))
        shown = [line.strip() for line in screen(terminal.text())]
    assert shown == [
        "note: 3 of 20, 0.2/s, 1 min left",
        "error: b.jpg: cannot read it",
        "",
    ]


def test_a_log_of_a_short_run_has_no_progress() -> None:
    out, err = Stream(terminal=False), Stream(terminal=False)
    with CaptionProgress(Console(out, err), clock=FakeClock(1.0)) as progress:
        progress.handle(Started(9))
        progress.handle(Ready())
        for _ in range(9):
            progress.handle(done())
    assert (out.text(), err.text()) == ("", "")
    assert progress.summary == "captioned 9 of 9 in 9.0 s (1.0/s)"


def test_a_log_of_a_long_run_gets_a_line_now_and_then() -> None:
    err = Stream(terminal=False)
    with CaptionProgress(Console(Stream(terminal=False), err), clock=FakeClock(4.0)) as progress:
        progress.handle(Started(20))
        progress.handle(Ready())
        for _ in range(20):
            progress.handle(done())
    assert err.text().splitlines() == [
        "note: 3 of 20, 0.2/s, 1 min left",
        "note: 11 of 20, 0.2/s, 36 s left",
        "note: 19 of 20, 0.2/s, 4.0 s left",
    ]


@pytest.mark.parametrize(("at_a_time", "seconds"), [(1, 0.9), (4, 3.5), (8, 7.0)])
def test_the_time_left_is_right_from_the_first_time_that_it_is_told(
    at_a_time: int, seconds: float
) -> None:
    """60 pictures in batches: the results of a batch come within a tenth of its time."""
    told: dict[float, str] = {}
    counts = RunCounts("captioned")
    counts.total = 60
    for number in range(60):
        batch, place = divmod(number, at_a_time)
        at = seconds * (batch + 1 + 0.1 * place / at_a_time)
        counts.captioned += 1
        counts.note_time(at)
        told[at] = counts.state()
    end = max(told)
    for at, state in told.items():
        assert (" left" in state) == (at >= max(2 * seconds, seconds + 2))
        if " left" in state:
            left = float(state.rsplit(", ", 1)[-1].removesuffix(" s left"))
            assert left == pytest.approx(end - at, rel=0.1, abs=seconds), (at, state)


def test_the_slow_first_second_of_a_fast_model_promises_no_late_end() -> None:
    """Four pictures in the first second, then forty in each."""
    counts = RunCounts("captioned")
    counts.total = 400
    times = [0.4, 0.7, 1.0, 1.2, *(1.2 + number / 40 for number in range(1, 397))]
    told = []
    for at in times:
        counts.captioned += 1
        counts.note_time(at)
        if " left" in (state := counts.state()):
            left = float(state.rsplit(", ", 1)[-1].removesuffix(" s left"))
            told.append((at, left))
    assert told[0][0] == pytest.approx(2.4, abs=0.05)
    for at, left in told:
        assert left == pytest.approx(times[-1] - at, rel=0.7, abs=1.0), (at, left)


def test_pictures_that_fail_at_once_do_not_promise_a_quick_end() -> None:
    counts = RunCounts("captioned")
    counts.total = 60
    for number in range(10):
        counts.failed += 1
        counts.note_time(0.01 * number)
    assert counts.state() == "10 of 60, 10 failed"
    for number in range(1, 3):
        counts.captioned += 1
        counts.note_time(20.0 * number)
    assert counts.state() == "12 of 60, 10 failed, 3.0/min, 16 min left"


def test_a_night_gives_hundreds_of_lines_and_not_thousands() -> None:
    err = Stream(terminal=False)
    with CaptionProgress(Console(Stream(terminal=False), err), clock=FakeClock(0.5)) as progress:
        progress.handle(Started(70_000))
        progress.handle(Ready())
        for _ in range(70_000):
            progress.handle(done())
    assert 50 < len(err.text().splitlines()) < 300
    assert progress.summary == "captioned 70000 of 70000 in 9 h 43 min (2.0/s)"


@pytest.mark.parametrize("terminal", [True, False])
def test_when_quiet_only_failures_are_told(terminal: bool) -> None:
    out, err = Stream(terminal=terminal), Stream(terminal=terminal)
    with CaptionProgress(Console(out, err, quiet=True), clock=FakeClock(20)) as progress:
        progress.handle(Started(100))
        progress.handle(Ready())
        progress.handle(BatchReduced(1))
        progress.handle(done())
        progress.handle(failed("b.jpg"))
    assert screen(err.text()) == ["error: b.jpg: cannot read it", ""]


def test_a_dumb_terminal_gets_lines_and_no_codes() -> None:
    err = Stream(terminal=True)
    console = Console(Stream(terminal=True), err, environ={"TERM": "dumb"})
    with CaptionProgress(console, clock=FakeClock(20)) as progress:
        progress.handle(Started(2))
        progress.handle(Ready())
        progress.handle(done())
        progress.handle(failed("b.jpg"))
    assert err.text() == "note: 1 of 2\nerror: b.jpg: cannot read it\n"


def test_an_accessible_terminal_gets_lines_and_nothing_that_is_redrawn() -> None:
    err = Stream(terminal=True)
    console = Console(Stream(terminal=True), err, environ={"NO_COLOR": "1"}, accessible=True)
    with CaptionProgress(console, clock=FakeClock(20)) as progress:
        progress.handle(Started(2))
        progress.handle(Ready())
        progress.handle(done())
        progress.handle(failed("b.jpg"))
    assert err.text() == "note: 1 of 2\nerror: b.jpg: cannot read it\n"


def test_a_failure_names_its_picture_once_on_one_line_without_control_characters() -> None:
    err = Stream(terminal=False)
    with CaptionProgress(Console(Stream(terminal=False), err), clock=FakeClock()) as progress:
        progress.handle(failed("a.jpg", "cannot read `./a.jpg`: truncated"))
        progress.handle(failed("b\n\x1b[31m.jpg", "the download failed"))
    assert err.text().splitlines() == [
        "error: cannot read `./a.jpg`: truncated",
        "error: b\u240a\u241b[31m.jpg: the download failed",
    ]


def test_a_hint_that_many_failures_share_is_told_once() -> None:
    err = Stream(terminal=False)
    with CaptionProgress(Console(Stream(terminal=False), err), clock=FakeClock()) as progress:
        for name in ("a.heic", "b.heic"):
            progress.handle(failed(name, "no reader for HEIC", hint="pip install it"))
        progress.handle(failed("c.png", "too large", hint="allow more"))
    assert err.text().splitlines() == [
        "error: a.heic: no reader for HEIC",
        "hint: pip install it",
        "error: b.heic: no reader for HEIC",
        "error: c.png: too large",
        "hint: allow more",
    ]


def test_a_smaller_batch_is_told() -> None:
    err = Stream(terminal=False)
    with CaptionProgress(Console(Stream(terminal=False), err), clock=FakeClock()) as progress:
        progress.handle(BatchReduced(4))
        progress.handle(BatchReduced(1))
    assert err.text().splitlines() == [
        "warning: out of memory: continuing with 4 pictures at a time",
        "warning: out of memory: continuing with one picture at a time",
    ]


@pytest.mark.parametrize(
    ("step", "captioned", "failures", "expected"),
    [
        (0.1, 200, 0, "captioned 200 of 200 in 20 s (10.0/s)"),
        (0.105, 198, 2, "captioned 198 of 200 in 21 s (9.4/s), 2 failed"),
        (50.0, 10, 0, "captioned 10 of 10 in 8 min (1.2/min)"),
        (1.0, 0, 3, "captioned 0 of 3, 3 failed"),
        (0.0, 3, 0, "captioned 3 of 3"),
    ],
)
def test_the_summary_says_how_many_in_what_time(
    step: float, captioned: int, failures: int, expected: str
) -> None:
    console = Console(Stream(terminal=False), Stream(terminal=False), quiet=True)
    with CaptionProgress(console, clock=FakeClock(step)) as progress:
        progress.handle(Started(captioned + failures))
        progress.handle(Ready())
        for _ in range(captioned):
            progress.handle(done())
        for _ in range(failures):
            progress.handle(failed("b.jpg"))
    assert progress.summary == expected
