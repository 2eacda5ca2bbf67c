"""Sources of pictures: files, `data:` URIs, stdin, the clipboard; and their names in messages."""

from __future__ import annotations

import base64
import io
import os
import stat
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_from_bytes

import pytest
from PIL import Image, ImageGrab

from idefics_cli.core.errors import ImageError
from idefics_cli.core.types import Attachment, ImageLimits
from idefics_cli.images.loader import ImageLoader, describe_source
from tests.support.pictures import QUADRANTS, corners, encoded, quadrants

PICTURE = encoded(quadrants(), "PNG")


def load(source: str, **limits: int) -> Image.Image:
    return ImageLoader(ImageLimits(**limits)).open(Attachment(source))


def refusal(source: str, **limits: int) -> ImageError:
    with pytest.raises(ImageError) as caught:
        load(source, **limits)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 200
    return caught.value


def is_the_picture(image: Image.Image) -> bool:
    return corners(image) == list(QUADRANTS)


# Files ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["a.png", "a.jpg", "no extension", "é ☃ #1?.png", "line\nbreak.png", "-", "a%20b.png"]
)
def test_a_file_opens_by_path_and_by_uri(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(PICTURE)

    for source in (str(path), f"file://{quote(str(path))}", f"FILE://localhost{quote(str(path))}"):
        assert is_the_picture(load(source))


def test_a_name_that_is_not_utf8_opens_by_path_and_by_uri(tmp_path: Path) -> None:
    raw = os.fsencode(tmp_path) + b"/\xff.png"
    with open(raw, "wb") as file:
        file.write(PICTURE)

    assert is_the_picture(load(os.fsdecode(raw)))
    assert is_the_picture(load("file:" + quote_from_bytes(raw)))


def test_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "a.png").write_bytes(PICTURE)

    assert is_the_picture(load("~/a.png"))


def test_a_relative_path_starts_at_the_working_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.png").write_bytes(PICTURE)

    assert is_the_picture(load("a.png"))
    assert is_the_picture(load("./a.png"))


