"""Fixtures of the chat tests."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.chat.store.sessions import SessionStore
from tests.support.sessions import MinuteClock


@pytest.fixture
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder, with a.png, b.png and `my dog.png`."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for name, size in {"a.png": (8, 6), "b.png": (10, 4), "my dog.png": (5, 5)}.items():
        Image.new("RGB", size, "red").save(folder / name)
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def store(tmp_path: Path) -> SessionStore:
    """An empty store of sessions."""
    return SessionStore(tmp_path / "data", now=MinuteClock())
