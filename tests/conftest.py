"""What tests share: checkpoints made once per run, pictures, and a quiet library."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.warm import PLAIN_MEMORY

if TYPE_CHECKING:
    from idefics_cli.engine.local.engine import LocalEngine

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# Before torch is imported: models this small only lose by sharing out their work, and lose ten
# times over where another process keeps a core busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# A shell that starts the tests in the background lets them, and all that they start, ignore Ctrl-C,
# which many of them are about.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Half a minute and more on one core each: first, so that no process of xdist's does its last file
# long after the others have ended. By itself it takes those with the fewest tests last.
LONG_FILES = (
    "caption/test_chaos.py",
    "ui/test_chat_terminal.py",
    "completion/test_shells.py",
    "engine/test_prefix.py",
    "models/families/test_parity.py",
    "demo/training/test_train.py",
    "rules/test_readme.py",
    "cli/test_app.py",
    "engine/test_serving.py",
    "engine/test_end_to_end.py",
)


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONG_FILES)}
    top = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        return places.get(item.path.relative_to(top).as_posix(), len(places))

    items.sort(key=place)


@pytest.fixture(scope="session")
def _make_home(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Path]:
    """Return what gives a new folder, which costs less than a `tmp_path` for every test."""
    homes, numbers = tmp_path_factory.mktemp("homes"), count()

    def make() -> Path:
        home = homes / str(next(numbers))
        home.mkdir()
        return home

    return make


@pytest.fixture(autouse=True)
def _own_home(_make_home: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a developer's settings, sessions and model cache out of the tests."""
    home = _make_home()
    for name in list(os.environ):
        if name.startswith(("IDEFICS_", "XDG_", "HF_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture
def patient_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a captioning run wait for its readers, so that its batches are those of an idle machine.

    On a busy one a thread may need longer to read a picture than the model waits for it.
    """
    from idefics_cli.caption.executors import local

    monkeypatch.setattr(local, "_PATIENCE_SECONDS", 60.0)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return what gives the folder of a tiny random checkpoint of a kind in `tiny.KINDS`."""
    from tests.support import tiny

    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = tiny.make(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return get


@pytest.fixture(scope="session")
def endless(checkpoint: Callable[[str], Path]) -> Iterator[Callable[[str], LocalEngine]]:
    """Return what gives the engine of a tiny checkpoint whose replies end at their limits only.

    Random weights end a reply by chance.
    """
    from tests.support.prompts import open_engine

    made: dict[str, LocalEngine] = {}

    def get(kind: str) -> LocalEngine:
        if kind not in made:
            made[kind] = open_engine(checkpoint(kind), kind)
            made[kind].loaded.family.stop_ids.clear()
        return made[kind]

    yield get
    for engine in made.values():
        engine.close()


@pytest.fixture(scope="session", autouse=True)
def _quiet_library() -> None:
    """Progress bars on stderr would count as output of the commands under test."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


@pytest.fixture(scope="session")
def warm_python() -> Iterator[tuple[str, ...]]:
    """What stands for `python` in a command that would first import torch for seconds.

    See `warm.py`; `-m` and `-c` go after it as ever.
    """
    if os.name == "nt":
        yield (sys.executable,)
        return
    program = str(Path(__file__).with_name("support") / "warm.py")
    with (
        # Not below a `tmp_path`: the path of a socket has 104 characters at most.
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [sys.executable, "-W", "ignore", program, "serve", path := f"{folder}/socket"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **PLAIN_MEMORY},
            # Ctrl-C at the tests is not meant for what is no longer started by them.
            start_new_session=True,
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield (sys.executable, "-SE", program, path)
