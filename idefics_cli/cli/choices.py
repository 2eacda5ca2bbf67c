"""The allowed values of settings that features define.

They are here because `config` must not import the features.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from idefics_cli.caption.sinks import SINKS

CHOICES: Mapping[str, tuple[str, ...]] = MappingProxyType({"format": tuple(SINKS)})
"""The allowed values of a setting, by its name; see `config.settings.with_choices`."""
