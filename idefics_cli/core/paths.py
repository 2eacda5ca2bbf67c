"""Where the tool keeps its own files (XDG Base Directory Specification 0.8); pure functions."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

_APP = "idefics"


def config_file(environ: Mapping[str, str]) -> Path:
    """Return the path of `config.toml`; `IDEFICS_CONFIG` overrides it."""
    explicit = environ.get("IDEFICS_CONFIG")
    return (
        Path(explicit) if explicit else _xdg(environ, "XDG_CONFIG_HOME", ".config") / "config.toml"
    )


def data_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder for what must outlive a cache, as sessions."""
    return _xdg(environ, "XDG_DATA_HOME", ".local/share")


def cache_folder(environ: Mapping[str, str]) -> Path:
    """Return the folder for what can be made again."""
    return _xdg(environ, "XDG_CACHE_HOME", ".cache")


def _xdg(environ: Mapping[str, str], variable: str, default: str) -> Path:
    base = environ.get(variable, "")
    # The specification: a relative path in these variables is invalid and is ignored.
    if base and Path(base).is_absolute():
        return Path(base) / _APP
    home = environ.get("HOME") or "/"
    return Path(home) / default / _APP
