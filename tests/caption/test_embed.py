"""Captions in pictures: pixels and all other metadata stay, and so do the words of a person."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
from numpy.typing import NDArray
from PIL import Image

from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.sinks.base import Existing, SidecarError, Target
from idefics_cli.caption.sinks.embed import EmbedSink
from idefics_cli.core.errors import UsageError
from idefics_cli.core.files import stamp_of_file
from idefics_cli.core.types import Attachment, CaptionRecord
from tests.support.commands import Ran, World, run
from tests.support.fakes import FakeEngine
from tests.support.outputs import NON_UTF8_NAME, Recorder, record
from tests.support.pictures import noise, opened, quadrants
from tests.support.zygote import Zygote

pytestmark = pytest.mark.skipif(
    shutil.which("exiftool") is None, reason="exiftool is not installed"
)

CAPTION = ' a cat <b> & "dog" $x @y \\n {z}\n«ünd» 漢'
FILES: dict[str, dict[str, object]] = {
    "a.jpg": {"quality": 90, "progressive": True},
    "a.png": {},
    "a.tif": {"compression": "tiff_lzw"},
    "a.gif": {},
    "a.webp": {"lossless": True},
    "a.heic": {"quality": 90},
}


@pytest.fixture(autouse=True)
def in_folder(here: Path) -> Path:
    return here


def make(name: str = "a.jpg", **options: object) -> Path:
    """Write a picture with an orientation and a camera, as far as its format has them."""
    if name.endswith(".heic"):
        pytest.importorskip("pillow_heif").register_heif_opener()
    image = quadrants()
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Maker"
    kind = {".jpg": "JPEG", ".tif": "TIFF", ".heic": "HEIF"}.get(
        Path(name).suffix, Path(name).suffix[1:].upper()
    )
    extra = {} if kind == "GIF" else {"exif": exif.tobytes()}
    image.save(name, kind, **extra, **(FILES.get(name, {}) | options))
    os.utime(name, ns=(10**18, 10**18))
    return Path(name)


def sink(*names: str, existing: Existing = "error") -> EmbedSink:
    items = tuple(CaptionItem(name, Attachment(name), name) for name in names or ("a.jpg",))
    return EmbedSink(Target(Recorder(), existing=existing, pictures=items))


def embed(name: str = "a.jpg", text: str = "a cat", existing: Existing = "error") -> CaptionRecord:
    """Write *text* into the picture, and return the record for the journal."""
    with sink(name, existing=existing) as entered:
        written = entered.write(replace(record(name, text), stamp=stamp_of_file(name)))
    assert written is not None
    return written


def embed_all(names: Iterable[str], existing: Existing = "error") -> None:
    """Write "a cat" into each picture, in one run."""
    names = tuple(names)
    with sink(*names, existing=existing) as entered:
        for name in names:
            entered.write(replace(record(name), stamp=stamp_of_file(name)))


def tags(name: str = "a.jpg") -> dict[str, str]:
    """Return the metadata of a picture, as exiftool reads it without our configuration."""
    (row,) = tags_of([name]).values()
    return row


def tags_of(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Return the metadata of pictures by name; see `tags`."""
    command = [
        "exiftool",
        "-config",
        "",
        "-json",
        "-G1",
        "-a",
        "-XMP:all",
        "-IPTC:all",
        "-EXIF:all",
    ]
    names = tuple(names)
    output = subprocess.run([*command, *names], capture_output=True, check=True).stdout
    rows = json.loads(output.decode("utf-8", "replace"))
    found = {}
    for name, row in zip(names, rows, strict=True):
        del row["SourceFile"]
        found[name] = {key: str(value) for key, value in row.items()}
    return found


def set_tags(*values: str, name: str = "a.jpg") -> None:
    command = ["exiftool", "-q", "-overwrite_original", "-codedcharacterset=utf8", *values, name]
    subprocess.run(command, check=True)


def pixels_of(path: Path) -> NDArray[np.uint8]:
    """Return the pixels that the loader makes of a picture."""
    return np.asarray(opened(path.read_bytes()))


def scan(data: bytes) -> bytes:
    """Return a JPEG from its first scan on."""
    return data[data.index(b"\xff\xda") :]


