"""More than a hundred pictures, most of them bad, give one row each with any number of threads."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.caption.inputs.discover import discover
from idefics_cli.caption.job import CaptionJob, CaptionQuestion
from idefics_cli.caption.runner import run_captions
from idefics_cli.caption.sinks import SINKS
from idefics_cli.caption.sinks.base import Target
from idefics_cli.core.types import Attachment, GenerationRequest, ImageLimits
from idefics_cli.engine.protocol import OpenImage, Prepared
from idefics_cli.images.loader import ImageLoader
from tests.support.commands import Stream
from tests.support.fakes import EngineOf, FakeEngine
from tests.support.outputs import contents

pytestmark = pytest.mark.skipif(os.name == "nt", reason="such names are not allowed here")
LIMITS = ImageLimits(max_pixels=1_000_000)
COUNT = 12  # pictures of each kind
GOOD = 5  # kinds of pictures from `spoil` that can be read


class Decoding(FakeEngine):
    """Opens every picture before it answers."""

    def __init__(self) -> None:
        super().__init__(lambda request: "a picture")
        self._loader = ImageLoader(LIMITS)

    def _open(self, attachment: Attachment, draft_edge: int) -> Image.Image:
        return self._loader.open(attachment, draft_edge=draft_edge)

    def prepare(
        self, request: GenerationRequest, *, open_image: OpenImage | None = None
    ) -> Prepared:
        for attachment in request.attachments:
            (open_image or self._open)(attachment, 512)
        return super().prepare(request, open_image=open_image)


def spoil(folder: Path, number: int) -> None:
    """Write one picture of each kind into *folder*."""
    base = folder / f"{number:03}"
    noise = Image.effect_noise((64, 48), 50)
    noise.convert("RGB").save(f"{base} good\n\t'\".jpg")
    noise.convert("CMYK").save(f"{base} cmyk.jpg")
    noise.convert("I;16").save(f"{base} deep.png")
    noise.save(f"{base} moving.gif", save_all=True, append_images=[noise] * 3)
    Image.new("L", (1, 20_000)).save(f"{base} line.png")
    whole = Path(f"{base} cmyk.jpg").read_bytes()
    Path(f"{base} torn.jpg").write_bytes(whole[: len(whole) // 2])
    Path(f"{base} empty.jpg").touch()
    Path(f"{base} text.jpg").write_text("hello", "utf-8")
    Image.new("1", (5000, 5000)).save(f"{base} bomb.png")
    Path(f"{base} folder.png").mkdir()
    os.symlink("nowhere", f"{base} link.jpg")
    (folder / os.fsdecode(b"%03d \xff.jpg" % number)).write_bytes(whole)


def test_each_has_one_row_and_the_readers_and_batches_change_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("photos").mkdir()
    for number in range(COUNT):
        spoil(Path("photos"), number)
    pictures = discover(["photos"]).pictures
    assert len(pictures) == COUNT * 11  # folders are not pictures

    def caption(folder: str, *, readers: int, batch_size: int) -> dict[str, str]:
        Path(folder).mkdir()
        job = CaptionJob(
            pictures,
            (CaptionQuestion("What?"),),
            readers=readers,
            batch_size=batch_size,
            limits=LIMITS,
        )
        target = Target(Stream(terminal=False).buffer, Path(folder, "out.jsonl"))
        with SINKS["jsonl"](target) as sink:
            run_captions(job, EngineOf(Decoding()), sink.write)
        return contents(Path(folder))

    rows = caption("one", readers=1, batch_size=1)
    for readers in (1, 8):
        assert caption(f"many{readers}", readers=readers, batch_size=7) == rows
    cells = [json.loads(line.replace(", ?}", "}")) for line in rows["out.jsonl"].splitlines()]
    assert len({row["file_name"] for row in cells}) == len(cells) == len(pictures)
    failed = [row for row in cells if row["status"] == "error"]
    assert len(failed) == COUNT * (11 - GOOD - 1)
    assert {row["error_kind"] for row in failed} == {
        *("truncated", "not_an_image", "too_large", "missing"),
    }
