"""Sessions and folders from other people: what a file says, and what removing touches."""

from __future__ import annotations

import base64
import copy
import json
import os
import random
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from idefics_cli.chat.attachments import PictureOpener
from idefics_cli.chat.conversation import Conversation
from idefics_cli.chat.export import FORMATS
from idefics_cli.chat.sampling_settings import with_settings
from idefics_cli.chat.store.sessions import SessionStore
from idefics_cli.core.errors import IdeficsError, ImageError, SessionError
from idefics_cli.core.types import ImageLimits, Sampling
from tests.support.commands import run
from tests.support.json_values import places, replaced
from tests.support.sessions import POSIX, kept, make, png, staged, talk

DIGEST = "a" * 64
AT = "2026-01-01T00:00:00.000+00:00"
EVENTS: list[dict[str, object]] = [
    {"event": "started", "format": 1, "model": "demo", "name": None, "system": None,
     "settings": {"top_k": 3}, "at": AT},
    {"event": "asked", "text": "q",
     "pictures": [{"source": "/x.png", "width": 1, "height": 1, "file": f"{DIGEST}.png"}],
     "at": AT},
    {"event": "replied", "text": "a", "finish": "stop", "model": "demo",
     "sampling": {"temperature": 0.0}, "prompt_tokens": 1, "reused_tokens": 0, "new_tokens": 1,
     "seconds": 0.1, "at": AT},
    {"event": "set", "key": "temperature", "value": 0.5, "at": AT},
    {"event": "dropped", "picture": 1, "at": AT},
    {"event": "changed", "name": "n", "at": AT},
    {"event": "asked", "text": "q2", "pictures": [], "at": AT},
    {"event": "retried", "at": AT},
    {"event": "rolled_back", "at": AT},
    {"event": "replied", "text": "a2", "finish": "length", "at": AT},
    {"event": "edited", "turn": 2, "at": AT},
    {"event": "asked", "text": "q3", "pictures": [], "at": AT},
]  # fmt: skip
VALUES: list[object] = [
    None, True, 0, -1, 1.5, 10**400, 1e308, float("nan"), float("inf"), "", "x", "\x1b]0;T\x07",
    [], [1], {}, {"a": 1}, "0001-01-01T00:00:00+23:59", "9999-12-31T23:59:59-23:59", "2026-01-01",
    "../../etc/passwd", f"{DIGEST}.png", "\ud800", [[]] * 3, 2**63, "9" * 5000,
]  # fmt: skip
LINES = [
    b"[" * 200_000, b"\xff\xfe", b"\0" * 4096, b"{}", b"", b'{"event":"started"}', b"1" * 5000,
    b'{"event":"asked"}', b'{"event":1}', b"null", b'{"event":"set","key":[],"value":1}',
]  # fmt: skip


def write_session(folder: Path, data: bytes, name: str = "aaaaaaaa") -> Path:
    path = folder / "data" / "sessions" / f"{name}.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def lines_of(events: object) -> bytes:
    records = events if isinstance(events, list) else [events]
    text = "".join(json.dumps(record) + "\n" for record in records)
    return text.encode("utf-8", "backslashreplace")


