"""The Hugging Face cache: which snapshots are complete."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from idefics_cli.models.hub import cache
from tests.support import checkpoints
from tests.support.hub import empty_cache

REPO = "somebody/tiny"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    return empty_cache(tmp_path / "hub", monkeypatch)


def test_a_complete_snapshot_is_found_by_branch_and_by_commit(root: Path) -> None:
    folder = checkpoints.put_in_cache(root, REPO, checkpoints.files(), commit="c" * 40)
    assert cache.cached_folder(REPO) == folder
    assert cache.cached_folder(REPO, "main") == folder
    assert cache.cached_folder(REPO, "c" * 40) == folder
    assert cache.cached_folder(REPO, "other") is None
    assert cache.cached_folder("somebody/else") is None


def test_the_size_of_a_cached_model_is_that_of_its_files(root: Path) -> None:
    content = checkpoints.sharded(checkpoints.files())
    folder = checkpoints.put_in_cache(root, REPO, content)
    assert cache.size_on_disk(folder) == sum(map(len, content.values()))


@pytest.mark.parametrize(
    "layout", [checkpoints.files, lambda: checkpoints.sharded(checkpoints.files())]
)
def test_a_snapshot_that_lacks_any_needed_file_is_not_complete(root: Path, layout: object) -> None:
    assert callable(layout)
    content: dict[str, bytes] = layout()
    folder = checkpoints.put_in_cache(root, REPO, content)
    assert cache.cached_folder(REPO) == folder
    needed = set(content) - {"tokenizer_config.json"}
    for name in needed:
        data = (folder / name).read_bytes()
        (folder / name).unlink()
        assert cache.cached_folder(REPO) is None, name
        assert len(cache.missing_files(folder)) == 1
        (folder / name).write_bytes(data)
    assert cache.cached_folder(REPO) == folder


def test_a_link_to_a_blob_that_is_gone_counts_as_missing(root: Path) -> None:
    folder = checkpoints.put_in_cache(root, REPO, checkpoints.files())
    (folder / "model.safetensors").unlink()
    os.symlink("../../blobs/gone", folder / "model.safetensors")
    assert cache.missing_files(folder) == ("model.safetensors",)


@pytest.mark.parametrize("text", ["", "\n", "no-such-commit"])
def test_a_damaged_ref_finds_nothing(root: Path, text: str) -> None:
    checkpoints.put_in_cache(root, REPO, checkpoints.files())
    (root / "models--somebody--tiny" / "refs" / "main").write_text(text)
    assert cache.snapshot(REPO) is None
    assert cache.cached_folder(REPO) is None


def test_a_damaged_index_is_not_complete(root: Path) -> None:
    folder = checkpoints.put_in_cache(root, REPO, checkpoints.sharded(checkpoints.files()))
    for text in ("{", "[]", "{}", '{"weight_map": 3}'):
        (folder / cache.INDEX).write_text(text)
        assert cache.missing_files(folder) == (cache.INDEX,)
