"""Session files that are damaged, or that a later version wrote."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from idefics_cli.chat.store.sessions import SessionStore
from idefics_cli.core.errors import IdeficsError, SessionError
from tests.support.sessions import kept, make

DAMAGE: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "a line that is no JSON": (lambda lines: [lines[0], b"{", *lines[1:]], "line 2 is damaged"),
    "a line that is not an event": (lambda lines: [*lines, b"[]"], "line 4 is damaged"),
    "a line that is no text": (lambda lines: [*lines, b"\xff"], "line 4 is damaged"),
    "a field too few": (lambda lines: [*lines, b'{"event":"asked"}'], r"line 4 is damaged \(asked"),
    "an impossible event": (
        lambda lines: [*lines, b'{"event":"dropped","picture":7}'],
        r"line 4 is damaged \(dropped",
    ),
    "no beginning": (lambda lines: lines[1:], "line 1 is damaged"),
    "an empty line": (lambda lines: [b"", *lines], "line 1 is damaged"),
    "a later format": (
        lambda lines: [lines[0].replace(b'"format":1', b'"format":2'), *lines[1:]],
        "a later version of this program wrote it: it has format 2, and this version reads 1",
    ),
    "a later event": (
        lambda lines: [*lines, b'{"event":"sung"}'],
        "a later version of this program wrote it: it has an unknown event `sung`",
    ),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_a_damaged_file_is_an_error_that_says_where_and_changes_nothing(
    store: SessionStore, tmp_path: Path, case: str
) -> None:
    damage, message = DAMAGE[case]
    (session_id,) = make(store, "n")
    (good,) = make(store, "good")
    path = tmp_path / "data" / "sessions" / f"{session_id}.jsonl"
    content = b"\n".join(damage(path.read_bytes().splitlines())) + b'\n{"torn'
    path.write_bytes(content)
    for use in (store.open, store.read):
        with pytest.raises(SessionError, match=message) as caught:
            use(session_id)
        assert caught.value.hint
    assert path.read_bytes() == content
    problems = {info.id: info.problem is not None for info in store.list()}
    assert problems == {session_id: True, good: False}
    store.remove([session_id])
    assert [info.id for info in store.list()] == [good]


def test_last_is_the_last_one_that_can_be_read(store: SessionStore, tmp_path: Path) -> None:
    first, second = make(store, None, None)
    with (tmp_path / "data" / "sessions" / f"{second}.jsonl").open("ab") as file:
        file.write(b"{\n")
    assert store.find("last") == first


def test_an_event_of_a_later_version_asks_for_the_later_version(
    store: SessionStore, tmp_path: Path
) -> None:
    make(store, "n")
    (path,) = (tmp_path / "data" / "sessions").glob("*.jsonl")
    with path.open("ab") as file:
        file.write(b'{"event":"sung"}\n')
    with pytest.raises(SessionError, match="unknown event `sung`") as caught:
        store.open(path.stem)
    assert caught.value.hint == "pip install --upgrade idefics-cli"


def test_a_method_that_raises_has_changed_nothing(store: SessionStore, tmp_path: Path) -> None:
    with store.create("demo") as session:
        session.ask("a?")
        session.reply("A.", "stop")
        before, files = session.conversation, [path.read_bytes() for path in kept(tmp_path)]
        for wrong in (lambda: session.drop(1), lambda: session.edit(2), lambda: session.forget(1)):
            with pytest.raises(IdeficsError):
                wrong()
        with pytest.raises(ValueError, match="pending"):
            session.reply("B.", "stop")
        assert session.conversation == before
        assert [path.read_bytes() for path in kept(tmp_path)] == files
