"""The bytes of a picture are read once, and everything that is said of it is of these bytes."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.caption.executors.reading import Opened, PictureReader
from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.job import CaptionJob, CaptionQuestion
from idefics_cli.caption.resume.stamp import read_picture, sha256_of, stamp_of
from idefics_cli.core.types import Attachment, CaptionRecord, GenerationRequest
from idefics_cli.demo.samples import write_samples
from idefics_cli.engine.protocol import OpenImage, Prepared
from tests.support.fakes import FakeEngine

# Counts how often each picture of a folder is opened while `idefics caption` runs.
COUNTING = """
import collections, os, sys
opened = collections.Counter()

def count(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".png"):
        opened[os.path.basename(arguments[0])] += 1

sys.addaudithook(count)
from idefics_cli.cli.app import make_app
try:
    make_app()(sys.argv[1:], prog_name="idefics")
finally:
    print(sorted(opened.items()), file=sys.stderr)
"""


def item(path: Path | str) -> CaptionItem:
    return CaptionItem(str(path), Attachment(str(path)))


class Opening(FakeEngine):
    """Opens each picture as it is told, and remembers its size and its first pixel."""

    def prepare(
        self, request: GenerationRequest, *, open_image: OpenImage | None = None
    ) -> Prepared:
        assert open_image is not None
        image = open_image(request.attachments[0], 512)
        assert isinstance(image, Image.Image)
        self.seen = (image.size, image.getpixel((0, 0)))
        return super().prepare(request)


@pytest.mark.parametrize("prompt", ["Describe it.", "Describe it, {width} by {height}."])
def test_a_run_opens_each_file_once(
    prompt: str, tmp_path: Path, warm_python: tuple[str, ...]
) -> None:
    samples = write_samples(tmp_path / "in", count=5, seed=3)
    arguments = ["caption", str(tmp_path / "in"), "-m", "demo", "--prompt", prompt]
    output = tmp_path / "out.jsonl"
    ran = subprocess.run(
        [*warm_python, "-c", COUNTING, *arguments, "-o", str(output)],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert str([(sample.file_name, 1) for sample in samples]) in ran.stderr
    for line in output.read_text().splitlines():
        row = json.loads(line)
        path = tmp_path / row["file_name"]
        assert row["sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        with Image.open(path) as image:
            assert (row["width"], row["height"]) == image.size


def test_a_picture_is_decoded_from_the_bytes_of_its_digest(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 6), "red").save(path)
    data = path.read_bytes()

    class Replacing(Opening):
        def prepare(
            self, request: GenerationRequest, *, open_image: OpenImage | None = None
        ) -> Prepared:
            Image.new("RGB", (3, 3), "blue").save(path)
            return super().prepare(request, open_image=open_image)

    engine = Replacing()
    job = CaptionJob((item(path),), (CaptionQuestion("What?"),))
    opened = PictureReader(job, engine).read(item(path))
    assert isinstance(opened, Opened)
    assert engine.seen == ((8, 6), (255, 0, 0))
    assert opened.content.sha256 == hashlib.sha256(data).hexdigest()
    assert opened.content.stamp != stamp_of(item(path)), "the next run sees the change"


def test_a_large_file_is_not_held_in_memory_and_has_the_same_digest(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(os.urandom(1000))
    small, large = read_picture(item(path)), read_picture(item(path), max_bytes=999)

    assert small.data == path.read_bytes()
    assert large.data is None
    assert small.content == large.content
    assert small.content.sha256 == sha256_of(item(path))
    assert small.content.stamp == stamp_of(item(path))


@pytest.mark.parametrize("max_bytes", [10, 10_000])
def test_a_file_that_changes_while_it_is_read_fails(
    max_bytes: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Messages shorten long paths.
    monkeypatch.chdir(tmp_path)
    path = Path("a.png")
    path.write_bytes(b"half of a picture")
    fstat = os.fstat

    def grow(descriptor: int) -> os.stat_result:
        with path.open("ab") as file:
            file.write(b" and more")
        return fstat(descriptor)

    monkeypatch.setattr(os, "fstat", grow)
    assert read_picture(item(path), max_bytes=max_bytes).has_changed
    job = CaptionJob((item(path),), (CaptionQuestion("What?"),))
    record = PictureReader(job, FakeEngine()).read(item(path))
    assert isinstance(record, CaptionRecord)
    assert record.error == f"`{path}` changed while it was read"
    assert record.error_kind == "truncated"


def test_what_is_no_file_is_not_read(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "folder.png").mkdir()
    for source in (
        *(str(tmp_path / name) for name in ("pipe.png", "folder.png", "missing.png", "a\0.png")),
        *("/dev/zero", "https://example.com/a.png", "-", "data:image/png;base64,AAAA"),
    ):
        file = read_picture(item(source))
        assert (file.data, file.content.sha256, file.has_changed) == (None, None, False)
        assert file.content.stamp == stamp_of(item(source))
        assert sha256_of(item(source)) is None
