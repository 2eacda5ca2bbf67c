"""Folders of the tool, free space, and paths as people read them."""

from __future__ import annotations

from pathlib import Path

import pytest

from idefics_cli.core.paths import display_path, free_bytes


def test_free_space_is_that_of_the_nearest_folder_that_exists(tmp_path: Path) -> None:
    assert free_bytes(tmp_path / "not" / "there") == pytest.approx(free_bytes(tmp_path), rel=0.01)


def test_the_home_folder_is_shown_as_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert display_path(Path("/home/somebody/.cache/hub")) == "~/.cache/hub"
    assert display_path(Path("/data/hub")) == "/data/hub"
