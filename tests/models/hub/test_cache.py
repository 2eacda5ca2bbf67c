"""The Hugging Face cache: what counts as complete, and downloads from a Hub of our own."""

from __future__ import annotations

import contextlib
import importlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import huggingface_hub.constants
import pytest

from idefics_cli.core.errors import ModelError
from idefics_cli.core.paths import display_path
from idefics_cli.models.hub import cache
from tests.support import checkpoints
from tests.support.hub import COMMIT, FakeHub, serve

REPO = "somebody/tiny"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


@pytest.fixture
def hub(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub with one model, and the network switched on."""
    with serve(FakeHub({REPO: checkpoints.sharded(checkpoints.files())})) as server:
        template = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in (
            ("ENDPOINT", server.endpoint),
            ("HUGGINGFACE_CO_URL_TEMPLATE", template),
            ("HF_HUB_OFFLINE", False),
        ):
            monkeypatch.setattr(huggingface_hub.constants, name, value)
        yield server


def failure(repo: str = REPO, revision: str | None = None, *, offline: bool = False) -> ModelError:
    with pytest.raises(ModelError) as caught:
        cache.pull(repo, revision, offline=offline)
    assert caught.value.exit_code == 1
    return caught.value


def test_a_complete_snapshot_is_found_by_branch_and_by_commit(root: Path) -> None:
    folder = checkpoints.put_in_cache(root, REPO, checkpoints.files(), commit="c" * 40)
    assert cache.cached_folder(REPO) == folder
    assert cache.cached_folder(REPO, "main") == folder
    assert cache.cached_folder(REPO, "c" * 40) == folder
    assert cache.cached_folder(REPO, "other") is None
    assert cache.cached_folder("somebody/else") is None


def test_size_and_commit_of_a_cached_model_are_told(root: Path) -> None:
    content = checkpoints.sharded(checkpoints.files())
    checkpoints.put_in_cache(root, REPO, content, commit="c" * 40)
    model = cache.cached_model(REPO)
    assert model is not None
    assert model.commit == "c" * 40
    assert model.size_bytes == sum(map(len, content.values()))


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


def test_a_pulled_model_is_the_one_on_the_hub(hub: FakeHub) -> None:
    hub.repos[REPO] |= {
        "pytorch_model.bin": b"never wanted",
        "onnx/model.json": b"{}",
        "README.md": b"words",
        "chat_template.jinja": b"template",
    }
    told: list[float | None] = []
    folder = cache.pull(REPO, report=lambda phase, share: told.append(share))
    assert folder == cache.cached_folder(REPO)
    assert folder.name == COMMIT
    wanted = set(hub.repos[REPO]) - {"pytorch_model.bin", "onnx/model.json", "README.md"}
    assert {path.name for path in folder.iterdir()} == wanted
    for name in wanted:
        assert (folder / name).read_bytes() == hub.repos[REPO][name]
    # Several threads count, so a last few bytes may be missed.
    assert max(share or 0 for share in told) == pytest.approx(1, abs=0.05)


def test_a_second_pull_downloads_nothing(hub: FakeHub) -> None:
    folder = cache.pull(REPO)
    hub.requests.clear()
    assert cache.pull(REPO) == folder
    assert not any("/resolve/" in line and line.startswith("GET") for line in hub.requests)


def test_an_interrupted_pull_goes_on_with_what_is_missing(hub: FakeHub) -> None:
    first, second = sorted(name for name in hub.repos[REPO] if name.endswith(".safetensors"))
    content = hub.repos[REPO].pop(second)
    # The index names a part that the Hub does not have yet.
    assert "has no model-00002" in str(failure())
    assert cache.cached_folder(REPO) is None
    hub.repos[REPO][second] = content
    # The client keeps the list of a commit's files, which is new here.
    for trees in Path(huggingface_hub.constants.HF_HUB_CACHE).rglob("trees"):
        for path in trees.iterdir():
            path.unlink()
    forget_trees()
    assert cache.pull(REPO) == cache.cached_folder(REPO)
    assert hub.downloads(first) == 1
    assert hub.downloads(second) == 1


def forget_trees() -> None:
    """Empty the client's memory of file lists, which newer versions have."""
    with contextlib.suppress(ImportError):
        importlib.import_module("huggingface_hub._tree_cache")._IN_MEMORY_TREE_CACHE.clear()


def test_after_a_broken_connection_the_file_is_whole(hub: FakeHub) -> None:
    hub.repos[REPO]["tokenizer.json"] = b'{"x": "' + b"y" * 100_000 + b'"}'
    hub.cut["tokenizer.json"] = 50_000
    # The client tries again by itself from some version on; else the next pull goes on.
    with contextlib.suppress(ModelError):
        cache.pull(REPO)
    folder = cache.pull(REPO)
    assert (folder / "tokenizer.json").read_bytes() == hub.repos[REPO]["tokenizer.json"]
    assert hub.downloads("tokenizer.json") == 2


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_does_not_wait_for_the_file_that_is_on_its_way(hub: FakeHub) -> None:
    name = "model-00001-of-00002.safetensors"
    hub.held[name] = threading.Event()

    def press() -> None:
        while not hub.downloads(name):
            time.sleep(0.01)
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    started = time.monotonic()
    try:
        with pytest.raises(KeyboardInterrupt):
            cache.pull(REPO)
        assert time.monotonic() - started < 10
    finally:
        hub.held[name].set()
    folder = cache.pull(REPO)
    assert (folder / name).read_bytes() == hub.repos[REPO][name]


def test_offline_a_cached_model_is_enough_and_another_is_an_error(hub: FakeHub) -> None:
    folder = cache.pull(REPO)
    hub.requests.clear()
    assert cache.pull(REPO, offline=True) == folder
    error = failure("somebody/else", offline=True)
    assert not hub.requests
    assert "`somebody/else` is not in the cache" in str(error)
    assert "models pull somebody/else" in str(error.hint)
    assert "--model demo" in str(error.hint)


def test_the_offline_variable_counts(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    assert "network is switched off" in str(failure())
    assert not hub.requests


def test_a_model_that_does_not_exist_is_told(hub: FakeHub) -> None:
    error = failure("somebody/else")
    assert str(error) == "there is no public model `somebody/else` on the Hugging Face Hub"
    assert "HF_TOKEN" in str(error.hint)


def test_a_revision_that_does_not_exist_is_told(hub: FakeHub) -> None:
    assert str(failure(revision="v9")) == f"`{REPO}` has no revision `v9`"


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ((403, "GatedRepo"), f"`{REPO}` is gated: its authors want to be asked first"),
        ((401, "RepoNotFound"), f"there is no public model `{REPO}` on the Hugging Face Hub"),
        ((404, "RepoNotFound"), f"there is no public model `{REPO}` on the Hugging Face Hub"),
        ((500, ""), "answered 500"),
    ],
)
def test_a_refusal_of_the_hub_is_one_line(
    hub: FakeHub, answer: tuple[int, str], message: str
) -> None:
    hub.refused[REPO] = answer
    error = failure()
    assert message in str(error)
    assert "\n" not in str(error)
    assert error.hint


