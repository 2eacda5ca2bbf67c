"""`idefics caption` as a process: Ctrl-C, closed pipes, and what is imported."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

SLOW = textwrap.dedent(
    """
    import sys, time
    from idefics_cli.cli.app import make_app
    from tests.support.commands import World
    from tests.support.fakes import FakeClock, FakeEngine

    def answer(request):
        time.sleep(0.05)
        return "a cat"

    class Engine(FakeEngine):
        def prepare(self, request, *, open_image=None):
            if request.attachments[0].source.endswith("/hangs.jpg"):
                time.sleep(60)
            return super().prepare(request)

    make_app()(sys.argv[1:], prog_name="idefics", obj=World(Engine(answer)).services)
    """
)


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SLOW, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )


@pytest.fixture
def many(here: Path) -> None:
    (here / "many").mkdir()
    for number in range(400):
        (here / "many" / f"{number:03}.jpg").touch()


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.usefixtures("many")
def test_ctrl_c_ends_a_running_command_with_whole_lines() -> None:
    with start("caption", "many", "--batch-size", "2") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        # `communicate` would lose the bytes that `readline` read ahead.
        rest, err = process.stdout.read(), process.stderr.read()

    lines = (first + rest).splitlines(keepends=True)
    assert 1 <= len(lines) < 400
    assert lines == [f"many/{number:03}.jpg\ta cat\n" for number in range(len(lines))]
    assert process.returncode == 130
    told = err.splitlines()
    assert told[0] == "note: finishing the current batch; Ctrl-C again stops at once"
    assert told[1].startswith(f"interrupted: captioned {len(lines)} of 400")
    assert len(told) == 3


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.usefixtures("many")
def test_a_picture_that_never_comes_does_not_hold_back_ctrl_c() -> None:
    Path("many/hangs.jpg").touch()
    with start("caption", "many/00*.jpg", "many/hangs.jpg", "--batch-size", "2") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
@pytest.mark.usefixtures("many")
def test_a_reader_that_goes_away_ends_the_run_quietly() -> None:
    with start("caption", "many", "--batch-size", "1") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "many/000.jpg\ta cat\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=30) == 1


def test_no_heavy_module_is_imported_before_the_model_loads() -> None:
    code = (
        "import sys\n"
        "from idefics_cli.cli.commands.caption import command\n"
        "import idefics_cli.caption.runner, idefics_cli.caption.sinks\n"
        "import idefics_cli.ui.views.progress\n"
        "print(*sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "PIL", "numpy"} & set(ran.stdout.split())
