"""Folders of training data, with all that lies below them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from idefics_cli.core.errors import PromptError
from idefics_cli.images.folders import Walk
from idefics_cli.training.data.row import LeftOut


def walk_data(folder: Path) -> Walk:
    """List the files in *folder* and below it, without what links lead to outside of it."""
    return Walk(str(folder), recursive=True)


def unread_parts(walk: Walk) -> Iterator[LeftOut]:
    """Yield the folders that *walk* could not list, and the links that it did not follow."""
    for path, reason in walk.unlisted:
        error = PromptError(f"cannot list the folder `{path}`: {reason}")
        yield LeftOut(path, "wrong row", error)
    for link in walk.outside:
        yield LeftOut(link, "linked folder")
