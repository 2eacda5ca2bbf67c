"""Work in background threads."""

from __future__ import annotations

import threading

import pytest

from idefics_cli.core.threads import in_background


def test_work_goes_on_when_nobody_waits_for_it() -> None:
    may_end = threading.Event()

    def work() -> str:
        may_end.wait(10)
        return "done"

    result = in_background(work, name="test-work")

    assert not result.cancel()
    may_end.set()
    assert result.result(10) == "done"


def test_an_error_is_passed_on() -> None:
    def fail() -> None:
        raise OSError("no")

    with pytest.raises(OSError, match="no"):
        in_background(fail, name="test-work").result(10)
