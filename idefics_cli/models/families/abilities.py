"""What the model of a spec can do, here or on a server."""

from __future__ import annotations

from idefics_cli.core.types import LoadSpec
from idefics_cli.models.families.spec import find_family


def takes_videos(spec: LoadSpec) -> bool:
    """Return whether the model of *spec* takes videos; no server does."""
    return spec.server is None and find_family(spec.family).takes_videos


def sees_last_only(spec: LoadSpec) -> bool:
    """Return whether the model of *spec* sees only the last pictures of a conversation."""
    return spec.server is None and find_family(spec.family).sees_last_only
