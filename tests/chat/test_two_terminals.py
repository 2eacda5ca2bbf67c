"""One session in two terminals: locks."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from idefics_cli.chat.store.lock import FileLock, HeldElsewhereError
from idefics_cli.chat.store.sessions import SessionStore
from idefics_cli.core.errors import SessionError
from idefics_cli.core.files import lock

HOLDER = """
import sys
from pathlib import Path
from idefics_cli.chat.store.sessions import SessionStore
session = SessionStore(Path(sys.argv[1])).open("n")
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def holder(store: SessionStore, tmp_path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process that has the session `n` open."""
    with store.create("demo", "n") as session:
        session.ask("a?")
        session.reply("A.", "stop")
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path / "data")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdin is not None
    with process.stdout, process.stdin:
        assert process.stdout.readline() == b"held\n"
        yield process
        process.kill()
        process.wait()


def test_the_second_terminal_is_told_who_is_first(
    store: SessionStore, holder: subprocess.Popen[bytes]
) -> None:
    (info,) = store.list()
    with pytest.raises(SessionError) as caught:
        store.open("n")
    assert str(caught.value) == f"session `{info.id}` is open in process {holder.pid}"
    assert store.is_open(info.id)
    with pytest.raises(SessionError, match="is open in process"):
        store.remove(["n"])
    assert store.list() == [info]


def test_a_session_is_free_when_its_owner_was_killed(
    store: SessionStore, holder: subprocess.Popen[bytes]
) -> None:
    holder.kill()
    holder.wait()
    with store.open("n") as session:
        assert len(session.conversation.turns) == 1


def test_one_process_cannot_open_a_session_twice(store: SessionStore) -> None:
    with store.create("demo", "n") as session:
        session.ask("Hi")
        with pytest.raises(HeldElsewhereError, match=f"process {os.getpid()}"):
            store.open("n")
        assert store.is_open(session.id)
    store.open("n").close()
    assert not store.is_open(session.id)


def test_a_lock_is_held_by_one_at_a_time(tmp_path: Path) -> None:
    inside, most = 0, 0
    mutex = threading.Lock()

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with FileLock(tmp_path / "lock", wait_seconds=30):
                with mutex:
                    inside += 1
                    most = max(most, inside)
                time.sleep(0.001)
                with mutex:
                    inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1
    assert not (tmp_path / "lock").exists()


def test_a_lock_on_a_file_that_was_removed_meanwhile_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    calls: list[int] = []

    def late(descriptor: int) -> None:
        if not calls:
            path.unlink()
            path.write_text("of somebody else")
        calls.append(descriptor)
        lock(descriptor)

    with FileLock(path, wait_seconds=10, acquire=late):
        assert path.read_text() == f"{os.getpid()}\n"
        assert len(calls) == 2
