"""The name of a file from a folder is that of `os.path.relpath`, in a tenth of the time."""

from __future__ import annotations

import os
from itertools import product
from pathlib import Path

import pytest

from idefics_cli.core.paths import relative_file

PATHS = (
    *("a.jpg", "photos/a.jpg", "photos/../a.jpg", "./a.jpg", "../a.jpg", "../../b/a.jpg"),
    *("/a.jpg", "/data/x/a.jpg", "//data/a.jpg", "photos//a.jpg", "photos/deep/a.jpg", "..a.jpg"),
    *("photos/..", "photos/.", "photos/", "a b/ü.jpg", ".hidden/.jpg"),
)
FOLDERS = (".", "photos", "photos/deep", "other", "..", "/", "/data", "/data/x/y", "a b", "../b")


def test_it_is_what_the_library_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for here in (tmp_path, tmp_path / "photos", Path("/")):
        here.mkdir(exist_ok=True)
        monkeypatch.chdir(here)
        for path, folder in product(PATHS, FOLDERS):
            assert relative_file(path, folder) == os.path.relpath(path, folder), (path, folder)
