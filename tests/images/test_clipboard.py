"""Pictures and copied files on the clipboard."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import ImageGrab

from tests.support.sources import PICTURE, is_the_picture, load, load_error


@pytest.fixture
def clipboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that replaces the clipboard tool of the desktop with a shell script."""
    if os.name != "posix" or os.uname().sysname == "Darwin":
        pytest.skip("the clipboard of a Linux desktop")

    def install(script: str) -> None:
        tool = tmp_path / "xclip"
        tool.write_text(f"#!/bin/sh\n{script}\n")
        tool.chmod(0o755)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setenv("DISPLAY", ":0")
        monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)

    return install


def test_the_clipboard_is_a_picture(clipboard: Callable[[str], None], tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURE)
    clipboard(f"/bin/cat '{tmp_path}/a.png'")

    for source in ("clipboard:", "Clipboard:"):
        image = load(source)
        assert is_the_picture(image)
        assert image.info == {"original_size": (64, 48)}


def test_the_clipboard_is_held_to_the_pixel_limit(
    clipboard: Callable[[str], None], tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(PICTURE)
    clipboard(f"/bin/cat '{tmp_path}/a.png'")

    assert load_error("clipboard:", max_pixels=3071).kind == "too_large"


@pytest.mark.parametrize(
    ("script", "kind", "message"),
    [
        ("echo 'Error: target image/png not available' >&2; exit 1", "missing", "no picture"),
        ('echo "Error: Can\'t open display: :0" >&2; exit 1', "unsupported", "open display"),
        ("printf '\\033[31mred\\n' >&2; exit 1", "unsupported", "\\x1b[31mred"),
        ("echo not a picture", "truncated", "clipboard"),
    ],
)
def test_a_clipboard_without_a_picture_says_so(
    script: str, kind: str, message: str, clipboard: Callable[[str], None]
) -> None:
    clipboard(script)

    error = load_error("clipboard:")

    assert error.kind == kind
    assert message in str(error)


def test_a_machine_without_a_clipboard_names_what_to_install(
    clipboard: Callable[[str], None], tmp_path: Path
) -> None:
    clipboard("")
    (tmp_path / "xclip").unlink()

    error = load_error("clipboard:")

    assert error.kind == "unsupported"
    assert "xclip" in (error.hint or "")


def test_a_copied_file_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # macOS and Windows: copying a file puts its path on the clipboard.
    (tmp_path / "a.png").write_bytes(PICTURE)
    for paths in ([str(tmp_path / "a.png")], [str(tmp_path / "a.png"), "/b.png"]):
        monkeypatch.setattr(ImageGrab, "grabclipboard", lambda paths=paths: paths)
        assert is_the_picture(load("clipboard:"))

    monkeypatch.setattr(ImageGrab, "grabclipboard", list)
    assert load_error("clipboard:").kind == "missing"