def damaged_sessions(count: int) -> list[bytes]:
    """Return *count* damaged session files, the same at each call."""
    chance = random.Random(7)
    whole = lines_of(EVENTS)
    typed = [(path, value) for path in places(EVENTS) for value in VALUES]
    cases = [
        lines_of(replaced(EVENTS, path, value)) for path, value in chance.sample(typed, count // 2)
    ]
    cases += [line + b"\n" for line in LINES] + [whole + line + b"\n" for line in LINES]
    while len(cases) < count:
        data = bytearray(whole)
        for _ in range(chance.choice([1, 1, 2, 8])):
            data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
        cases.append(bytes(data))
        cases.append(whole[: chance.randrange(len(whole))])
    return cases[:count]


def use_of(store: SessionStore) -> dict[str, Callable[[], object]]:
    """Return every way to use the session `aaaaaaaa`."""

    def read() -> Conversation:
        return store.read("aaaaaaaa")[1]

    def request() -> None:
        conversation = read()
        sampling = with_settings(Sampling(), conversation.settings)
        if conversation.pending is None:
            conversation = conversation.asked("and?")
        conversation.request(sampling, sees_last_only=True)

    exports = {kind: (lambda write=write: write(read())) for kind, write in FORMATS.items()}
    return {"open": lambda: store.open("aaaaaaaa").close(), "request": request, **exports}


def test_a_damaged_session_is_an_error_of_ours_and_hides_no_other(tmp_path: Path) -> None:
    store = SessionStore(tmp_path / "data")
    (good,) = make(store, "good")
    for number, data in enumerate(damaged_sessions(250)):
        write_session(tmp_path, data)
        infos = store.list()
        assert {info.id for info in infos} == {"aaaaaaaa", good}, number
        assert store.find("last") in {"aaaaaaaa", good}
        assert store.find("good") == good
        for use in use_of(store).values():
            with suppress(IdeficsError):
                use()


@pytest.mark.parametrize("number", range(0, 250, 25))
def test_the_commands_take_a_damaged_session(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "home"))
    folder = tmp_path / "home" / "idefics"
    SessionStore(folder)
    (folder / "sessions").mkdir(parents=True)
    (folder / "sessions" / "aaaaaaaa.jsonl").write_bytes(damaged_sessions(250)[number])
    for words in (["list"], ["list", "--json"], ["show", "aaaaaaaa"], ["export", "aaaaaaaa"]):
        done = run("sessions", *words)
        assert done.code in {0, 1}, words
        assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "event",
    [
        {"event": "changed", "name": True},
        {"event": "changed", "system": 1},
        {"event": "set", "key": "temperature", "value": "hot"},
        {"event": "set", "key": "temperature", "value": 10**400},
        {"event": "set", "key": "plain", "value": 3},
        {"event": "edited", "turn": True},
        {"event": "forgot", "turns": 0.5},
    ],
)
def test_a_value_of_another_type_is_damage(tmp_path: Path, event: dict[str, object]) -> None:
    write_session(tmp_path, lines_of([*EVENTS[:3], event]))
    with pytest.raises(SessionError, match="line 4 is damaged"):
        SessionStore(tmp_path / "data").read("aaaaaaaa")


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("temperature", 5, 2.0),
        ("temperature", 1.5, 1.5),
        ("repetition_penalty", 0.01, 0.1),
        ("repetition_penalty", 1e30, 10.0),
        ("top_k", 10**20, 2**31 - 1),
    ],
)
def test_a_number_that_an_earlier_version_took_does_not_make_a_session_unreadable(
    tmp_path: Path, key: str, value: float, expected: float
) -> None:
    event = {"event": "set", "key": key, "value": value}
    write_session(tmp_path, lines_of([*EVENTS[:3], event]))
    assert SessionStore(tmp_path / "data").read("aaaaaaaa")[1].settings[key] == expected


def test_a_date_that_no_time_zone_can_show_is_that_of_the_file(tmp_path: Path) -> None:
    first = {**EVENTS[0], "at": "0001-01-01T00:00:00+23:59"}
    path = write_session(tmp_path, lines_of([first, *EVENTS[1:3]]))
    os.utime(path, (1_700_000_000, 1_700_000_000))
    (info,) = SessionStore(tmp_path / "data").list()
    assert info.problem is None
    assert info.created.timestamp() == 1_700_000_000


@pytest.mark.parametrize("source", ["/etc/hostname", "photo.png", "data:text/plain,x"])
def test_a_saved_session_cannot_hold_a_picture_itself(tmp_path: Path, source: str) -> None:
    picture = {"source": "holiday.jpg", "width": 1, "height": 1, "attachment": source}
    asked = {"event": "asked", "text": "what?", "pictures": [picture | {"digest": ""}]}
    write_session(tmp_path, lines_of([EVENTS[0], asked, EVENTS[2]]))
    with pytest.raises(SessionError, match=r"line 2 is damaged \(asked\)"):
        SessionStore(tmp_path / "data").read("aaaaaaaa")


@pytest.mark.parametrize("kind", sorted(FORMATS))
def test_a_link_in_the_folder_of_pictures_shows_no_other_file(tmp_path: Path, kind: str) -> None:
    secret = tmp_path / "secret.png"
    secret.write_bytes(png("red"))
    write_session(tmp_path, lines_of(EVENTS[:3]))
    store = SessionStore(tmp_path / "data")
    store.pictures.path.mkdir()
    (store.pictures.path / f"{DIGEST}.png").symlink_to(secret)
    conversation = store.read("aaaaaaaa")[1]
    assert base64.b64encode(secret.read_bytes()).decode() not in FORMATS[kind](conversation)
    opener = PictureOpener(ImageLimits(), offline=True)
    with pytest.raises(ImageError, match="its bytes have changed"):
        opener.open_kept(conversation.pictures[0].attachment, 0)