def test_pixels_and_other_metadata_stay_and_the_caption_is_read_back() -> None:
    for name in FILES:
        make(name).chmod(0o640)
    before = {name: Path(name).read_bytes() for name in FILES}
    pixels = {name: pixels_of(Path(name)) for name in FILES}
    old = tags_of(FILES)

    with sink(*FILES) as entered:
        written = {
            name: entered.write(replace(record(name, CAPTION), stamp=stamp_of_file(name)))
            for name in FILES
        }

    assert scan(Path("a.jpg").read_bytes()) == scan(before["a.jpg"])
    for name, found in tags_of(FILES).items():
        path = Path(name)
        assert (pixels_of(path) == pixels[name]).all()
        assert found["XMP-dc:Description"].strip() == CAPTION.strip()
        moved = "IFD0:StripOffsets"
        assert {key: found.get(key) for key in old[name] if key != moved} == {
            key: value for key, value in old[name].items() if key != moved
        }
        both = name in ("a.jpg", "a.tif")
        for tag in ("IPTC:Caption-Abstract", "IFD0:ImageDescription"):
            assert (found.get(tag, "").strip() == CAPTION.strip()) == both
        assert path.stat().st_mtime_ns == 10**18
        assert os.name == "nt" or path.stat().st_mode & 0o777 == 0o640
        one = written[name]
        assert one is not None
        assert one.stamp == stamp_of_file(path)
    assert sorted(os.listdir()) == sorted(FILES)


def test_the_words_of_a_person_are_never_replaced() -> None:
    fields = {
        "a.jpg": "XMP-dc:Description",
        "b.jpg": "XMP-dc:Description-de",
        "c.jpg": "IPTC:Caption-Abstract",
        "d.jpg": "IFD0:ImageDescription",
    }
    for name, field in fields.items():
        make(name)
        set_tags(f"-{field}=Anna, 2024", name=name)
    before = {name: Path(name).read_bytes() for name in fields}

    with pytest.raises(UsageError, match=r"4 of 4 captions exist already, such as `a\.jpg"):
        embed_all(fields)
    for existing in ("skip", "overwrite"):
        with sink(*fields, existing=existing) as entered:
            assert entered.completed() == set(fields)
            for name in fields:
                with pytest.raises(SidecarError, match="has a description by a person, which"):
                    entered.write(record(name))
    assert {name: Path(name).read_bytes() for name in fields} == before

    for _ in range(2):
        embed_all(fields, existing="append")
        assert {found["XMP-dc:Description"] for found in tags_of(fields).values()} == {
            "Anna, 2024 a cat"
        }
    with sink(*fields, existing="overwrite") as entered:
        assert entered.completed() == set(fields)


def test_the_text_of_a_png_is_by_a_person_too() -> None:
    path = make("a.png")
    set_tags("-PNG:Description=By Ann", name="a.png")
    before = path.read_bytes()

    with pytest.raises(UsageError, match=r"a\.png` has a description already"):
        embed("a.png")
    with sink("a.png", existing="overwrite") as entered:
        assert entered.completed() == {"a.png"}
    assert path.read_bytes() == before
    for _ in range(2):
        embed("a.png", existing="append")
        assert tags("a.png")["XMP-dc:Description"] == "By Ann a cat"


def test_our_own_words_are_replaced_on_request_until_a_person_edits_them() -> None:
    make()
    embed(text="one")
    embed(text="two", existing="overwrite")
    assert tags()["IPTC:Caption-Abstract"] == "two"

    set_tags("-IPTC:Caption-Abstract=two, by me")
    with sink(existing="overwrite") as entered:
        assert entered.completed() == {"a.jpg"}


def test_what_a_camera_writes_into_every_picture_is_no_description() -> None:
    make()
    set_tags("-IFD0:ImageDescription=OLYMPUS DIGITAL CAMERA")
    embed()
    assert tags()["IFD0:ImageDescription"] == "a cat"


def test_texts_of_iptc_in_another_encoding_stay_readable() -> None:
    path = make()
    subprocess.run(["exiftool", "-q", "-overwrite_original", "-IPTC:City=Zürich", path], check=True)
    embed(text="漢")

    found = tags()
    assert (found["IPTC:City"], found["XMP-dc:Description"]) == ("Zürich", "漢")
    assert "IPTC:Caption-Abstract" not in found


def test_a_long_caption_is_whole_where_it_fits() -> None:
    make()
    embed(text="short")
    embed(text="long " * 500, existing="overwrite")

    found = tags()
    assert found["XMP-dc:Description"].strip() == ("long " * 500).strip()
    assert "IPTC:Caption-Abstract" not in found


