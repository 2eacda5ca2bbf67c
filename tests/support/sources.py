"""A picture that is loaded from any source."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from idefics_cli.core.errors import ImageError
from idefics_cli.core.types import Attachment, ImageLimits
from idefics_cli.images.loader import ImageLoader
from tests.support.pictures import QUADRANTS, corners, encoded, quadrants

PICTURE = encoded(quadrants(), "PNG")
"""The file of the picture that the tests of sources load."""


def load(source: str, **limits: Any) -> Image.Image:
    """Return the picture of *source*."""
    return ImageLoader(ImageLimits(**limits)).open(Attachment(source))


def load_error(source: str, **limits: Any) -> ImageError:
    """Return the error for *source*, which must be short and printable."""
    with pytest.raises(ImageError) as caught:
        load(source, **limits)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200
    return caught.value


def is_the_picture(image: Image.Image) -> bool:
    """Return whether *image* shows `PICTURE`."""
    return corners(image) == list(QUADRANTS)


def install_xclip(script: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace the clipboard tool of a Linux desktop with a shell script in *folder*."""
    if os.name != "posix" or os.uname().sysname == "Darwin":
        pytest.skip("the clipboard of a Linux desktop")
    tool = folder / "xclip"
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.setenv("DISPLAY", ":0")
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
