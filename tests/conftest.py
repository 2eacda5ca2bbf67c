"""Fixtures of all tests: tiny checkpoints, a home of their own, and a Python that starts fast."""

from __future__ import annotations

import gc
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Generator, Iterator
from importlib import import_module
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.support.warm import PLAIN_MEMORY

if TYPE_CHECKING:
    from idefics_cli.engine.local.engine import LocalEngine
    from tests.support.stores import Store

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
# This is set before torch is imported. Several threads make tiny models slower, and ten times
# slower while another process keeps a core busy.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# If a shell starts the tests in the background, they and their children ignore Ctrl-C, which many
# tests need.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


# Files that take ten seconds or more on one core. They run first, so that no process of xdist
# still runs its last file long after the others have ended; by default, xdist runs the files with
# the fewest tests last.
LONG_FILES = (
    "cli/test_tune.py",
    "rules/test_readme.py",
    "ui/test_chat_terminal.py",
    "caption/test_chaos.py",
    "images/test_memory.py",
    "completion/test_shells.py",
    "cli/test_doctor_check.py",
    "caption/test_embed.py",
    "server/test_load.py",
    "ui/test_chat_screen.py",
    "bench/test_gpu_check.py",
    "bench/test_tune.py",
    "engine/test_scheduler.py",
    "training/tuning/test_run.py",
    "selfcheck/test_run.py",
)


def pytest_configure(config: pytest.Config) -> None:
    if hasattr(config.option, "loadscopereorder"):
        config.option.loadscopereorder = False


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Exclude the tests from garbage collection: they are a million objects that stay.

    Each engine that is opened or closed collects garbage, which took 0.7 s.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONG_FILES)}
    top = Path(__file__).parent

    def place(item: pytest.Item) -> int:
        return places.get(item.path.relative_to(top).as_posix(), len(places))

    items.sort(key=place)


@pytest.fixture(scope="session")
def compiled_code(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the code that kernels compile, for all tests of a run.

    Each start would compile its kernels again, which takes longer than most tests.
    """
    top = tmp_path_factory.getbasetemp()
    # The processes of xdist have folders of their own in the folder of the run.
    folder = (top.parent if "PYTEST_XDIST_WORKER" in os.environ else top) / "compiled code"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


@pytest.fixture(scope="session")
def make_home(tmp_path_factory: pytest.TempPathFactory, compiled_code: Path) -> Callable[[], Path]:
    """Return a function that makes a home, which is cheaper than a `tmp_path` per test."""
    homes, numbers = tmp_path_factory.mktemp("homes"), count()

    def make() -> Path:
        home = homes / str(next(numbers))
        (home / ".cache" / "idefics").mkdir(parents=True)
        (home / ".cache" / "idefics" / "code").symlink_to(compiled_code)
        return home

    return make


@pytest.fixture(scope="module", autouse=True)
def _no_garbage_of_earlier_files() -> Iterator[None]:
    """Exclude what outlives a file, such as imports, from garbage collection, like the tests."""
    yield
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session", autouse=True)
def _own_home_of_fixtures(make_home: Callable[[], Path]) -> Iterator[None]:
    """Do for fixtures of a module or session what `_own_home` does for a test."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        _use_home(make_home(), monkeypatch)
        yield


@pytest.fixture(autouse=True)
def _own_home(make_home: Callable[[], Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep a developer's settings, sessions and model cache out of the tests."""
    _use_home(make_home(), monkeypatch)


def _use_home(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(("IDEFICS_", "XDG_", "HF_")):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("HF_HOME", str(home / "hf"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


@pytest.fixture(autouse=True)
def _few_threads() -> Iterator[None]:
    """Undo the number of threads that a command has set.

    torch gives it to each new thread of the process. So the engines of all later tests would run
    with several threads; on a busy machine, tests then took 10 to 60 times as long.
    """
    yield
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(int(os.environ["OMP_NUM_THREADS"]))


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Return a function from a kind in `tiny.KINDS` to the folder of its tiny random checkpoint."""
    from tests.support import tiny

    made: dict[str, Path] = {}

    def get(kind: str) -> Path:
        if kind not in made:
            made[kind] = tiny.make(tmp_path_factory.mktemp(kind), kind)
        return made[kind]

    return get


@pytest.fixture(scope="session")
def endless(checkpoint: Callable[[str], Path]) -> Iterator[Callable[[str], LocalEngine]]:
    """Return a function from a kind to its engine, whose replies end at their limits only.

    Random weights would end a reply by chance.
    """
    from tests.support.prompts import endless_inference, open_engine

    made: dict[str, LocalEngine] = {}

    def get(kind: str) -> LocalEngine:
        if kind not in made:
            made[kind] = open_engine(checkpoint(kind), kind, endless_inference)
        return made[kind]

    yield get
    for engine in made.values():
        engine.close()


@pytest.fixture(scope="session", autouse=True)
def _quiet_library() -> None:
    """Switch progress bars off: they would count as output of the commands under test."""
    os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Store]]:
    """An empty store in memory, in place of S3 and of servers of SFTP."""
    from idefics_cli.images.remote import forget_stores
    from tests.support.stores import Store

    known = vars(import_module("fsspec.registry"))["_registry"]
    for protocol in Store.protocol:
        monkeypatch.setitem(known, protocol, Store)
    for kept in (Store.store, Store.errors, Store.reads, Store.failed, Store.readers):
        kept.clear()
    Store.fails_each = 0
    monkeypatch.setattr("idefics_cli.images.remote.FIRST_WAIT_SECONDS", 0.001)
    forget_stores()
    yield Store
    forget_stores()


@pytest.fixture(scope="session")
def warm_python() -> Iterator[tuple[str, ...]]:
    """The start of a command that replaces `python` and does not import torch for seconds.

    `-m` and `-c` follow it as usual; see `warm.py` and `warm_client.py`.
    """
    if os.name == "nt":
        yield (sys.executable,)
        return
    server, client = (
        str(Path(__file__).with_name("support") / name) for name in ("warm.py", "warm_client.py")
    )
    with (
        # The folder is not a `tmp_path`, because the path of a socket has at most 104 characters.
        tempfile.TemporaryDirectory() as folder,
        subprocess.Popen(
            [sys.executable, "-W", "ignore", server, path := f"{folder}/socket"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[1]), **PLAIN_MEMORY},
            # Ctrl-C in the terminal of the tests must not reach this process.
            start_new_session=True,
        ) as process,
    ):
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield (sys.executable, "-SE", client, path)