@pytest.mark.skipif(os.name == "nt", reason="links of Unix")
def test_two_names_of_one_picture_are_one_picture() -> None:
    make()
    Path("link.jpg").symlink_to("a.jpg")
    stamp = stamp_of_file("a.jpg")

    with sink("a.jpg", "link.jpg") as entered:
        for name in ("a.jpg", "link.jpg"):
            entered.write(replace(record(name, f"it is {name}"), stamp=stamp))
    assert Path("link.jpg").is_symlink()
    assert tags()["XMP-dc:Description"] == "it is link.jpg"


def test_a_picture_that_changed_since_it_was_read_stays() -> None:
    path = make()
    stamp = stamp_of_file(path)
    quadrants().save(path, "JPEG", quality=50)
    before = path.read_bytes()

    with sink() as entered, pytest.raises(SidecarError, match="has changed since it was read"):
        entered.write(replace(record("a.jpg"), stamp=stamp))
    assert path.read_bytes() == before


def test_a_picture_that_is_read_only_stays() -> None:
    path = make()
    path.chmod(0o444)
    before = path.read_bytes()

    with sink() as entered, pytest.raises(SidecarError, match=r"cannot write .*: it is read-only"):
        entered.write(record("a.jpg"))
    assert path.read_bytes() == before
    assert os.listdir() == ["a.jpg"]


@pytest.mark.parametrize(
    ("name", "format", "reason"),
    [
        ("a.bmp", "BMP", "files of type BMP"),
        ("a.jpg", "PNG", "Not a valid JPG"),
        ("no%f\n.jpg", "JPEG", "no name with a line break"),
    ],
)
def test_a_file_that_cannot_be_changed_fails_its_picture(
    name: str, format: str, reason: str
) -> None:
    noise().save(name, format)
    before = Path(name).read_bytes()

    with sink(name) as entered, pytest.raises(SidecarError, match=reason):
        entered.write(record(name))
    assert Path(name).read_bytes() == before
    assert os.listdir() == [name]


def test_odd_names_are_names() -> None:
    names = ("-a b%f%%d.jpg", "#a.jpg", "ünd 漢.jpg", NON_UTF8_NAME)
    for name in names:
        make(name)
    embed_all(names)
    assert sorted(os.listdir()) == sorted(names)
    for found in tags_of(f"./{name}" for name in names).values():
        assert found["XMP-dc:Description"] == "a cat"
    make("b.jpg")
    with sink(*names, "b.jpg", existing="skip") as entered:
        assert entered.completed() == set(names)


def test_metadata_of_several_segments_stays() -> None:
    path = make()
    long = "r" * 100_000
    Path("arguments").write_text(f"-XMP-dc:Rights={long}\n")
    set_tags("-@", "arguments")
    assert path.read_bytes().count(b"http://ns.adobe.com/xmp/extension/") > 1

    embed()
    assert (tags()["XMP-dc:Rights"], tags()["XMP-dc:Description"]) == (long, "a cat")


def test_after_exiftool_is_killed_the_next_picture_has_a_new_one() -> None:
    for name in ("a.jpg", "b.jpg"):
        make(name)
    with sink("a.jpg", "b.jpg") as entered:
        (exiftool,) = _children()
        exiftool.kill()
        exiftool.wait()
        with pytest.raises(SidecarError, match="exiftool ended"):
            entered.write(record("a.jpg"))
        entered.write(record("b.jpg"))
    assert tags("b.jpg")["XMP-dc:Description"] == "a cat"
    assert _children() == []


# Runs


def caption(*options: str, engine: FakeEngine | None = None) -> Ran:
    engine = engine or FakeEngine(lambda request: f"it is {request.attachments[0].source}")
    return run("caption", "photos", "--embed", *options, services=World(engine).services)


def photos(count: int) -> dict[str, bytes]:
    """Write pictures; return their scans."""
    Path("photos").mkdir()
    for number in range(count):
        make(f"photos/{number:03}.jpg")
    return scans()


def scans() -> dict[str, bytes]:
    return {path.name: scan(path.read_bytes()) for path in Path("photos").glob("[!.]*.jpg")}


def test_a_second_run_does_nothing_and_a_picture_with_new_words_is_left_to_its_person() -> None:
    photos(3)
    assert caption().code == 0
    first = {path: path.read_bytes() for path in Path("photos").glob("[!.]*.jpg")}
    engine = FakeEngine("other")
    assert (caption(engine=engine).code, engine.requests) == (0, [])
    assert {path: path.read_bytes() for path in first} == first

    set_tags("-XMP-dc:Description=by me", name="photos/001.jpg")
    ran = caption(engine=engine)
    assert (ran.code, len(engine.requests)) == (3, 1)
    assert "001.jpg` has a description by a person, which stays" in ran.err
    assert tags("photos/001.jpg")["XMP-dc:Description"] == "by me"


