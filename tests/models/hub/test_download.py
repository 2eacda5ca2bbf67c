"""Downloads of models from a Hub of our own, whole, interrupted and refused."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from idefics_cli.core.errors import ModelError
from idefics_cli.models.hub import download
from idefics_cli.models.hub.cache import cached_folder
from idefics_cli.models.hub.download import fetch_small_files, pull, weight_bytes_on_hub
from tests.support import checkpoints
from tests.support.hub import COMMIT, FakeHub, empty_cache, online

REPO = "somebody/tiny"


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache."""
    return empty_cache(tmp_path / "hub", monkeypatch)


@pytest.fixture
def hub(root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A Hub with one model."""
    with online(FakeHub({REPO: checkpoints.sharded(checkpoints.files())}), monkeypatch) as server:
        yield server


def failure(repo: str = REPO, revision: str | None = None, *, offline: bool = False) -> ModelError:
    with pytest.raises(ModelError) as caught:
        pull(repo, revision, offline=offline)
    assert caught.value.exit_code == 1
    return caught.value


def test_a_pulled_model_is_the_one_on_the_hub(hub: FakeHub) -> None:
    hub.repos[REPO] |= {
        "pytorch_model.bin": b"not needed",
        "onnx/model.json": b"{}",
        "README.md": b"words",
        "chat_template.jinja": b"template",
    }
    shares: list[float | None] = []
    folder = pull(REPO, report=lambda phase, share: shares.append(share))
    assert folder == cached_folder(REPO)
    assert folder.name == COMMIT
    wanted = set(hub.repos[REPO]) - {"pytorch_model.bin", "onnx/model.json", "README.md"}
    assert {path.name for path in folder.iterdir()} == wanted
    for name in wanted:
        assert (folder / name).read_bytes() == hub.repos[REPO][name]
    # Several threads count, so the last report may lack a few bytes.
    assert max(share or 0 for share in shares) == pytest.approx(1, abs=0.05)


def test_a_second_pull_downloads_nothing(hub: FakeHub) -> None:
    folder = pull(REPO)
    hub.requests.clear()
    assert pull(REPO) == folder
    assert not any("/resolve/" in line and line.startswith("GET") for line in hub.requests)


def test_an_interrupted_pull_goes_on_with_what_is_missing(hub: FakeHub) -> None:
    first, second = sorted(name for name in hub.repos[REPO] if name.endswith(".safetensors"))
    content = hub.repos[REPO].pop(second)
    # The index names a part that the Hub does not have yet.
    assert "has no model-00002" in str(failure())
    assert cached_folder(REPO) is None
    # The Hub's next commit has it.
    hub.repos[REPO][second] = content
    hub.commit = "f" * 40
    assert pull(REPO) == cached_folder(REPO)
    assert hub.downloads(first) == 1
    assert hub.downloads(second) == 1


def test_after_a_broken_connection_the_file_is_whole(hub: FakeHub) -> None:
    hub.repos[REPO]["tokenizer.json"] = b'{"x": "' + b"y" * 100_000 + b'"}'
    hub.cut["tokenizer.json"] = 50_000
    # Newer clients try again by themselves; with older ones the next pull continues.
    with contextlib.suppress(ModelError):
        pull(REPO)
    folder = pull(REPO)
    assert (folder / "tokenizer.json").read_bytes() == hub.repos[REPO]["tokenizer.json"]
    assert hub.downloads("tokenizer.json") == 2


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_does_not_wait_for_the_current_file(hub: FakeHub) -> None:
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
            pull(REPO)
        assert time.monotonic() - started < 10
    finally:
        hub.held[name].set()
    folder = pull(REPO)
    assert (folder / name).read_bytes() == hub.repos[REPO][name]


def test_offline_a_cached_model_is_enough_and_another_is_an_error(hub: FakeHub) -> None:
    folder = pull(REPO)
    hub.requests.clear()
    assert pull(REPO, offline=True) == folder
    error = failure("somebody/else", offline=True)
    assert not hub.requests
    assert "`somebody/else` is not in the cache" in str(error)
    assert "models pull somebody/else" in str(error.hint)
    assert "`-m demo` is built in" in str(error.hint)


def test_a_known_model_is_named_by_its_alias_too(hub: FakeHub) -> None:
    error = failure("HuggingFaceTB/SmolVLM-500M-Instruct", offline=True)
    named = "`smolvlm-500m` (HuggingFaceTB/SmolVLM-500M-Instruct) is not in the cache"
    assert str(error).startswith(named)
    assert "`idefics models pull smolvlm-500m`" in str(error.hint)


def test_the_offline_variable_counts(hub: FakeHub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "network is switched off" in str(failure())
    assert not hub.requests


def test_a_model_that_does_not_exist_is_an_error(hub: FakeHub) -> None:
    error = failure("somebody/else")
    assert str(error) == "there is no public model `somebody/else` on the Hugging Face Hub"
    assert "HF_TOKEN" in str(error.hint)


def test_a_revision_that_does_not_exist_is_an_error(hub: FakeHub) -> None:
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
    # No server listens on this port.
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    error = failure()
    assert f"`{REPO}` is not in the cache" in str(error)
    assert constants.HF_HUB_CACHE in str(error)
    assert "http://127.0.0.1:9 cannot be reached" in str(error)
    assert "`-m demo` is built in" in str(error.hint)


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


def test_a_full_disk_is_an_error_before_any_download(
    hub: FakeHub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "free_bytes", lambda folder: 1000)
    error = failure()
    assert "of disk space" in str(error)
    assert "HF_HOME" in str(error.hint)
    assert not any("/resolve/" in line and line.startswith("GET") for line in hub.requests)


def test_a_cache_that_cannot_be_written_is_an_error(hub: FakeHub, root: Path) -> None:
    root.write_text("a file where the folder should be")
    assert "cannot write to the cache" in str(failure())


@pytest.mark.parametrize("name", ["a/b/c", "-/x", "a b/c", "a/.."])
def test_a_name_that_is_not_a_hub_id_is_an_error(hub: FakeHub, name: str) -> None:
    assert isinstance(failure(name), ModelError)


def test_small_files_come_without_the_weights(hub: FakeHub) -> None:
    folder = fetch_small_files(REPO)
    assert {path.suffix for path in folder.iterdir()} == {".json"}
    assert cached_folder(REPO) is None
    assert weight_bytes_on_hub(REPO) == sum(
        len(content) for name, content in hub.repos[REPO].items() if name.endswith(".safetensors")
    )
