"""`write_samples` writes unseen scenes and true metadata, and overwrites no other file."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.core.errors import IdeficsError, UsageError
from idefics_cli.demo.drawing import render
from idefics_cli.demo.samples import METADATA, write_samples
from idefics_cli.demo.scenes import caption, scene_for_split


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "samples"
    path.mkdir()
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_the_metadata_is_what_the_call_returns_and_true_of_the_scenes(folder: Path) -> None:
    samples = write_samples(folder, count=6, seed=3)
    rows = [json.loads(line) for line in (folder / METADATA).read_text().splitlines()]

    assert [row["file_name"] for row in rows] == [f"scene-00{i}.png" for i in range(6)]
    for index, (sample, row) in enumerate(zip(samples, rows, strict=True)):
        scene = scene_for_split("combo", 4_000_000 + index)
        facts = {q["task"]: q["answer"] for q in row["questions"]}
        with Image.open(folder / row["file_name"]) as image:
            assert image.tobytes() == render(scene).tobytes()
        assert row["caption"] == sample.caption == caption(scene)
        assert facts["background"] == f"{scene.background.capitalize()}."
        assert facts["count"] == ("Zero.", "One.", "Two.", "Three.")[len(scene.objects)]
        assert [q["question"] for q in row["questions"]] == [q.question for q in sample.questions]
        assert set(row) == {"file_name", "caption", "questions"}


def test_samples_are_scenes_that_training_never_showed(folder: Path) -> None:
    captions = {sample.caption for sample in write_samples(folder, count=40, seed=0)}
    trained = {caption(scene_for_split("train", i)) for i in range(3000)}
    watched = {caption(scene_for_split("combo", i)) for i in range(3000)}

    assert not captions & trained
    assert captions & watched


def test_the_same_call_in_another_folder_writes_the_same_bytes(tmp_path: Path) -> None:
    write_samples(tmp_path / "a", count=5, seed=1)
    write_samples(tmp_path / "b", count=5, seed=1)

    assert contents(tmp_path / "a") == contents(tmp_path / "b")


def test_another_seed_shows_other_scenes(tmp_path: Path) -> None:
    first = write_samples(tmp_path / "a", count=5, seed=1)
    second = write_samples(tmp_path / "b", count=5, seed=2)

    assert [s.caption for s in first] != [s.caption for s in second]


def test_writing_again_changes_no_file(folder: Path) -> None:
    write_samples(folder, count=3, seed=1)
    times = {path: path.stat().st_mtime_ns for path in folder.iterdir()}
    write_samples(folder, count=3, seed=1)

    assert {path: path.stat().st_mtime_ns for path in folder.iterdir()} == times


@pytest.mark.parametrize("name", [METADATA, "scene-001.png"])
@pytest.mark.parametrize("content", [b"", b"mine", b"\x89PNG\r\n\x1a\n"])
def test_a_file_of_someone_else_is_not_overwritten(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)

    with pytest.raises(UsageError, match=name) as caught:
        write_samples(folder, count=2, seed=1)
    assert caught.value.hint
    assert contents(folder) == {name: content}


def test_a_picture_of_another_seed_is_not_overwritten(folder: Path) -> None:
    write_samples(folder, count=2, seed=1)
    before = contents(folder)

    with pytest.raises(UsageError, match="holds other content"):
        write_samples(folder, count=2, seed=2)
    assert contents(folder) == before


def test_a_dangling_link_is_not_written_through(folder: Path) -> None:
    (folder / "scene-000.png").symlink_to(folder / "elsewhere.png")

    with pytest.raises(UsageError):
        write_samples(folder, count=1, seed=1)
    assert not (folder / "elsewhere.png").exists()


def test_other_files_in_the_folder_stay(folder: Path) -> None:
    (folder / "notes.txt").write_text("keep")
    write_samples(folder, count=1, seed=0)

    assert sorted(contents(folder)) == [METADATA, "notes.txt", "scene-000.png"]


def test_a_file_in_the_folders_place_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("x")

    with pytest.raises(UsageError, match="is not a folder"):
        write_samples(path, count=1, seed=0)


def test_a_folder_that_cannot_be_made_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    with pytest.raises(UsageError, match="is not a folder"):
        write_samples(tmp_path / "file" / "below", count=1, seed=0)


@pytest.mark.parametrize(("count", "seed"), [(0, 0), (-1, 0), (100_001, 0), (1, -1)])
def test_numbers_out_of_range_are_usage_errors(tmp_path: Path, count: int, seed: int) -> None:
    with pytest.raises(UsageError):
        write_samples(tmp_path / "new", count=count, seed=seed)
    assert not (tmp_path / "new").exists()


def test_a_write_that_fails_leaves_no_part_and_no_metadata(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Path] = []
    replace = os.replace

    def full_after_one(source: Path, target: Path) -> None:
        if written:
            raise OSError(28, "No space left on device")
        written.append(target)
        replace(source, target)

    monkeypatch.setattr(os, "replace", full_after_one)

    with pytest.raises(IdeficsError, match="No space left on device"):
        write_samples(folder, count=3, seed=0)
    assert sorted(contents(folder)) == ["scene-000.png"]
