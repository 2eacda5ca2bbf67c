"""The Hugging Face cache: what is in it, how large it is, and how a model gets into it."""

from __future__ import annotations

import io
import json
import os
from collections.abc import Iterator
from concurrent.futures import CancelledError
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Event
from typing import Any

from idefics_cli.core.errors import IdeficsError, ModelError
from idefics_cli.core.paths import display_path, free_bytes
from idefics_cli.core.threads import in_background
from idefics_cli.core.types import Progress
from idefics_cli.core.units import format_size
from idefics_cli.models.hub.progress import Transfer

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# What transformers reads; a repository may also hold the same weights in other formats.
_WEIGHTS = "*.safetensors"
_SMALL_FILES = ("*.json", "*.jinja", "*.model", "*.txt")
# Sub-folders hold exports (onnx) and original formats.
_NOT_NEEDED = ("*/*",)
# Left free on the disk after a download.
_SPARE_BYTES = 2**28


@dataclass(frozen=True, slots=True)
class CachedModel:
    """A complete model in the cache.

    Attributes:
        folder: Its snapshot.
        commit: The commit of the snapshot.
        size_bytes: What its files take on the disk.
    """

    folder: Path
    commit: str
    size_bytes: int


def cache_root() -> Path:
    """Return the cache's folder: `HF_HUB_CACHE`, `HF_HOME`/hub or ~/.cache/huggingface/hub."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def is_offline() -> bool:
    """Tell whether `HF_HUB_OFFLINE` forbids the network."""
    from huggingface_hub import constants

    return bool(constants.HF_HUB_OFFLINE)


def snapshot(repo: str, revision: str | None = None, *, root: Path | None = None) -> Path | None:
    """Return the folder of the cached *revision* of *repo*, complete or not, or None."""
    base = (root or cache_root()) / f"models--{repo.replace('/', '--')}"
    name = revision or "main"
    try:
        commit = (base / "refs" / name).read_text(encoding="utf-8").strip()
    except (OSError, ValueError):
        commit = name
    folder = base / "snapshots" / commit
    # An empty ref would name the folder of all snapshots.
    return folder if commit and folder.is_dir() else None


def cached_folder(
    repo: str, revision: str | None = None, *, root: Path | None = None
) -> Path | None:
    """Return the folder of the cached *revision* of *repo* if nothing of it is missing.

    Args:
        repo: Hub id.
        revision: Branch, tag or commit; None is `main`.
        root: The cache; None is the user's.
    """
    folder = snapshot(repo, revision, root=root)
    return folder if folder is not None and not missing_files(folder) else None


def cached_model(
    repo: str, revision: str | None = None, *, root: Path | None = None
) -> CachedModel | None:
    """Return what is known of the complete cached *revision* of *repo*, or None."""
    folder = cached_folder(repo, revision, root=root)
    if folder is None:
        return None
    return CachedModel(folder, folder.name, size_on_disk(folder))


def missing_files(folder: Path) -> tuple[str, ...]:
    """Return the names of the files that the model in *folder* lacks, in groups of one each.

    The Hub client links a file into a snapshot only when all of it has arrived, so a file that
    is there is whole.
    """
    missing = [] if (folder / "config.json").exists() else ["config.json"]
    missing += missing_weights(folder)
    if not _any(folder, ("tokenizer.json", "tokenizer.model", "vocab.json")):
        missing.append("tokenizer.json")
    if not _any(folder, ("preprocessor_config.json", "processor_config.json")):
        missing.append("preprocessor_config.json")
    return tuple(missing)


def missing_weights(folder: Path) -> list[str]:
    """Return the names of the weight files that *folder* lacks."""
    index = folder / INDEX
    if not index.exists():
        return [] if (folder / SINGLE).exists() else [SINGLE]
    try:
        names = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        return [INDEX]
    return sorted(name for name in names if not (folder / str(name)).exists())


def size_on_disk(folder: Path) -> int:
    """Return the bytes of all files below *folder*, links followed."""
    sizes = []
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            if path.exists():
                sizes.append(path.stat().st_size)
    return sum(sizes)


def pull(
    repo: str,
    revision: str | None = None,
    *,
    offline: bool = False,
    report: Progress | None = None,
) -> Path:
    """Download what is missing of a model into the cache, and return its folder.

    An interrupted download goes on where it stopped.

    Args:
        repo: Hub id.
        revision: Branch, tag or commit; None is `main`.
        offline: Do not reach for the network; what is cached will do.
        report: Told how far it is, from several threads.

    Raises:
        ModelError: If the model is not there, access is refused, the Hub is out of reach, the
            disk is full, or the repository has no safetensors weights.
    """
    if offline or is_offline():
        cached = cached_folder(repo, revision)
        if cached is None:
            raise not_cached(repo, revision)
        return cached
    patterns = (_WEIGHTS, *_SMALL_FILES)
    with hub_errors(repo, revision):
        files = _files(repo, revision, patterns)
        if not any(file.name.endswith(".safetensors") for file in files):
            raise no_safetensors(repo)
        needed = sum(file.size for file in files if file.is_missing)
        check_space(repo, needed)
        stopped = Event()
        bar = _bar(_until(stopped, report), needed)
        try:
            # In another thread: the client answers Ctrl-C by waiting for the files it began.
            folder = in_background(
                lambda: _download(repo, revision, patterns, bar), name="model-download"
            ).result()
        finally:
            stopped.set()
    missing = missing_files(folder)
    if missing:
        raise ModelError(
            f"the repository of `{repo}` has no {', '.join(missing)}",
            hint="`idefics models` lists models that work",
        )
    return folder


def fetch_small_files(repo: str, revision: str | None = None, *, offline: bool = False) -> Path:
    """Return the snapshot of *repo* with all but its weights, downloaded unless cached.

    Raises:
        ModelError: As `pull`.
    """
    folder = snapshot(repo, revision)
    cached = folder is not None and (folder / "config.json").exists()
    if folder is not None and cached and (offline or is_offline() or not missing_files(folder)):
        return folder
    if offline or is_offline():
        raise not_cached(repo, revision)
    with hub_errors(repo, revision):
        return _download(repo, revision, _SMALL_FILES, _bar(None, 0))


def weight_bytes_on_hub(repo: str, revision: str | None = None) -> int | None:
    """Return the bytes of the safetensors files of *repo*; None if the Hub does not say."""
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


def not_cached(repo: str, revision: str | None = None) -> ModelError:
    """Return the error for a model that is not in the cache and cannot be fetched."""
    return ModelError(
        f"`{_named(repo, revision)}` is not in the cache ({display_path(cache_root())}), "
        "and the network is switched off",
        hint="fetch it once with the network: "
        f"`idefics models pull {repo}`; `--model demo` is built in",
    )


def no_safetensors(name: str) -> ModelError:
    """Return the error for weights in a format that is not read."""
    return ModelError(
        f"`{name}` has no weights in the safetensors format",
        hint="pickled `.bin` weights can run code, so they are not read; convert them with "
        "transformers: `from_pretrained(...)`, then `save_pretrained(...)`",
    )


@contextmanager
def hub_errors(repo: str, revision: str | None = None) -> Iterator[None]:
    """Turn what the Hub client raises into a `ModelError`."""
    from huggingface_hub import errors

    # httpx's HTTPError, or that of the fork that the client uses from 2.0 on. OSError covers
    # LocalEntryNotFoundError, the client's word for "unreachable, not cached".
    http_error: type[Exception] = errors.HfHubHTTPError.__bases__[0]
    try:
        yield
    except IdeficsError:
        raise
    except errors.HFValidationError as error:
        raise ModelError(f"`{repo}` is no Hub id", hint="a Hub id is `owner/name`") from error
    except (http_error, OSError) as error:
        raise _refusal(repo, revision, error) from error


def _refusal(repo: str, revision: str | None, error: Exception) -> ModelError:
    from huggingface_hub import errors

    # A dry run hides the Hub's answer behind an error of its own.
    cause = error.__cause__ if isinstance(error, errors.DryRunError) else error
    if isinstance(cause, errors.GatedRepoError):
        return ModelError(
            f"`{repo}` is gated: its authors want to be asked first",
            hint=f"ask on https://huggingface.co/{repo}, then `hf auth login` or set HF_TOKEN",
        )
    if isinstance(cause, errors.RepositoryNotFoundError):
        # The Hub answers 401 for what does not exist and for what is private alike.
        return ModelError(
            f"there is no public model `{repo}` on the Hugging Face Hub",
            hint="check the name; for a private one, `hf auth login` or set HF_TOKEN",
        )
    if isinstance(cause, errors.RevisionNotFoundError):
        return ModelError(
            f"`{repo}` has no revision `{revision or 'main'}`",
            hint=f"https://huggingface.co/{repo}/tree/main lists the branches",
        )
    return _unreachable(repo, revision, cause)


def _unreachable(repo: str, revision: str | None, cause: BaseException | None) -> ModelError:
    from huggingface_hub import constants

    if isinstance(cause, OSError) and cause.errno is not None and cause.filename is not None:
        return ModelError(
            f"cannot write to the cache: {cause.strerror}: {cause.filename}",
            hint="HF_HOME=/some/other/folder moves the cache",
        )
    code = getattr(getattr(cause, "response", None), "status_code", None)
    why = f"answered {code}" if code is not None else "cannot be reached"
    return ModelError(
        f"`{_named(repo, revision)}` is not in the cache ({display_path(cache_root())}), "
        f"and {constants.ENDPOINT} {why}",
        hint="check the network and try again; `--model demo` is built in and needs none",
    )


def check_space(repo: str, needed: int) -> None:
    """Check that *needed* bytes of *repo* have room on the cache's disk, and some is left.

    Raises:
        ModelError: If not.
    """
    root = cache_root()
    free = free_bytes(root)
    if free is not None and needed + _SPARE_BYTES > free:
        raise ModelError(
            f"`{repo}` needs {format_size(needed)} of disk space, and "
            f"{format_size(free)} are free in {display_path(root)}",
            hint="free some space, or move the cache: HF_HOME=/some/larger/disk",
        )


@dataclass(frozen=True, slots=True)
class _HubFile:
    name: str
    size: int
    is_missing: bool


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


def _until(stopped: Event, report: Progress | None) -> Progress:
    """Return what passes on to *report*, and ends the download that tells it after *stopped*."""

    def tell(phase: str, share: float | None) -> None:
        if stopped.is_set():
            raise CancelledError
        if report is not None:
            report(phase, share)

    return tell


# Any: tqdm has no types.
def _bar(report: Progress | None, total: int) -> type[Any]:
    """Return a progress bar for the Hub client that draws nothing and tells *report*."""
    from tqdm import tqdm  # type: ignore[import-untyped] # a dependency of the Hub client

    transfer = Transfer(total)

    class Bar(tqdm):  # type: ignore[misc] # untyped, as said
        monitor_interval = 0  # no watching thread

        # Any: the arguments of tqdm and of the client's subclass of it.
        def __init__(self, *arguments: Any, **options: Any) -> None:
            options.pop("name", None)
            # A disabled bar of tqdm does not count.
            options.update(disable=False, file=io.StringIO())
            super().__init__(*arguments, **options)

        def update(self, n: float | None = 1) -> None:
            super().update(n)
            # The client also has a bar that counts files.
            if report is not None and self.unit == "B" and total:
                report(transfer.describe(int(self.n)), min(1.0, self.n / total))

    return Bar


def _any(folder: Path, names: tuple[str, ...]) -> bool:
    return any((folder / name).exists() for name in names)


def _named(repo: str, revision: str | None) -> str:
    return repo if revision is None else f"{repo}@{revision}"
