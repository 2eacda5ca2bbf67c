"""The copies of pictures that sessions keep."""

from __future__ import annotations

import shutil
import stat
from pathlib import Path

import pytest

from idefics_cli.chat.attachments import PictureOpener, StagedPicture
from idefics_cli.chat.store.pictures import shown_source
from idefics_cli.chat.store.sessions import SessionStore
from idefics_cli.core.errors import ImageError, SessionError
from idefics_cli.core.types import (
    ImageLimits,
)
from tests.support.sessions import (
    POSIX,
    asked,
    kept,
    pixels,
    png,
    stage,
    staged,
    talk,
)


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
        assert [s.data for s in session.staged_pictures(session.roll_back())] == [png("blue")]


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
        assert session.staged_pictures(session.undo()) == (
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
