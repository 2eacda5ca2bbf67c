"""The allowed texts of settings that depend on features, which `config` must not import."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from idefics_cli.caption.sinks import SINKS

CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType({"format": tuple(SINKS)})
"""Name of a setting -> its allowed texts; see `config.settings.with_choices`."""
