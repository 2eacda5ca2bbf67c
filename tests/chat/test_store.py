"""Sessions on disk: what was said is there again, whatever happens in between."""

from __future__ import annotations

import io
import json
import os
import random
import shutil
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.chat.attachments import PictureOpener, StagedPicture
from idefics_cli.chat.store.journal import SessionJournal
from idefics_cli.chat.store.lock import FileLock, HeldElsewhereError
from idefics_cli.chat.store.pictures import shown_source
from idefics_cli.chat.store.sessions import NullStore, OpenSession, SessionStore
from idefics_cli.core.errors import IdeficsError, ImageError, SessionError, UsageError
from idefics_cli.core.files import lock
from idefics_cli.core.types import (
    Attachment,
    Completion,
    GenerationRequest,
    ImageLimits,
    LoadSpec,
    Message,
    Sampling,
)

GREEDY = Sampling()
POSIX = pytest.mark.skipif(os.name == "nt", reason="POSIX file modes")


class Clock:
    """A minute passes with every look."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(minutes=1)
        return self.now


@pytest.fixture
def store(tmp_path: Path) -> SessionStore:
    return SessionStore(tmp_path / "data", now=Clock())


def png(color: str, *, file_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), color).save(buffer, file_format)
    return buffer.getvalue()


def stage(path: Path) -> StagedPicture:
    return PictureOpener(ImageLimits(), offline=True).stage(str(path))


def staged(color: str) -> StagedPicture:
    return StagedPicture(f"{color}.png", png(color), 8, 6)


def asked(session: OpenSession, text: str = "and then?") -> GenerationRequest:
    """Return what the model would be asked next."""
    return session.conversation.asked(text).request(GREEDY)


def pixels(request: GenerationRequest) -> list[bytes]:
    return [Path(attachment.source).read_bytes() for attachment in request.attachments]


def kept(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "data").rglob("*") if path.is_file())


def talk(session: OpenSession) -> None:
    """Do everything that can be done to a conversation, at least once."""
    session.set("temperature", 0.25)
    session.ask("What is in [1]?", [staged("red")])
    session.reply("Red.", "stop", sampling=Sampling(seed=3), prompt_tokens=9, new_tokens=2)
    session.ask("And [2] \u2028 «ü» \udce9?", [staged("green"), staged("blue")])
    session.reply("It is gr", "cancelled")
    session.retry()
    session.reply("Green\nand blue.", "length", seconds=1.5)
    session.ask("mistake", [staged("black")])
    session.undo()
    session.ask("fails", [staged("black")])
    session.roll_back()
    session.retry()
    session.roll_back()
    session.set_system("Be brief.")
    session.set_model("other")
    session.ask("third")
    session.reply("3", "stop")
    session.edit(3)
    session.ask("third again")
    session.reply("4", "stop")
    session.drop(2)
    session.set("temperature", None)
    session.set("top_k", 4)
    session.rename("colours")
    session.forget(1)


def test_a_loaded_session_asks_the_model_what_the_typed_one_asks(store: SessionStore) -> None:
    with store.create("demo") as session:
        talk(session)
        typed, conversation = asked(session), session.conversation
    with store.open("last") as session:
        assert session.conversation == conversation
        assert asked(session) == typed
    assert pixels(typed) == [png("blue")]


@pytest.mark.parametrize(
    "text", ["\udce9", "a\r\n\tb\u2028\x00\x1b[2J", "  « ü »  ", "\\ud83d", "😀", ""]
)
def test_every_character_is_kept(store: SessionStore, text: str) -> None:
    with store.create("demo", "n") as session:
        session.ask(text)
        session.reply(text, "stop")
    for (turn,) in (session.conversation.turns, store.read("n")[1].turns):
        assert turn.reply is not None
        assert (turn.text, turn.reply.text) == (text, text)


def test_what_is_read_beside_an_open_session_is_the_same(store: SessionStore) -> None:
    with store.create("demo") as session:
        talk(session)
        assert store.read("colours")[1] == session.conversation


def test_a_private_session_asks_the_same_and_leaves_nothing(
    store: SessionStore, tmp_path: Path
) -> None:
    with NullStore().create("demo") as private, store.create("demo") as session:
        talk(private)
        before = kept(tmp_path)
        assert before == []
        talk(session)
        ours, theirs = asked(private), asked(session)
        assert not private.is_saved
        assert [m.text for m in ours.messages] == [m.text for m in theirs.messages]
    from idefics_cli.images.loader import ImageLoader

    loader = ImageLoader(ImageLimits())
    assert [loader.open(a).tobytes() for a in ours.attachments] == [
        loader.open(a).tobytes() for a in theirs.attachments
    ]


def test_a_private_session_can_go_on_with_a_kept_one(store: SessionStore, tmp_path: Path) -> None:
    with store.create("demo") as session:
        talk(session)
        expected = asked(session)
    files = {path: path.read_bytes() for path in kept(tmp_path)}
    with NullStore().create("demo", start=store.read("last")[1]) as private:
        assert asked(private) == expected
        private.ask("and then?")
        private.reply("secret", "stop")
    assert {path: path.read_bytes() for path in kept(tmp_path)} == files


def test_every_change_is_on_disk_when_the_method_returns(store: SessionStore) -> None:
    with store.create("demo", "n") as session:
        session.ask("a?", [staged("red")])
        assert store.read("n")[1].pending == session.conversation.pending
        session.reply("A.", "stop")
        assert store.read("n")[1] == session.conversation


def test_a_session_without_a_question_leaves_nothing(store: SessionStore, tmp_path: Path) -> None:
    with store.create("demo") as session:
        session.set_system("Be brief.")
        session.set("seed", 1)
    assert kept(tmp_path) == []


def test_what_was_set_before_the_first_question_is_kept_with_it(store: SessionStore) -> None:
    with store.create("demo", system="old", settings={"top_k": 2}) as session:
        session.set_system("Be brief.")
        session.set("seed", 1)
        session.ask("a?")
    conversation = store.read("last")[1]
    assert (conversation.system, conversation.settings) == ("Be brief.", {"top_k": 2, "seed": 1})


def test_the_file_only_grows(store: SessionStore, tmp_path: Path) -> None:
    with store.create("demo", "n") as session:
        (path,) = (tmp_path / "data" / "sessions").glob("*.jsonl")
        before = path.read_bytes()
        talk(session)
        session.clear()
        assert path.read_bytes().startswith(before)
        assert b"mistake" in path.read_bytes()
    assert all(isinstance(json.loads(line), dict) for line in path.read_bytes().splitlines())


def test_typed_loaded_and_asked_at_once_give_the_same_tokens(
    store: SessionStore, tmp_path: Path
) -> None:
    from idefics_cli.demo.samples import write_samples
    from idefics_cli.engine.local.engine import LocalEngine

    write_samples(tmp_path / "scenes", count=2, seed=3)
    photos = sorted((tmp_path / "scenes").glob("*.png"))
    told = [
        (photos[0], "Describe this image."),
        (None, "How many shapes are there?"),
        (photos[1], "How many shapes are in [2]?"),
    ]
    spec = LoadSpec(repo="demo", family="idefics2", name="demo")
    with LocalEngine(spec) as engine, store.create("demo") as session:

        def answer(request: GenerationRequest) -> Completion:
            return engine.complete([engine.prepare(request)])[0]

        messages: list[Message] = []
        for photo, text in told:
            pictures = [] if photo is None else [stage(photo)]
            # Turn by turn, each time from disk.
            session.ask(text, pictures)
            session.close()
            session = store.open("last")
            typed = answer(session.conversation.request(GREEDY))
            # The same messages, put together by hand from the files of the user.
            parts = () if photo is None else (Attachment(str(photo)),)
            words = text.replace("[2]", "the second image")
            messages.append(Message("user", (*parts, words)))
            at_once = answer(GenerationRequest(tuple(messages), GREEDY))
            assert typed.token_ids == at_once.token_ids
            assert typed.prompt_tokens == at_once.prompt_tokens
            session.reply(typed.text, typed.finish)
            messages.append(Message("assistant", (typed.text,)))
        session.close()


# A sudden end


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
        assert [(s.data, s.width) for s in session.restage(turn)] == [(png("red"), 8)]
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
    for _ in range(20):
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
    assert completed >= 20


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
    session.set("seed", 1)
    monkeypatch.setattr(SessionJournal, "append", interrupted)
    steps = [
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


# Two terminals

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


# Pictures


def test_a_moved_photo_is_still_there(store: SessionStore, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(png("red"))
    with store.create("demo") as session:
        session.ask("a?", [stage(photo)])
        session.reply("A.", "stop")
        before = asked(session)
    photo.unlink()
    with store.open("last") as session:
        assert asked(session) == before
        assert session.conversation.missing == ()
        assert pixels(before) == [png("red")]


def test_on_another_machine_the_prompt_is_the_same(store: SessionStore, tmp_path: Path) -> None:
    with store.create("demo") as session:
        talk(session)
        here = asked(session)
    elsewhere = tmp_path / "elsewhere" / "idefics"
    shutil.move(tmp_path / "data", elsewhere)
    with SessionStore(elsewhere).open("colours") as session:
        there = asked(session)
    assert [m.text for m in there.messages] == [m.text for m in here.messages]
    assert pixels(there) == [png("blue")]
    assert [Path(a.source).name for a in there.attachments] == [
        Path(a.source).name for a in here.attachments
    ]


def test_a_dropped_picture_is_not_asked_again(store: SessionStore) -> None:
    with store.create("demo") as session:
        session.ask("both?", [staged("red"), staged("blue")])
        session.drop(1)
        assert [s.data for s in session.restage(session.roll_back())] == [png("blue")]


def test_one_picture_is_kept_once(store: SessionStore) -> None:
    for name in ("one", "two"):
        with store.create("demo", name) as session:
            session.ask("a?", [staged("red"), staged("red")])
            session.roll_back()
            session.ask("a?", [staged("red")])
    assert [p.read_bytes() for p in store.pictures.path.iterdir()] == [png("red")]


def test_a_missing_picture_is_named_and_not_fatal(store: SessionStore) -> None:
    with store.create("demo") as session:
        session.ask("both?", [staged("red"), staged("blue")])
        session.reply("Both.", "stop")
        Path(session.conversation.pictures[0].attachment.source).unlink()
    with store.open("last") as session:
        assert [picture.number for picture in session.conversation.missing] == [1]
        assert pixels(asked(session)) == [png("blue")]
        assert session.restage(session.undo()) == (
            StagedPicture(shown_source("blue.png"), png("blue"), 8, 6),
        )


def test_a_missing_copy_is_made_again_from_the_same_photo_only(
    store: SessionStore, tmp_path: Path
) -> None:
    photo = tmp_path / "photo.png"
    photo.write_bytes(png("red"))
    with store.create("demo") as session:
        session.ask("a?", [stage(photo)])
        session.reply("A.", "stop")
        copy = Path(session.conversation.pictures[0].attachment.source)
    copy.unlink()
    photo.write_bytes(png("blue"))
    with store.open("last") as session:
        assert len(session.conversation.missing) == 1
    photo.write_bytes(png("red"))
    with store.open("last") as session:
        assert session.conversation.missing == ()
    assert copy.read_bytes() == png("red")


@pytest.mark.parametrize("name", ["../../secret.png", "/etc/passwd", "a" * 64, "A" * 64 + ".png"])
def test_a_session_cannot_name_files_outside(
    store: SessionStore, tmp_path: Path, name: str
) -> None:
    with store.create("demo") as session:
        session.ask("a?", [staged("red")])
    (path,) = (tmp_path / "data" / "sessions").glob("*.jsonl")
    (copy,) = store.pictures.path.iterdir()
    path.write_text(path.read_text().replace(copy.name, name))
    with pytest.raises(SessionError, match="line 2 is damaged"):
        store.open(path.stem)


@POSIX
def test_everything_is_for_its_owner_only(store: SessionStore, tmp_path: Path) -> None:
    with store.create("demo") as session:
        session.ask("a?", [staged("red")])
        modes = {path: stat.S_IMODE(path.stat().st_mode) for path in kept(tmp_path)}
        assert len(modes) == 3
        assert set(modes.values()) == {0o600}
    folders = [path for path in (tmp_path / "data").rglob("*") if path.is_dir()]
    assert len(folders) == 2
    assert {stat.S_IMODE(p.stat().st_mode) for p in [tmp_path / "data", *folders]} == {0o700}


@pytest.mark.parametrize(
    ("file_format", "suffix"),
    [("PNG", ".png"), ("JPEG", ".jpg"), ("TIFF", ".tif"), ("GIF", ".gif")],
)
def test_a_picture_is_staged_with_its_very_bytes(
    tmp_path: Path, file_format: str, suffix: str
) -> None:
    photo = tmp_path / "x.dat"
    photo.write_bytes(png("red", file_format=file_format))
    found = stage(photo)
    assert (found.data, found.width, found.height) == (photo.read_bytes(), 8, 6)
    assert found.suffix == suffix
    with photo.open("rb") as stdin:
        assert PictureOpener(ImageLimits(), offline=True, stdin=stdin).stage("-").data == found.data


def test_what_is_no_picture_is_refused_when_it_is_staged(tmp_path: Path) -> None:
    (tmp_path / "x.png").write_bytes(png("red")[:40])
    with pytest.raises(ImageError, match=r"x\.png"):
        stage(tmp_path / "x.png")
    with pytest.raises(ImageError, match="no such file"):
        stage(tmp_path / "y.png")


def test_names_of_pictures_hold_no_passwords_and_no_data(tmp_path: Path) -> None:
    assert shown_source("https://me:secret@host/a.png") == "https://…@host/a.png"
    assert shown_source("data:image/png;base64,AAAA").startswith("data:image/png;base64,…")
    assert shown_source("-") == "stdin"
    assert Path(shown_source("a.png")).is_absolute()


# Which session


def make(store: SessionStore, *names: str | None) -> list[str]:
    ids = []
    for name in names:
        with store.create("demo", name) as session:
            session.ask(f"question of {name}")
            session.reply("A.", "stop")
        ids.append(session.id)
    return ids


def test_a_session_is_found_by_id_name_prefix_and_last(store: SessionStore) -> None:
    first, second = make(store, "holiday", None)
    assert store.find(first) == store.find("holiday") == first
    assert store.find("last") == second
    assert store.find(second[:7]) == second
    with store.open("holiday") as session:
        session.ask("more")
    assert store.find("last") == first


def test_an_unknown_or_ambiguous_key_is_an_error(store: SessionStore) -> None:
    with pytest.raises(SessionError, match="there are no sessions yet"):
        store.find("last")
    make(store, *[None] * 40)  # more than letters and digits: two ids begin with the same
    starts = [info.id[0] for info in store.list()]
    twice = next(letter for letter in starts if starts.count(letter) > 1)
    with pytest.raises(SessionError, match="is the beginning of"):
        store.find(twice)
    for key in ("", "none", "../x"):
        with pytest.raises(SessionError, match="no session"):
            store.find(key)


def test_a_name_belongs_to_one_session(store: SessionStore) -> None:
    first, second = make(store, "one", "two")
    with pytest.raises(UsageError, match=f"session {first} has the name `one`"):
        store.create("demo", "one")
    with store.open(second) as session:
        with pytest.raises(UsageError, match="has the name"):
            session.rename("one")
        session.rename("two")
        session.rename(None)
    make(store, "two")
    for bad in ("", " ", "last", "a\nb", "x" * 81, "\x1b[2J"):
        with pytest.raises(UsageError):
            store.create("demo", bad)
        with pytest.raises(UsageError):
            NullStore().create("demo", bad)


def test_the_list_has_the_last_changed_first(store: SessionStore) -> None:
    make(store, "one", "two", None)
    with store.open("one") as session:
        session.ask("picture?", [staged("red")])
    infos = store.list()
    assert [info.title for info in infos] == ["one", "question of None", "two"]
    assert [(info.turns, info.pictures) for info in infos] == [(1, 1), (1, 0), (1, 0)]
    assert all(info.created < info.updated for info in infos)


def test_removing_a_session_leaves_the_pictures_of_others(
    store: SessionStore, tmp_path: Path
) -> None:
    for name, colors in (("one", ["red", "blue"]), ("two", ["blue", "green"])):
        with store.create("demo", name) as session:
            session.ask("a?", [staged(color) for color in colors])
            session.undo()
    (store.pictures.path / "left.part").write_bytes(b"of a killed process")
    before = sum(path.stat().st_size for path in kept(tmp_path))
    assert store.remove(["one"], dry_run=True) > 0
    assert sum(path.stat().st_size for path in kept(tmp_path)) == before
    freed = store.remove(["one"])
    assert freed == before - sum(path.stat().st_size for path in kept(tmp_path))
    assert {p.read_bytes() for p in store.pictures.path.iterdir()} == {png("blue"), png("green")}
    store.remove(["two"])
    assert kept(tmp_path) == []


def test_removing_is_all_or_nothing(store: SessionStore) -> None:
    make(store, "one", "two")
    with pytest.raises(SessionError, match="no session `none`"):
        store.remove(["one", "none"])
    with store.open("two"), pytest.raises(HeldElsewhereError):
        store.remove(["one", "two"])
    assert len(store.list()) == 2


# Files that are not as they should be

DAMAGE: dict[str, tuple[Callable[[list[bytes]], list[bytes]], str]] = {
    "a line that is no JSON": (lambda lines: [lines[0], b"{", *lines[1:]], "line 2 is damaged"),
    "a line that is no event": (lambda lines: [*lines, b"[]"], "line 4 is damaged"),
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
        "it is of a later version: it has format 2, and this version reads 1",
    ),
    "a later event": (
        lambda lines: [*lines, b'{"event":"sung"}'],
        "it is of a later version: it has an unknown event `sung`",
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
