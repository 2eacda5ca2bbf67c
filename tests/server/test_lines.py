"""The log never holds up an answer."""

from __future__ import annotations

import threading
import time

from idefics_cli.server.lines import LogLines


def test_lines_are_written_in_order() -> None:
    written: list[str] = []

    with LogLines(written.append) as lines:
        for number in range(100):
            lines.tell(str(number))

    assert written == [str(number) for number in range(100)]


def test_a_reader_that_stops_costs_lines_and_no_time() -> None:
    written: list[str] = []
    may_write = threading.Event()

    def write(line: str) -> None:
        may_write.wait(30)
        written.append(line)

    with LogLines(write, most_waiting=10) as lines:
        started = time.monotonic()
        for number in range(1000):
            lines.tell(str(number))
        seconds = time.monotonic() - started
        may_write.set()
        while len(written) < 11:
            time.sleep(0.001)

    assert seconds < 5
    assert written[:10] == [str(number) for number in range(10)]
    assert written[-1].endswith("lines are missing here: they could not be written in time")


def test_the_end_does_not_wait_for_a_reader_that_has_stopped() -> None:
    may_write = threading.Event()
    started = time.monotonic()

    def write(line: str) -> None:
        may_write.wait(30)

    with LogLines(write, most_waiting=2) as lines:
        for number in range(9):
            lines.tell(str(number))

    assert time.monotonic() - started < 10
    may_write.set()
