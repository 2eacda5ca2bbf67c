"""Downloads from the Hugging Face Hub into its cache."""

from __future__ import annotations

import io
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from idefics_cli.core.errors import ModelError
from idefics_cli.core.paths import display_path, free_bytes
from idefics_cli.core.threads import in_background
from idefics_cli.core.types import Progress
from idefics_cli.core.units import format_size
from idefics_cli.models.hub.cache import (
    cache_root,
    cached_folder,
    is_offline,
    missing_files,
    snapshot,
)
from idefics_cli.models.hub.errors import hub_errors, no_safetensors, not_cached
from idefics_cli.models.hub.progress import Transfer

# Only safetensors weights are downloaded. A repository may also hold them in other formats.
_WEIGHTS = "*.safetensors"
_SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
# Sub-folders hold exports (onnx) and original formats.
_NOT_NEEDED = ("*/*",)
# A download leaves this much disk space free for other programs.
_SPARE_BYTES = 2**28


def pull(
    repo: str,
    revision: str | None = None,
    *,
    offline: bool = False,
    report: Progress | None = None,
) -> Path:
    """Download the missing files of a model into the cache, and return its folder.

    If an earlier download was interrupted, it is continued.

    Args:
        repo: Hub id.
        revision: Branch, tag or commit; None is `main`.
        offline: Whether to use only the cache, without the network.
        report: Called with the progress, from several threads.

    Raises:
        ModelError: If the model does not exist, access is refused, the Hub is unreachable, the
            disk is full, or the repository has no safetensors weights.
    """
    if offline or is_offline():
        cached = cached_folder(repo, revision)
        if cached is None:
            raise not_cached(repo, revision)
        return cached
    with hub_errors(repo, revision):
        folder = _download_missing(repo, revision, report)
    missing = missing_files(folder)
    if missing:
        raise ModelError(
            f"the repository of `{repo}` has no {', '.join(missing)}",
            hint="`idefics models` lists models that work",
        )
    return folder


def fetch_small_files(repo: str, revision: str | None = None) -> Path:
    """Return the snapshot folder of *repo*, with at least all files except the weights.

    Missing small files are downloaded.

    Raises:
        ModelError: See `pull`.
    """
    folder = snapshot(repo, revision)
    if folder is not None and not missing_files(folder):
        return folder
    if is_offline():
        if folder is not None and (folder / "config.json").exists():
            return folder
        raise not_cached(repo, revision)
    with hub_errors(repo, revision):
        return _download(repo, revision, _SMALL_FILES, _bar(None, 0))


def fetch_adapter(repo: str) -> Path:
    """Download the adapter *repo* into the cache, and return its folder.

    Raises:
        ModelError: See `pull`.
    """
    with hub_errors(repo, None):
        return _download(
            repo, None, ("adapter_*.json", "adapter_*.safetensors", "idefics.json"), _bar(None, 0)
        )


def weight_bytes_on_hub(repo: str, revision: str | None = None) -> int | None:
    """Return the size in bytes of the safetensors files of *repo*; None if the Hub states none."""
    from huggingface_hub import HfApi

    try:
        with hub_errors(repo, revision):
            info = HfApi().model_info(repo, revision=revision, files_metadata=True)
    except ModelError:
        return None
    sizes = [
        file.size
        for file in info.siblings or ()
        if file.rfilename.endswith(".safetensors") and "/" not in file.rfilename
    ]
    return sum(size for size in sizes if size is not None) if sizes else None


def check_space(repo: str, needed_bytes: int) -> None:
    """Check that *needed_bytes* of *repo* fit on the disk of the cache and leave some space free.

    Raises:
        ModelError: If the space is too small.
    """
    root = cache_root()
    free = free_bytes(root)
    if free is not None and needed_bytes + _SPARE_BYTES > free:
        raise ModelError(
            f"`{repo}` needs {format_size(needed_bytes)} of disk space, and {format_size(free)} "
            f"are free in {display_path(root)}",
            hint="free some space, or move the cache: HF_HOME=/some/larger/disk",
        )


@dataclass(frozen=True, slots=True)
class _HubFile:
    name: str
    size_bytes: int
    is_missing: bool


def _download_missing(repo: str, revision: str | None, report: Progress | None) -> Path:
    patterns = (_WEIGHTS, *_SMALL_FILES)
    files = _files(repo, revision, patterns)
    if not any(file.name.endswith(".safetensors") for file in files):
        raise no_safetensors(repo)
    needed_bytes = sum(file.size_bytes for file in files if file.is_missing)
    check_space(repo, needed_bytes)
    stopped = Event()
    bar = _bar(_cancelling(stopped, report), needed_bytes)
    try:
        # The download runs in a background thread, because on Ctrl-C the Hub client would first
        # finish the files that it has begun.
        return in_background(
            lambda: _download(repo, revision, patterns, bar), name="model-download"
        ).result()
    finally:
        stopped.set()


def _files(repo: str, revision: str | None, patterns: tuple[str, ...]) -> list[_HubFile]:
    from huggingface_hub import snapshot_download

    files = snapshot_download(
        repo,
        revision=revision,
        allow_patterns=list(patterns),
        ignore_patterns=list(_NOT_NEEDED),
        tqdm_class=_bar(None, 0),
        dry_run=True,
    )
    return [_HubFile(f.filename, f.file_size or 0, f.will_download) for f in files]


def _download(repo: str, revision: str | None, patterns: tuple[str, ...], bar: type[Any]) -> Path:
    from huggingface_hub import snapshot_download

    return Path(
        snapshot_download(
            repo,
            revision=revision,
            allow_patterns=list(patterns),
            ignore_patterns=list(_NOT_NEEDED),
            tqdm_class=bar,
        )
    )


def _cancelling(stopped: Event, report: Progress | None) -> Progress:
    """Return a callback for the progress: it calls *report*, or cancels once *stopped* is set."""

    def pass_on(phase: str, share: float | None) -> None:
        if stopped.is_set():
            raise CancelledError
        if report is not None:
            report(phase, share)

    return pass_on


# Any: tqdm has no types.
def _bar(report: Progress | None, total_bytes: int) -> type[Any]:
    """Return a class of progress bars for the Hub client that draw nothing and call *report*."""
    from tqdm import tqdm  # type: ignore[import-untyped]  # a dependency of the Hub client

    transfer = Transfer(total_bytes)

    class Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
        monitor_interval = 0  # starts no monitor thread

        # Any: the arguments of tqdm and of the client's subclass of it.
        def __init__(self, *arguments: Any, **options: Any) -> None:
            options.pop("name", None)
            # A disabled bar of tqdm would not count the bytes.
            options.update(disable=False, file=io.StringIO())
            super().__init__(*arguments, **options)

        def update(self, n: float | None = 1) -> None:
            super().update(n)
            # The client also has a bar that counts files, whose unit is not "B".
            if report is not None and self.unit == "B" and total_bytes:
                report(transfer.describe(int(self.n)), min(1.0, self.n / total_bytes))

    return Bar
