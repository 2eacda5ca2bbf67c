"""Sessions on disk, filled with turns and pictures."""

from __future__ import annotations

import io
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.chat.attachments import PictureOpener, StagedPicture
from idefics_cli.chat.store.sessions import OpenSession, SessionStore
from idefics_cli.core.types import (
    GenerationRequest,
    ImageLimits,
    Sampling,
)

GREEDY = Sampling()
POSIX = pytest.mark.skipif(os.name == "nt", reason="POSIX file modes")


class MinuteClock:
    """A clock that moves on by a minute at every call."""

    def __init__(self) -> None:
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self) -> datetime:
        self.now += timedelta(minutes=1)
        return self.now


def png(color: str, *, file_format: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), color).save(buffer, file_format)
    return buffer.getvalue()


def stage(path: Path) -> StagedPicture:
    return PictureOpener(ImageLimits(), offline=True).stage(str(path))


def staged(color: str) -> StagedPicture:
    return StagedPicture(f"{color}.png", png(color), 8, 6)


def asked(session: OpenSession, text: str = "and then?") -> GenerationRequest:
    """Return the request for the next question."""
    return session.conversation.asked(text).request(GREEDY)


def pixels(request: GenerationRequest) -> list[bytes]:
    return [Path(attachment.source).read_bytes() for attachment in request.attachments]


def kept(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "data").rglob("*") if path.is_file())


def talk(session: OpenSession) -> None:
    """Change the conversation in every possible way at least once."""
    session.set_setting("temperature", 0.25)
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
    session.set_setting("temperature", None)
    session.set_setting("top_k", 4)
    session.rename("colours")
    session.forget(1)


def make(store: SessionStore, *names: str | None) -> list[str]:
    ids = []
    for name in names:
        with store.create("demo", name) as session:
            session.ask(f"question of {name}")
            session.reply("A.", "stop")
        ids.append(session.id)
    return ids
