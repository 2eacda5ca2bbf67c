"""The Hugging Face cache: the folders of its models, and whether their files are complete."""

from __future__ import annotations

import os
from pathlib import Path

from idefics_cli.core.files import read_regular_file
from idefics_cli.core.json_text import parse_json
from idefics_cli.core.text import SURROGATE

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
# Maximum size of an index. It is far above real ones: the index of a model of 80 B parameters has
# 0.2 MB.
_INDEX_LIMIT_BYTES = 2**26


def cache_root() -> Path:
    """Return the folder of the cache: `HF_HUB_CACHE`, `HF_HOME`/hub or ~/.cache/huggingface/hub."""
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
    # If the file of the branch were empty, *folder* would be the folder of all snapshots.
    return folder if commit and folder.is_dir() else None


def cached_folder(
    repo: str, revision: str | None = None, *, root: Path | None = None
) -> Path | None:
    """Return the folder of the cached *revision* of *repo* if it is complete, else None.

    Args:
        repo: Hub id.
        revision: Branch, tag or commit; None is `main`.
        root: Folder of the cache; None is the user's cache.
    """
    folder = snapshot(repo, revision, root=root)
    return folder if folder is not None and not missing_files(folder) else None


def missing_files(folder: Path) -> tuple[str, ...]:
    """Return the names of the files that the model in *folder* lacks.

    If one of several files would be enough, the tuple has the name of the usual one. A file that is
    there is complete, because the Hub client links a file into a snapshot only after its last byte
    has arrived.
    """
    missing = [] if (folder / "config.json").exists() else ["config.json"]
    missing += missing_weights(folder)
    if not _any_exists(folder, ("tokenizer.json", "tokenizer.model", "vocab.json")):
        missing.append("tokenizer.json")
    if not _any_exists(folder, ("preprocessor_config.json", "processor_config.json")):
        missing.append("preprocessor_config.json")
    return tuple(missing)


def missing_weights(folder: Path) -> list[str]:
    """Return the names of the weight files that *folder* lacks; a broken index is missing."""
    names = weight_files(folder)
    if names is None:
        return [INDEX]
    return [name for name in names if not (folder / name).exists()]


def weight_files(folder: Path) -> list[str] | None:
    """Return the names of the weight files of the model in *folder*; None if its index is broken.

    An index that names a file in another folder counts as broken.
    """
    index = folder / INDEX
    if not index.exists():
        return [SINGLE]
    try:
        content = parse_json(read_regular_file(index, limit_bytes=_INDEX_LIMIT_BYTES))
    except (OSError, ValueError):
        return None
    parts = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(parts, dict) or not parts:
        return None
    names = list(parts.values())
    if not all(isinstance(name, str) and _is_plain_name(name) for name in names):
        return None
    return sorted(set(names))


def _is_plain_name(name: str) -> bool:
    is_encodable = "\0" not in name and not SURROGATE.search(name)
    is_weight_file = Path(name).name == name and name.endswith(".safetensors")
    return is_encodable and len(name) <= 255 and is_weight_file


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
