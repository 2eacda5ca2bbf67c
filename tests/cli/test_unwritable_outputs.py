"""An output that cannot be written is wrong usage, and is named before the machine is probed."""

from __future__ import annotations

import io
import os
import shlex
from pathlib import Path
from typing import Never

import pytest

from idefics_cli.cli.services import Services
from tests.support.commands import run
from tests.support.pictures import encoded, noise

NO_FILES = "/proc" if os.path.isdir("/proc/self") else None
"""A folder in which not even the superuser can make files; None if there is none."""

FILES = (
    "caption a.png -o PLACE/o.jsonl",
    "caption a.png -o PLACE/o.parquet",
    "caption a.png -o PLACE/o.csv --shard 0/2",
    "caption a.png -o PLACE/o.tsv --dry-run",
    "caption a.png --report PLACE/o.html",
    "caption a.png -o o.jsonl --failures PLACE/f.txt",
    "batch requests.jsonl -o PLACE/o.jsonl",
    "batch requests.jsonl -o o.jsonl --failures PLACE/f.jsonl",
    "collect o.jsonl -o PLACE/o.jsonl",
    "bench start --output PLACE/o.json",
    "bench start --plot PLACE/o.png",
)
FOLDERS = (
    "caption a.png -f txt -o PLACE/o",
    "caption a.png -f xmp -o PLACE/o",
    "caption a.tar -f webdataset -o PLACE/o",
    "tune data -o PLACE/o",
    "models merge adapter -o PLACE/o",
    "bench start --shape idefics2-8b --keep-weights PLACE/o",
    "demo PLACE/o",
)


def _no_probe() -> Never:
    raise AssertionError("the machine was probed")


def _run(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Run the command *line*, which must be refused before a plan is made; return the error."""
    monkeypatch.chdir(folder)
    Path("a.png").write_bytes(encoded(noise(), "PNG"))
    Path("data").mkdir()
    Path("data/a.png").write_bytes(encoded(noise(), "PNG"))
    Path("data/a.txt").write_text("a caption", "utf-8")
    Path("requests.jsonl").write_text('{"prompt": "Hi"}\n', "utf-8")
    Path("file").touch()
    before = sorted(os.listdir())
    services = Services(environ={}, stdin=io.BytesIO(), probe=_no_probe)
    ran = run(*shlex.split(line), services=services)
    assert (ran.code, ran.out) == (2, "")
    assert sorted(os.listdir()) == before
    return str(ran.err)


@pytest.mark.parametrize("line", [*FILES, *FOLDERS])
def test_an_output_below_a_file_is_refused(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    err = _run(line.replace("PLACE", "file"), tmp_path, monkeypatch)
    assert err.startswith("error: cannot write ")
    assert "`file` is not a folder\nhint: " in err


@pytest.mark.parametrize("line", FILES)
def test_an_output_in_a_folder_that_is_missing_is_refused(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    err = _run(line.replace("PLACE", "gone"), tmp_path, monkeypatch)
    assert err.endswith("no folder `gone`\nhint: make the folder first\n")


@pytest.mark.parametrize("line", [each for each in (*FILES, *FOLDERS) if "--shard" not in each])
def test_a_link_to_nothing_is_refused(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = next(word for word in line.split() if word.startswith("PLACE/"))[len("PLACE/") :]
    (tmp_path / place).symlink_to("gone")
    err = _run(line.replace("PLACE/", ""), tmp_path, monkeypatch)
    assert err.startswith("error: cannot write ")


@pytest.mark.parametrize("line", [*FILES, *FOLDERS])
def test_a_name_that_is_too_long_is_refused(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    err = _run(line.replace("PLACE/", "x" * 300), tmp_path, monkeypatch)
    assert err.startswith("error: cannot write ")
    assert "too long" in err


@pytest.mark.skipif(NO_FILES is None, reason="needs the folder /proc of Linux")
@pytest.mark.parametrize("line", [*FILES, *FOLDERS])
def test_an_output_in_a_folder_that_takes_no_files_is_refused(
    line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    err = _run(line.replace("PLACE", "/proc"), tmp_path, monkeypatch)
    assert "no file can be made in `/proc` (" in err
    assert err.endswith(")\nhint: choose another folder\n")


@pytest.mark.parametrize(
    ("line", "hint"),
    [
        (
            "caption a.png -o old.jsonl",
            "`--overwrite` replaces it, `--existing append` adds all captions to it, "
            "`--existing skip` those that it lacks; or name another file",
        ),
        ("batch requests.jsonl -o old.jsonl", "`--overwrite` replaces it; or name another file"),
    ],
)
def test_a_file_that_no_run_wrote_is_refused_with_each_way_to_go_on(
    line: str, hint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "old.jsonl").write_text('{"file_name": "a.png", "caption": "mine"}\n', "utf-8")
    err = _run(line, tmp_path, monkeypatch)
    assert err == f"error: `old.jsonl` exists already\nhint: {hint}\n"


@pytest.mark.parametrize("data", ["vacant", "vacant.jsonl"])
def test_data_without_rows_is_told_before_the_machine_is_probed(
    data: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("vacant").mkdir()
    Path("vacant.jsonl").touch()
    services = Services(environ={}, stdin=io.BytesIO(), probe=_no_probe)
    ran = run("tune", data, "-m", "demo", "-o", "adapter", services=services)
    named = {"vacant": "no captions in the folder `vacant`"}
    message = named.get(data, f"`{data}` has no rows to train on")
    assert (ran.code, ran.out, ran.err.splitlines()[0]) == (1, "", f"error: {message}")
    assert not Path("adapter").exists()
