"""The Hugging Face cache: where models lie in it, and whether they are complete."""

from __future__ import annotations

import json
import os
from pathlib import Path

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"


def cache_root() -> Path:
    """Return the cache's folder: `HF_HUB_CACHE`, `HF_HOME`/hub or ~/.cache/huggingface/hub."""
    from huggingface_hub import constants

    return Path(constants.HF_HUB_CACHE)


def is_offline() -> bool:
    """Return whether `HF_HUB_OFFLINE` forbids the network."""
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
    # An empty ref would give the folder of all snapshots.
    return folder if commit and folder.is_dir() else None


def cached_folder(
    repo: str, revision: str | None = None, *, root: Path | None = None
) -> Path | None:
    """Return the folder of the cached *revision* of *repo* if it is complete, else None.

    Args:
        repo: Hub id.
        revision: Branch, tag or commit; None is `main`.
        root: The cache; None is the user's.
    """
    folder = snapshot(repo, revision, root=root)
    return folder if folder is not None and not missing_files(folder) else None


def missing_files(folder: Path) -> tuple[str, ...]:
    """Return the names of the files that the model in *folder* lacks.

    Where one of several files is enough, the tuple has the name of the usual one. A file that
    is there is whole: the Hub client links a file into a snapshot after its last byte arrived.
    """
    missing = [] if (folder / "config.json").exists() else ["config.json"]
    missing += missing_weights(folder)
    if not _any_exists(folder, ("tokenizer.json", "tokenizer.model", "vocab.json")):
        missing.append("tokenizer.json")
    if not _any_exists(folder, ("preprocessor_config.json", "processor_config.json")):
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
    """Return the size in bytes of all files below *folder*; links are followed."""
    sizes = []
    for place, _, names in os.walk(folder):
        for name in names:
            path = Path(place, name)
            if path.exists():
                sizes.append(path.stat().st_size)
    return sum(sizes)


def _any_exists(folder: Path, names: tuple[str, ...]) -> bool:
    return any((folder / name).exists() for name in names)
