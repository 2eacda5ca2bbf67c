"""Input files and folders that are missing, of the wrong kind, empty or unreadable."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from idefics_cli.core.errors import EXIT_FAILURE
from tests.support.commands import World, run
from tests.support.fakes import FakeEngine
from tests.support.sessions import png

# Each line has INPUT where the file or folder stands.
FILES = {
    "ask --api-key-file": "ask hi --server http://127.0.0.1:9 --api-key-file INPUT",
    "ask --image": "ask hi -i INPUT",
    "ask --example": "ask hi -i a.png --example INPUT=text",
    "ask --examples": "ask hi -i a.png --examples INPUT",
    "ask --schema": "ask hi -i a.png --schema ./INPUT",
    "ask --adapter": "ask hi -i a.png --adapter ./INPUT",
    "batch": "batch INPUT -o out.jsonl",
    "batch --schema": "batch requests.jsonl --schema ./INPUT -o out.jsonl",
    "caption --api-key-file": "caption a.png --server http://127.0.0.1:9 --api-key-file INPUT",
    "caption --examples": "caption a.png --examples INPUT",
    "caption --filelist": "caption --filelist INPUT",
    "caption --prompt-file": "caption a.png --prompt-file INPUT",
    "caption --schema": "caption a.png --schema ./INPUT",
    "caption --tags": "caption a.png --tags INPUT",
    "collect": "collect INPUT -o out.jsonl",
    "doctor --api-key-file": "doctor --server http://127.0.0.1:9 --api-key-file INPUT",
    "models merge": "models merge ./INPUT -o merged",
    "serve --api-key-file": "serve --api-key-file INPUT",
    "tune": "tune INPUT -m demo -o adapter",
}
FOLDERS = {
    "batch --image-folder": "batch requests.jsonl --image-folder INPUT -o out.jsonl",
    "bench caption": "bench caption INPUT -m demo",
    "caption": "caption INPUT",
    "tune": FILES["tune"],
}


def _missing(path: Path) -> None:
    pass


def _loop(path: Path) -> None:
    path.symlink_to(path)


FAULTS: dict[str, Callable[[Path], None]] = {
    "missing": _missing,
    "folder": Path.mkdir,
    "empty": Path.touch,
    "unreadable": _loop,
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_cannot_be_used_is_a_failure(
    name: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "ask --adapter" and fault == "folder":
        pytest.skip("an adapter is a folder; the fake model does not read it")
    FAULTS[fault](tmp_path / "input.jsonl")
    _assert_failure(FILES[name].replace("INPUT", "input.jsonl"), tmp_path, monkeypatch)


@pytest.mark.parametrize("fault", ["missing", "empty", "unreadable"])
@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_that_cannot_be_used_is_a_failure(
    name: str, fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if name == "batch --image-folder" and fault == "empty":
        pytest.skip("a missing picture is an error of its row")
    (Path.mkdir if fault == "empty" else FAULTS[fault])(tmp_path / "input")
    _assert_failure(FOLDERS[name].replace("INPUT", "input"), tmp_path, monkeypatch)


@pytest.mark.parametrize("name", [*FILES, *FOLDERS])
def test_a_name_that_is_too_long_is_a_failure(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = {**FILES, **FOLDERS}[name].replace("INPUT", "input" * 60 + ".jsonl")
    _assert_failure(line, tmp_path, monkeypatch)


def _assert_failure(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    (folder / "a.png").write_bytes(png("red"))
    (folder / "requests.jsonl").write_text('{"prompt": "hi"}\n', "utf-8")
    ran = run(*line.split(), services=World(FakeEngine(), model="demo").services)
    assert (ran.code, ran.out) == (EXIT_FAILURE, "")
    assert ran.err.startswith("error: ")
    assert "input" in ran.err
    assert not (folder / "out.jsonl").exists()
