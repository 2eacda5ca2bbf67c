"""The room that the download of a model needs."""

from __future__ import annotations

from idefics_cli.core.paths import display_path
from idefics_cli.core.units import GIB, format_size
from idefics_cli.hardware.machine import Machine
from idefics_cli.models.hub.facts import ModelFacts

# The cache needs this much more than the files, for partial files and for other programs.
_SPARE_BYTES = GIB // 4


def find_lack_of_room(facts: ModelFacts, machine: Machine) -> str | None:
    """Return why the download of a model does not fit; None if it does, or is there already."""
    free, size = machine.cache_free_bytes, facts.download_bytes
    if facts.folder is not None or free is None or not size or size + _SPARE_BYTES <= free:
        return None
    folder = display_path(machine.cache)
    return f"the download takes {format_size(size)}, and {format_size(free)} are free in {folder}"