def test_pictures_with_words_of_a_person_are_named_as_given_and_counted() -> None:
    photos(3)
    for name in ("photos/000.jpg", "photos/002.jpg"):
        set_tags("-XMP-dc:Description=by me", name=name)
    engine = FakeEngine("a cat")
    ran = caption(engine=engine)
    assert (ran.code, engine.requests) == (2, [])
    assert ran.err == (
        "error: 2 of 3 captions exist already, such as `photos/000.jpg`\n"
        "hint: `--existing skip` and `overwrite` leave alone what a person wrote; `append` and "
        "`prepend` add to it\n"
    )

    for _ in range(2):
        engine = FakeEngine("a cat")
        ran = caption("--existing", "overwrite", engine=engine)
        assert len(engine.requests) == 1
        assert ran.code == 0
        assert "note: 2 pictures have a description by a person, which stays\n" in ran.err
        assert tags("photos/000.jpg")["XMP-dc:Description"] == "by me"
    assert "by a person" not in caption("--existing", "skip").err

    set_tags("-XMP-dc:Description=by me", name="photos/001.jpg")
    ran = caption()
    assert (ran.code, "error: `photos/001.jpg` has a description by a person" in ran.err) == (
        1,
        True,
    )


def test_without_exiftool_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    photos(1)
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(sys, "platform", "linux")
    world = World(FakeEngine("x"))
    ran = run("caption", "photos", "--embed", services=world.services)

    assert (ran.code, ran.out, world.specs) == (2, "", [])
    assert ran.err == (
        "error: `--embed` needs exiftool, which is not installed\n"
        "hint: `apt install libimage-exiftool-perl` installs it\n"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("-o", "x.csv"), "error: --embed and --output exclude each other\n"),
        (("-f", "csv"), "error: --embed and --format exclude each other\n"),
        (("data:image/png;base64,AAAA",), "is not a file, and `--embed` writes into files\n"),
    ],
)
def test_what_is_written_into_pictures_is_written_nowhere_else(
    options: tuple[str, ...], message: str
) -> None:
    photos(1)
    ran = caption(*options)
    assert (ran.code, message in ran.err) == (2, True)


@pytest.mark.skipif(os.name == "nt", reason="POSIX processes")
@pytest.mark.parametrize("kills", [4, pytest.param(50, marks=pytest.mark.slow)])
def test_killed_runs_damage_no_picture_and_leave_no_file_and_no_process(
    kills: int, here: Path
) -> None:
    before = photos(8 * kills)
    first = here / "first.jpg"
    first.write_bytes(b"0")
    chance = random.Random(kills)
    journal = Path("photos/idefics-caption-embed.journal")
    requests = here / "r.jsonl"
    requests.write_text('{"prompt": "Hi"}')
    with Zygote("fake", picture=first, requests=requests) as zygote:
        for _ in range(kills):
            zygote.run(
                *("photos", "--embed", "--batch-size", "1"),
                number=signal.SIGKILL,
                seconds=chance.uniform(0, 0.06),
                after=journal,
            )
            assert scans() == before
        left = [path.name for path in Path("photos").iterdir() if ".part" in path.name]
        assert zygote.run("photos", "--embed")[0] == 0
    assert scans() == before
    assert not [path for path in Path("photos").iterdir() if ".part" in path.name], left
    names = [f"photos/{name}" for name in before]
    said = {name: found["XMP-dc:Description"] for name, found in tags_of(names).items()}
    assert said == {name: f"a picture of {name}" for name in names}
    deadline = time.monotonic() + 20
    while _exiftools(here) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not _exiftools(here)


def _children() -> list[psutil.Process]:
    """Return the processes of exiftool that this one has started."""
    children = psutil.Process().children()
    return [child for child in children if "-stay_open" in child.cmdline()]


def _exiftools(folder: Path) -> list[int]:
    """Return the processes of exiftool in *folder*."""
    found = []
    for process in psutil.process_iter():
        try:
            if "-stay_open" in process.cmdline() and process.cwd() == str(folder):
                found.append(process.pid)
        except psutil.Error:
            continue
    return found
