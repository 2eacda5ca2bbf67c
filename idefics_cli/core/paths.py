"""The folders of the tool (XDG Base Directory Specification 0.8), and paths as text."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path

_APP = "idefics"


def config_file(environ: Mapping[str, str]) -> Path:
    """Return the path of `config.toml`; `IDEFICS_CONFIG` overrides it."""
    explicit = environ.get("IDEFICS_CONFIG")
    return (
        Path(explicit) if explicit else _xdg(environ, "XDG_CONFIG_HOME", ".config") / "config.toml"
    )


def data_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder for data that must not be lost, such as sessions."""
    return _xdg(environ, "XDG_DATA_HOME", ".local/share")


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder for files that the tool can make again."""
    return _xdg(environ, "XDG_CACHE_HOME", ".cache")


def quantized_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder for quantized weights, which a later start reads."""
    return cache_folder(environ) / "quantized"


def verdict_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder for the results of self-checks."""
    return cache_folder(environ) / "checks"


def hub_cache(environ: Mapping[str, str]) -> Path:
    """Return the cache of the Hugging Face Hub: `HF_HUB_CACHE`, `HF_HOME`/hub or ~/.cache/….

    huggingface_hub 2.4 has the same rule in `constants.HF_HUB_CACHE`. It is repeated here, because
    importing that package takes time.
    """
    base = environ.get("XDG_CACHE_HOME", os.path.join("~", ".cache"))
    home = environ.get("HF_HOME", os.path.join(base, "huggingface"))
    cache = environ.get("HUGGINGFACE_HUB_CACHE", os.path.join(home, "hub"))
    return Path(os.path.expandvars(os.path.expanduser(environ.get("HF_HUB_CACHE", cache))))


def _xdg(environ: Mapping[str, str], variable: str, default: str) -> Path:
    base = environ.get(variable, "")
    # By the specification, a relative path in these variables is invalid and must be ignored.
    if base and Path(base).is_absolute():
        return Path(base) / _APP
    home = environ.get("HOME") or "/"
    return Path(home) / default / _APP


def free_bytes(folder: Path) -> int | None:
    """Return the free space on the disk where *folder* is or will be; None if unknown."""
    for place in (folder, *folder.parents):
        if place.exists():
            try:
                return shutil.disk_usage(place).free
            except OSError:
                return None
    return None


def display_path(path: Path) -> str:
    """Return *path* as text for people, with `~` for the home folder."""
    try:
        return str(Path("~") / path.relative_to(Path.home()))
    except (ValueError, RuntimeError):
        return str(path)


def relative_file(path: str, folder: str) -> str:
    """Return `os.path.relpath` of the file *path* from *folder*; quick for many files of a folder.

    Raises:
        ValueError: If both are on different drives.
    """
    head, slash, name = path.rpartition("/")
    if os.sep != "/" or name in ("", ".", ".."):
        return os.path.relpath(path, folder)
    return _relative_folder(head + slash, folder, os.getcwd()) + name


@lru_cache(maxsize=1024)
def _relative_folder(path: str, folder: str, here: str) -> str:
    """Return the path from *folder* to the folder *path*, with a slash at its end; "" if equal."""
    found = os.path.relpath(path or os.curdir, folder)
    return "" if found == os.curdir else f"{found}/"
