"""Pictures and copied files on the clipboard."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.pictures import encoded, png, quadrants
from tests.support.sources import PICTURE, install_xclip, is_the_picture, load, load_error


@pytest.fixture
def clipboard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return a function that replaces the clipboard tool of the desktop with a shell script."""
    return lambda script: install_xclip(script, tmp_path, monkeypatch)


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
        ("echo not a picture", "not_an_image", "clipboard"),
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


@pytest.mark.parametrize("rest", ["", "file:///b.png\r\n"])
def test_a_copied_file_is_opened(
    rest: str, clipboard: Callable[[str], None], tmp_path: Path
) -> None:
    (tmp_path / "a b.png").write_bytes(PICTURE)
    uri = (tmp_path / "a b.png").as_uri()
    (tmp_path / "list").write_text(f"# copied\r\n{uri}\r\n{rest}")
    clipboard(
        f"""case "$*" in
        *TARGETS) echo text/uri-list;;
        *text/uri-list) /bin/cat '{tmp_path}/list';;
        *) exit 1;; esac"""
    )

    assert is_the_picture(load("clipboard:"))


@pytest.mark.parametrize(
    ("content", "kind"),
    [
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "unsupported"),
        (b"<svg/>", "unsupported"),
        (png(10_001, 10_001, b"", depth=8, colour_type=2), "too_large"),
    ],
    ids=["eps", "svg", "100 MP"],
)
def test_the_clipboard_goes_through_the_same_checks_as_a_file(
    content: bytes, kind: str, clipboard: Callable[[str], None], tmp_path: Path
) -> None:
    (tmp_path / "a").write_bytes(content)
    (tmp_path / "gs").write_text(f"#!/bin/sh\necho started >'{tmp_path}/started'\n")
    (tmp_path / "gs").chmod(0o755)
    clipboard(f"/bin/cat '{tmp_path}/a'")

    assert load_error("clipboard:").kind == kind
    assert not (tmp_path / "started").exists()


def test_a_clipboard_without_end_or_answer_is_refused(clipboard: Callable[[str], None]) -> None:
    clipboard("exec /usr/bin/yes")
    assert load_error("clipboard:", max_bytes=1000).kind == "too_large"

    clipboard("exec /bin/sleep 60")
    error = load_error("clipboard:", timeout_seconds=1)
    assert (error.kind, "no answer in 1 s" in str(error)) == ("unsupported", True)


def test_a_picture_of_another_format_is_taken(
    clipboard: Callable[[str], None], tmp_path: Path
) -> None:
    (tmp_path / "a.bmp").write_bytes(encoded(quadrants(), "BMP"))
    clipboard(
        f"""case "$*" in
        *TARGETS) echo TARGETS; echo text/html; echo image/bmp;;
        *image/bmp) /bin/cat '{tmp_path}/a.bmp';;
        *) exit 1;; esac"""
    )

    assert is_the_picture(load("clipboard:"))