def test_a_link_is_followed(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(PICTURE)
    (tmp_path / "link").symlink_to("a.png")

    assert is_the_picture(load(str(tmp_path / "link")))


def _folder(path: Path) -> str:
    path.mkdir()
    return str(path)


def _pipe(path: Path) -> str:
    os.mkfifo(path)
    return str(path)


def _dangling(path: Path) -> str:
    path.symlink_to("nowhere")
    return str(path)


def _loop(path: Path) -> str:
    path.symlink_to(path)
    return str(path)


def _empty(path: Path) -> str:
    path.touch()
    return str(path)


def _below_a_file(path: Path) -> str:
    path.touch()
    return f"{path}/a.png"


BAD_FILES: dict[str, tuple[Callable[[Path], str], str, str, str]] = {
    # name: function that makes it, kind, part of the message, part of the hint
    "missing": (lambda path: str(path), "missing", "no such file", "check the path"),
    "no folder": (lambda path: f"{path}/b/a.png", "missing", "no such file", "no folder"),
    "below a file": (_below_a_file, "missing", "no such file", "no folder"),
    "folder": (_folder, "not_an_image", "is a folder", "idefics caption -r"),
    "pipe": (_pipe, "not_an_image", "not a regular file", "-i -"),
    "device": (lambda _: "/dev/zero", "not_an_image", "not a regular file", "-i -"),
    "dangling": (_dangling, "missing", "a link to a file that does not exist", "link"),
    "loop": (_loop, "missing", "symbolic link", ""),
    "empty": (_empty, "not_an_image", "an empty file", "unfinished"),
    "NUL": (lambda path: f"{path}\0.png", "missing", "null", ""),
    "too long": (lambda path: f"{path}{'x' * 5000}", "missing", "too long", ""),
    "no name": (lambda _: "", "missing", "the name of a picture is empty", ""),
    "other scheme": (lambda _: "ftp://host/a.png", "unsupported", "unknown kind", "http(s)"),
    "other machine": (lambda _: "file://host/a.png", "unsupported", "another machine", "file:///"),
    "no scheme": (lambda _: "www.example.com/a.png", "missing", "no such file", "https://"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_told_what_is_wrong_at_once(name: str, tmp_path: Path) -> None:
    make, kind, message, hint = BAD_FILES[name]

    error = refusal(make(tmp_path / "x"))

    assert error.kind == kind
    assert message in str(error)
    assert hint in (error.hint or "")


def test_a_file_that_may_not_be_read_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PICTURE)
    path.chmod(0)
    if os.geteuid() == 0:  # root ignores permissions
        monkeypatch.setattr(os, "open", _denied)

    error = refusal(str(path))

    assert error.kind == "missing"
    assert "permission denied" in str(error)
    assert "permissions" in (error.hint or "")


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs /proc")
def test_a_file_that_cannot_be_read_where_it_begins_says_so() -> None:
    # It can be opened, and claims to be a regular file.
    assert refusal("/proc/self/mem").kind == "missing"


def _denied(path: str, flags: int) -> int:
    raise PermissionError(13, "Permission denied", path)


def test_a_file_that_becomes_a_pipe_while_it_is_opened_does_not_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.png").write_bytes(PICTURE)
    regular = os.stat(tmp_path / "a.png")
    os.mkfifo(tmp_path / "pipe")
    monkeypatch.setattr(os, "stat", lambda path: regular)
    assert stat.S_ISREG(os.stat(tmp_path / "pipe").st_mode)

    assert "not a regular file" in str(refusal(str(tmp_path / "pipe")))


@pytest.mark.parametrize("wanted", ["HOLIDAY.PNG", "holidy.png", "holiday.jpg"])
def test_a_misspelt_name_gets_the_closest_one(wanted: str, tmp_path: Path) -> None:
    for name in ("holiday.png", "zebra.gif", "x"):
        (tmp_path / name).touch()
    folder = f"{tmp_path}/"

    hint = refusal(folder + wanted).hint or ""

    assert hint.startswith("did you mean `")
    assert hint.endswith("holiday.png`?")


# stdin ---------------------------------------------------------------------------------------


def test_stdin_is_read_once_however_often_it_is_named() -> None:
    stdin = io.BytesIO(PICTURE)
    loader = ImageLoader(ImageLimits(), stdin=stdin)

    images = [loader.open(Attachment("-")) for _ in range(2)]

    assert images[0] == images[1]
    assert is_the_picture(images[1])


class _Keyboard(io.BytesIO):
    def isatty(self) -> bool:
        return True

    def read(self, size: int | None = -1, /) -> bytes:
        raise AssertionError("nobody would type a picture")


class _Broken(io.BytesIO):
    def read(self, size: int | None = -1, /) -> bytes:
        raise OSError(5, "Input/output error")


def _closed() -> io.BytesIO:
    stream = io.BytesIO()
    stream.close()
    return stream


@pytest.mark.parametrize(
    ("stdin", "message"),
    [
        (io.BytesIO(), "cannot read `stdin`: nothing was piped in"),
        (_Keyboard(), "cannot read `stdin`: no picture is piped in"),
        (_Broken(), "cannot read `stdin`: input/output error"),
        (_closed(), "cannot read `stdin`: i/o operation on closed file"),
    ],
    ids=["empty", "terminal", "broken", "closed"],
)
def test_a_stdin_without_a_picture_says_so(stdin: io.BytesIO, message: str) -> None:
    loader = ImageLoader(ImageLimits(), stdin=stdin)
    for _ in range(2):
        with pytest.raises(ImageError) as caught:
            loader.open(Attachment("-"))

        assert (str(caught.value).rstrip("."), caught.value.kind) == (message, "missing")


class _Endless(io.RawIOBase):
    given = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # Buffer in typeshed
        self.given += len(buffer)
        return len(buffer)


def test_an_endless_stdin_ends_at_the_byte_limit() -> None:
    endless = _Endless()
    loader = ImageLoader(ImageLimits(max_bytes=100_000), stdin=io.BufferedReader(endless))

    for _ in range(2):
        with pytest.raises(ImageError) as caught:
            loader.open(Attachment("-"))
        assert caught.value.kind == "too_large"

    assert endless.given < 1_000_000


# data: ---------------------------------------------------------------------------------------

_BASE64 = base64.b64encode(PICTURE).decode()


@pytest.mark.parametrize(
    "uri",
    [
        f"data:image/png;base64,{_BASE64}",
        f"DATA:image/png;BASE64,{_BASE64}",
        f"data:image/png;name=a;base64,{_BASE64}",
        f"data:;base64,{_BASE64}",
        f"data:text/plain;base64,{_BASE64}",
        f"data:image/png;base64,{_BASE64.rstrip('=')}",
        f"data:image/png;base64,{quote(_BASE64)}",
        f"data:image/png;base64,{base64.urlsafe_b64encode(PICTURE).decode()}",
        "data:image/png;base64,\n" + "\r\n".join(_BASE64[i : i + 76] for i in range(0, 9999, 76)),
        f"data:image/png,{quote_from_bytes(PICTURE)}",
    ],
    ids=["usual", "caps", "named", "no-type", "type", "pad", "percent", "url", "lines", "plain"],
)
def test_a_data_uri_is_a_picture(uri: str) -> None:
    assert is_the_picture(load(uri))


@pytest.mark.parametrize(
    ("uri", "kind", "message"),
    [
        ("data:image/png;base64", "not_an_image", "no comma"),
        ("data:image/png;base64,####", "not_an_image", "not base64"),
        ("data:image/png;base64,abcde", "not_an_image", "not base64"),
        ("data:image/png;base64,é", "not_an_image", "not base64"),
        ("data:image/png;base64,", "not_an_image", "an empty file"),
        ("data:,hello", "not_an_image", "text"),
        ("data:image/svg+xml,%3Csvg xmlns='http://www.w3.org/2000/svg'/%3E", "unsupported", "SVG"),
        (f"data:image/png;base64,{_BASE64[:100]}", "truncated", "cut off"),
    ],
)
def test_a_bad_data_uri_is_told_what_is_wrong(uri: str, kind: str, message: str) -> None:
    error = refusal(uri)

    assert error.kind == kind
    assert message in str(error)


@pytest.mark.parametrize(
    "uri", [f"data:image/png;base64,{_BASE64}", f"data:image/png,{quote_from_bytes(PICTURE)}"]
)
def test_the_byte_limit_of_a_data_uri_is_that_of_its_bytes(uri: str) -> None:
    assert is_the_picture(load(uri, max_bytes=len(PICTURE)))
    assert refusal(uri, max_bytes=len(PICTURE) - 1).kind == "too_large"


def test_a_huge_data_uri_is_neither_decoded_nor_repeated() -> None:
    error = refusal("data:image/png;base64," + "#" * 1_000_000, max_bytes=1000)

    assert error.kind == "too_large"
    assert "#" not in str(error)


# The clipboard -------------------------------------------------------------------------------


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

    assert refusal("clipboard:", max_pixels=3071).kind == "too_large"


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

    error = refusal("clipboard:")

    assert error.kind == kind
    assert message in str(error)


def test_a_machine_without_a_clipboard_names_what_to_install(
    clipboard: Callable[[str], None], tmp_path: Path
) -> None:
    clipboard("")
    (tmp_path / "xclip").unlink()

    error = refusal("clipboard:")

    assert error.kind == "unsupported"
    assert "xclip" in (error.hint or "")


def test_a_copied_file_is_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # macOS and Windows: copying a file puts its path on the clipboard.
    (tmp_path / "a.png").write_bytes(PICTURE)
    for paths in ([str(tmp_path / "a.png")], [str(tmp_path / "a.png"), "/b.png"]):
        monkeypatch.setattr(ImageGrab, "grabclipboard", lambda paths=paths: paths)
        assert is_the_picture(load("clipboard:"))

    monkeypatch.setattr(ImageGrab, "grabclipboard", list)
    assert refusal("clipboard:").kind == "missing"


# Names ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("a.png", "a.png"),
        ("-", "stdin"),
        ("clipboard:", "clipboard"),
        ("Grüße ☃.png", "Grüße ☃.png"),
        ("a\x1b[31m\n\tb.png", r"a\x1b[31m\n\tb.png"),
        ("evil\u202egnp.exe", r"evil\u202egnp.exe"),
        ("\udcff.png", r"\udcff.png"),
        ("data:image/png;base64,AAAA", "data:image/png;base64,… (26 characters)"),
        ("data:,x", "data:no type,… (7 characters)"),
        ("https://me:secret@host/a.png", "https://…@host/a.png"),
        ("https://host/a@b.png", "https://host/a@b.png"),
    ],
)
def test_a_source_has_a_short_printable_name(source: str, name: str) -> None:
    assert describe_source(source) == name


def test_of_a_long_path_both_ends_are_shown() -> None:
    name = describe_source("/home/me/" + "folder/" * 30 + "cat.png")

    assert name.startswith("/home/me/folder/")
    assert name.endswith("/folder/cat.png")
    assert len(name) == 80


@pytest.mark.parametrize("letter", ["x", "\x1b", "\U000e0001"])
def test_a_name_of_a_million_characters_is_short_soon(letter: str) -> None:
    for source in (letter * 1_000_000, f"data:{letter * 1_000_000}", "http://h/" + letter * 10**6):
        assert len(describe_source(source)) <= 80
        assert describe_source(source).isprintable()
