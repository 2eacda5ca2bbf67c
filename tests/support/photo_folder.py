"""A folder of files that a fake engine takes for pictures, and the output about them."""

from __future__ import annotations

import os
from pathlib import Path

from idefics_cli.core.errors import ImageError
from idefics_cli.core.types import GenerationRequest

BAD = ImageError(
    "cannot read `photos/b.jpg`: it is cut off", kind="truncated", hint="copy it again"
)
LINES = [f"photos/{n}\ta picture named {n[0]}\n" for n in ("a.jpg", "b.jpg", "c.png")]
ALL = "".join(LINES)
REST = LINES[0] + LINES[2]


def make_photos(folder: Path) -> Path:
    """Make *folder* with three pictures, and with files that are not listed by default."""
    (folder / ".cache").mkdir(parents=True)
    (folder / "sub").mkdir()
    for name in (
        *("b.jpg", "a.jpg", "c.png", "notes.txt"),
        *(".hidden.jpg", ".cache/d.jpg", "sub/e.jpg"),
    ):
        (folder / name).touch()
    return folder


def describe_photo(request: GenerationRequest) -> str:
    """Answer with the name of the picture."""
    return f"a picture named {Path(request.attachments[0].source).stem}"


def touch(*paths: str) -> None:
    """Create empty files, and their folders."""
    for path in paths:
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        with open(path, "wb"):
            pass
