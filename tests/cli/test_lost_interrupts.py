"""A Ctrl-C that comes during a `__del__` method ends the program all the same."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import signal, time
from idefics_cli.cli.lost_interrupts import repeat_lost_interrupts

class Freed:
    def __init__(self, error):
        self.error = error

    def __del__(self):
        if self.error is None:
            signal.raise_signal(signal.SIGINT)
        else:
            raise self.error

repeat_lost_interrupts()
Freed(ValueError("told"))
try:
    Freed(None)
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_it_comes_again_and_other_errors_are_told_as_before() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True, timeout=50
    )
    assert done.stdout == "interrupted\n"
    assert "ValueError: told" in done.stderr
    assert "KeyboardInterrupt" not in done.stderr
