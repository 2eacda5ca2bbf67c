"""Messages of C libraries on standard error: they do not tear the bar, and are not lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from idefics_cli.ui.terminal.noise import Noise
from tests.support.screen import screen

pytestmark = pytest.mark.skipif(os.name == "nt", reason="POSIX terminals")

# A run with a thread that writes to descriptor 2, as a C library does, at full speed.
RUN = textwrap.dedent(
    """
    import faulthandler, os, signal, sys, threading, time
    from idefics_cli.caption.events import Ready, Started
    from idefics_cli.core.types import CaptionRecord
    from idefics_cli.ui.terminal.console import Console
    from idefics_cli.ui.views.progress import CaptionProgress

    end, *options = sys.argv[1:]
    written = 0
    is_over = threading.Event()

    def make_noise():
        global written
        while not is_over.wait(0.001):
            os.write(2, b"libpng warning: iCCP: \\x1b[31mknown\\n")
            written += 1

    console = Console(sys.stdout, sys.stderr, quiet="-q" in options)
    with CaptionProgress(console, clock=time.monotonic, verbose="-v" in options) as progress:
        progress.handle(Started(20))
        thread = threading.Thread(target=make_noise, daemon=True)
        progress.handle(Ready())
        thread.start()
        for number in range(20):
            time.sleep(0.01)
            progress.stdout.write(b"%d.jpg a cat\\n" % number)
            if number == 10 and end != "done":
                is_over.set()
                thread.join()
            if number == 10 and end == "interrupted":
                raise KeyboardInterrupt
            if number == 10 and end == "bug":
                raise AssertionError("no such row")
            if number == 10 and end == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            progress.handle(CaptionRecord(f"{number}.jpg", caption="a cat"))
        is_over.set()
        thread.join()
    os.write(2, b"the end after %d\\n" % written)
    """
)


def lines_on_a_terminal(end: str, *options: str) -> tuple[int, list[str]]:
    """Return the exit code of a run, and the last lines of its terminal of 70 columns."""
    import fcntl
    import struct
    import termios

    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 70, 0, 0))
    environ = {k: v for k, v in os.environ.items() if k not in ("COLUMNS", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, end, *options],
        stdin=subprocess.DEVNULL,
        stdout=theirs,
        stderr=theirs,
        env=environ | {"PYTHONPATH": str(Path(__file__).parents[2]), "TERM": "xterm-256color"},
    )
    os.close(theirs)
    written = b""
    while data := _read(ours):
        written += data
    os.close(ours)
    return process.wait(timeout=30), screen(written.decode())


def _read(terminal: int) -> bytes:
    try:
        return os.read(terminal, 65536)
    except OSError:  # Linux reports this when all processes have closed the terminal
        return b""


CAPTIONS = [f"{number}.jpg a cat" for number in range(20)]


def test_noise_from_a_thread_tears_no_caption_and_is_counted() -> None:
    code, shown = lines_on_a_terminal("done")

    *captions, note, end, last = shown
    assert (code, captions, last) == (0, CAPTIONS, "")
    count = int(end.removeprefix("the end after "))
    assert count > 20
    assert note == f"note: libraries wrote {count} lines of their own; `--verbose` shows them"


def test_noise_is_shown_in_the_end_when_asked_for_without_its_control_characters() -> None:
    _, shown = lines_on_a_terminal("done", "-v")

    assert shown[:20] == CAPTIONS
    *noise, end, _ = shown[20:]
    assert set(noise) == {"note: libpng warning: iCCP: \u241b[31mknown"}
    assert end == f"the end after {len(noise)}"


def test_a_traceback_comes_after_the_noise_that_may_explain_it() -> None:
    code, shown = lines_on_a_terminal("bug")

    assert (code, shown[:11]) == (1, CAPTIONS[:11])
    assert shown[11].startswith("note: libpng")
    # Output after the end of the bar goes to the terminal.
    assert [line for line in shown if "libpng" not in line][-2:] == [
        "AssertionError: no such row",
        "",
    ]


def test_ctrl_c_gives_standard_error_back() -> None:
    code, shown = lines_on_a_terminal("interrupted")

    assert (code, shown[:11]) == (-signal.SIGINT, CAPTIONS[:11])
    assert shown[11].startswith("note: libraries wrote ")
    assert "KeyboardInterrupt" in shown


def test_where_a_library_crashed_is_told_on_the_terminal() -> None:
    code, shown = lines_on_a_terminal("crash")

    assert code == -signal.SIGSEGV
    assert any("Fatal Python error: Segmentation fault" in line for line in shown)


def test_without_a_bar_noise_is_where_it_always_was() -> None:
    _, shown = lines_on_a_terminal("done", "-q")

    assert sum("libpng" in line for line in shown) > 20


def test_a_stream_that_is_no_descriptor_2_is_left_alone(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w+", encoding="utf-8") as log:
        noise = Noise(log)
        noise.start()
        assert noise.terminal is log
        noise.stop()
        assert (noise.lines(), log.read()) == ([], "")