def test_an_unreachable_hub_names_the_model_the_cache_and_the_demo(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A port that nothing listens on.
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    error = failure()
    assert f"`{REPO}` is not in the cache" in str(error)
    assert huggingface_hub.constants.HF_HUB_CACHE in str(error)
    assert "http://127.0.0.1:9 cannot be reached" in str(error)
    assert "--model demo" in str(error.hint)


def test_a_repository_without_safetensors_is_refused_before_any_download(hub: FakeHub) -> None:
    hub.repos[REPO] = {
        "config.json": b"{}",
        "pytorch_model.bin": b"pickle",
        "tokenizer.json": b"{}",
    }
    error = failure()
    assert "safetensors" in str(error)
    assert "save_pretrained" in str(error.hint)
    assert hub.downloads("pytorch_model.bin") == 0


def test_a_full_disk_is_told_before_any_download(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cache, "free_bytes", lambda folder: 1000)
    error = failure()
    assert "of disk space" in str(error)
    assert "HF_HOME" in str(error.hint)
    assert not any("/resolve/" in line and line.startswith("GET") for line in hub.requests)


def test_a_cache_that_cannot_be_written_is_told(hub: FakeHub, root: Path) -> None:
    root.write_text("a file where the folder should be")
    assert "cannot write to the cache" in str(failure())


@pytest.mark.parametrize("name", ["a/b/c", "-/x", "a b/c", "a/.."])
def test_what_is_no_hub_id_is_told(hub: FakeHub, name: str) -> None:
    assert isinstance(failure(name), ModelError)


def test_small_files_come_without_the_weights(hub: FakeHub) -> None:
    folder = cache.fetch_small_files(REPO)
    assert {path.suffix for path in folder.iterdir()} == {".json"}
    assert cache.cached_folder(REPO) is None
    assert cache.weight_bytes_on_hub(REPO) == sum(
        len(content) for name, content in hub.repos[REPO].items() if name.endswith(".safetensors")
    )


def test_free_space_is_that_of_the_nearest_folder_there_is(tmp_path: Path) -> None:
    assert cache.free_bytes(tmp_path / "not" / "there") == pytest.approx(
        cache.free_bytes(tmp_path), rel=0.01
    )


def test_the_home_folder_is_shown_as_a_tilde(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert display_path(Path("/home/somebody/.cache/hub")) == "~/.cache/hub"
    assert display_path(Path("/data/hub")) == "/data/hub"
