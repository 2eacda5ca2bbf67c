"""Sessions after a sudden end: a kill, Ctrl-C, a full disk."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from idefics_cli.chat.store.journal import SessionJournal
from idefics_cli.chat.store.sessions import SessionStore
from idefics_cli.core.errors import SessionError
from tests.support.sessions import (
    POSIX,
    kept,
    png,
    staged,
)


def test_a_torn_last_line_loses_only_that_line(store: SessionStore, tmp_path: Path) -> None:
    with store.create("demo") as session:
        session.ask("a?")
        session.reply("A.", "stop")
        expected = session.conversation
        session.ask("b?")
    (path,) = (tmp_path / "data" / "sessions").glob("*.jsonl")
    whole = path.read_bytes()
    last = len(whole.splitlines(keepends=True)[-1])
    for cut in range(1, last):
        path.write_bytes(whole[:-cut])
        assert store.read("last")[1] == expected
    with store.open("last") as session:
        assert session.conversation == expected
        session.ask("c?")
        session.reply("C.", "stop")
        expected = session.conversation
    with store.open("last") as session:
        assert session.conversation == expected


def test_an_unfinished_turn_is_offered_again(store: SessionStore) -> None:
    with store.create("demo") as session:
        session.ask("a?", [staged("red")])
    with store.open("last") as session:
        turn = session.roll_back()
        assert turn.text == "a?"
        assert [(s.data, s.width) for s in session.staged_pictures(turn)] == [(png("red"), 8)]
        assert session.conversation.turns == ()


WRITER = """
import sys
from pathlib import Path
from idefics_cli.chat.store.pictures import StagedPicture
from idefics_cli.chat.store.sessions import SessionStore
store = SessionStore(Path(sys.argv[1]))
try:
    session = store.open("killed")
except Exception:
    session = store.create("demo", "killed")
if session.conversation.pending:
    session.roll_back()
print("ready", flush=True)
while True:
    number = len(session.conversation.turns)
    session.ask(f"question {number}", [StagedPicture("x.png", b"picture %d" % number)])
    session.reply(f"answer {number} " + "x" * 5000, "stop")
    print(number, flush=True)
"""


def test_kill_at_any_moment_loses_no_completed_turn(
    store: SessionStore, tmp_path: Path, warm_python: tuple[str, ...]
) -> None:
    moments = random.Random(0)
    completed = 0
    for _ in range(10):
        process = subprocess.Popen(
            [*warm_python, "-c", WRITER, str(tmp_path / "data")], stdout=subprocess.PIPE
        )
        assert process.stdout is not None
        with process.stdout:
            assert process.stdout.readline() == b"ready\n"
            time.sleep(moments.uniform(0, 0.05))
            process.kill()
            process.wait()
            said = process.stdout.read().splitlines(keepends=True)
        completed = max([completed, *(int(n) + 1 for n in said if n.endswith(b"\n"))])
        with store.open("killed") as session:
            turns = [turn for turn in session.conversation.turns if turn.reply]
            assert len(turns) >= completed
            assert session.conversation.missing == ()
            for number, turn in enumerate(turns):
                assert turn.text == f"question {number}"
                assert turn.reply is not None
                assert turn.reply.text.startswith(f"answer {number} ")
                data = Path(turn.pictures[0].attachment.source).read_bytes()
                assert data == b"picture %d" % number
        completed = len(turns)
    assert completed >= 10


@pytest.mark.parametrize("when", range(1, 6))
def test_ctrl_c_after_a_line_was_written_mixes_nothing_up(
    store: SessionStore, monkeypatch: pytest.MonkeyPatch, when: int
) -> None:
    append, calls = SessionJournal.append, []

    def interrupted(self: SessionJournal, line: bytes, *, at: int, may_wait: bool = False) -> int:
        size = append(self, line, at=at, may_wait=may_wait)
        calls.append(line)
        if len(calls) == when:
            raise KeyboardInterrupt
        return size

    session = store.create("demo")
    session.set_setting("seed", 1)
    monkeypatch.setattr(SessionJournal, "append", interrupted)
    steps: list[Callable[[], object]] = [
        lambda: session.ask("a?"),
        lambda: session.reply("A.", "stop"),
        lambda: session.ask("b?"),
        lambda: session.roll_back(),
        lambda: session.retry(),
    ]
    for index, step in enumerate(steps, 1):
        if index == when:
            with pytest.raises(KeyboardInterrupt):
                step()
        step()
    assert len(calls) == 6
    expected = session.conversation
    session.close()
    assert store.read("last")[1] == expected
    assert expected.pending is not None


def test_a_full_disk_changes_nothing(
    store: SessionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store.create("demo", "n") as session:
        session.ask("a?")
        session.reply("A.", "stop")
        before, files = session.conversation, [path.read_bytes() for path in kept(tmp_path)]
        write = os.write

        def full(descriptor: int, data: bytes) -> int:
            if len(data) < 10:
                raise OSError(28, "No space left on device")
            return write(descriptor, data[: len(data) // 2])

        monkeypatch.setattr("os.write", full)
        with pytest.raises(SessionError, match="no space left on device"):
            session.ask("b?")
        monkeypatch.undo()
        assert session.conversation == before
        assert [path.read_bytes() for path in kept(tmp_path)] == files
        session.ask("b?")
        session.reply("B.", "stop")
    assert len(store.read("n")[1].turns) == 2


def test_a_folder_that_cannot_be_made_is_an_error_with_a_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    store = SessionStore(tmp_path / "file" / "data")
    for use in (lambda: store.create("demo", "n"), lambda: store.create("demo").ask("a?")):
        with pytest.raises(SessionError) as caught:
            use()
        assert "--no-save" in str(caught.value.hint)


@POSIX
def test_a_session_that_was_removed_under_us_is_an_error(
    store: SessionStore, tmp_path: Path
) -> None:
    with store.create("demo", "n") as session:
        shutil.rmtree(tmp_path / "data")
        with pytest.raises(SessionError, match="removed while it was open"):
            session.ask("a?")
