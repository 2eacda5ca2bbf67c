"""Sources of pictures: files and stdin; and the names of sources in messages."""

from __future__ import annotations

import io
import os
import stat
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_from_bytes

import pytest

from idefics_cli.core.errors import ImageError
from idefics_cli.core.sources import describe_source
from idefics_cli.core.types import Attachment, ImageLimits
from idefics_cli.images.loader import ImageLoader
from tests.support.sources import PICTURE, is_the_picture, load, load_error

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


def _quoted(path: Path) -> str:
    path.touch()
    return f"'{path}'"


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
    "quoted": (_quoted, "missing", "no such file", "/x`?"),
    "no scheme": (lambda _: "www.example.com/a.png", "missing", "no such file", "https://"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_told_what_is_wrong_at_once(name: str, tmp_path: Path) -> None:
    make, kind, message, hint = BAD_FILES[name]

    error = load_error(make(tmp_path / "x"))

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

    error = load_error(str(path))

    assert error.kind == "missing"
    assert "permission denied" in str(error)
    assert "permissions" in (error.hint or "")


@pytest.mark.skipif(not os.path.exists("/proc/self/mem"), reason="needs /proc")
def test_a_file_that_cannot_be_read_where_it_begins_says_so() -> None:
    # It can be opened, and claims to be a regular file.
    assert load_error("/proc/self/mem").kind == "missing"


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

    assert "not a regular file" in str(load_error(str(tmp_path / "pipe")))


@pytest.mark.parametrize("wanted", ["HOLIDAY.PNG", "holidy.png", "holiday.jpg"])
def test_a_misspelt_name_gets_the_closest_one(wanted: str, tmp_path: Path) -> None:
    for name in ("holiday.png", "zebra.gif", "x"):
        (tmp_path / name).touch()
    folder = f"{tmp_path}/"

    hint = load_error(folder + wanted).hint or ""

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


def test_a_sparse_file_of_any_size_is_refused_at_once(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(PICTURE)
    try:
        os.truncate(path, 400 * 2**30)
    except OSError:
        pytest.skip("no sparse files here")
    start = time.monotonic()

    error = load_error(str(path))

    assert (error.kind, "the limit is" in str(error)) == ("too_large", True)
    assert time.monotonic() - start < 1