@POSIX
def test_a_pipe_with_the_name_of_a_session_or_picture_does_not_block(tmp_path: Path) -> None:
    write_session(tmp_path, lines_of(EVENTS[:3]))
    store = SessionStore(tmp_path / "data")
    store.pictures.path.mkdir()
    os.mkfifo(store.pictures.path / f"{DIGEST}.png")
    os.mkfifo(tmp_path / "data" / "sessions" / "bbbbbbbb.jsonl")
    problems = {info.id: info.problem for info in store.list()}
    assert problems["aaaaaaaa"] is None
    assert "not a regular file" in (problems["bbbbbbbb"] or "")
    assert "Picture 1" in FORMATS["md"](store.read("aaaaaaaa")[1])


def test_removing_touches_no_file_of_the_user(store: SessionStore, tmp_path: Path) -> None:
    with store.create("demo") as session:
        talk(session)
    mine = {
        store.pictures.path / "my holiday.jpg": b"photo",
        store.pictures.path / "notes.part": b"notes",
        store.pictures.path / f"{DIGEST}.jpg": b"not the picture of this digest",
        tmp_path / "data" / "sessions" / "movie.part": b"half of a movie",
        tmp_path / "data" / "sessions" / "metadata.jsonl": b'{"file_name": "a.png"}\n',
    }
    for path, data in mine.items():
        path.write_bytes(data)
        os.utime(path, (time.time() - 10**6,) * 2)
    store.remove(["colours"])
    assert {path: path.read_bytes() for path in kept(tmp_path)} == mine
    with pytest.raises(SessionError, match="is not a session"):
        store.remove(["metadata"])
    assert {path: path.read_bytes() for path in kept(tmp_path)} == mine


def test_removing_leaves_a_collection_of_pictures_that_the_folder_links_to(
    store: SessionStore, tmp_path: Path
) -> None:
    collection = tmp_path / "Pictures"
    collection.mkdir()
    store.pictures.path.parent.mkdir()
    store.pictures.path.symlink_to(collection)
    # A collection that is named by digests, as ours is.
    other = staged("green")
    (collection / f"{other.digest}.png").write_bytes(other.data)
    (collection / "wedding.jpg").write_bytes(b"photo")
    with store.create("demo", "one") as session:
        session.ask("a?", [staged("red")])
    assert len(list(collection.iterdir())) == 3
    store.remove(["one"])
    assert {path.name for path in collection.iterdir()} == {f"{other.digest}.png", "wedding.jpg"}


@POSIX
def test_pictures_stay_while_another_session_cannot_be_read(
    store: SessionStore, tmp_path: Path
) -> None:
    with store.create("demo", "one") as session:
        session.ask("a?", [staged("red")])
    os.mkfifo(tmp_path / "data" / "sessions" / "bbbbbbbb.jsonl")
    store.remove(["one"])
    assert [path.read_bytes() for path in store.pictures.path.iterdir()] == [png("red")]


@POSIX
def test_a_lock_that_is_a_link_empties_no_file(store: SessionStore, tmp_path: Path) -> None:
    (session_id,) = make(store, "one")
    mine = tmp_path / "thesis.txt"
    mine.write_text("my thesis")
    (tmp_path / "data" / "sessions" / f"{session_id}.lock").symlink_to(mine)
    with pytest.raises(SessionError, match="cannot lock"):
        store.open("one")
    assert mine.read_text() == "my thesis"


def test_a_picture_with_a_hole_after_it_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sparse.png"
    path.write_bytes(png("red"))
    for size, message in ((2 * 10**9, "is larger than 1000000 bytes"), (10**11, "is too large")):
        os.truncate(path, size)
        with pytest.raises(ImageError, match=message):
            PictureOpener(ImageLimits(max_bytes=10**6), offline=True).stage(str(path))


def test_a_session_makes_no_program_read_a_device_or_huge_file(tmp_path: Path) -> None:
    huge = tmp_path / "huge.png"
    huge.touch()
    os.truncate(huge, 10**11)
    for source in (str(huge), "/dev/zero", "/proc/self/mem"):
        asked = copy.deepcopy(EVENTS[1])
        asked["pictures"][0]["source"] = source  # type: ignore[index]  # a list of records
        write_session(tmp_path, lines_of([EVENTS[0], asked, EVENTS[2]]))
        with SessionStore(tmp_path / "data").open("aaaaaaaa") as session:
            assert [picture.number for picture in session.conversation.missing] == [1]
