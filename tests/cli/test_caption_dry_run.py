"""`idefics caption --dry-run`: what would run, and how long it would take."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.job import CaptionJob, CaptionQuestion
from idefics_cli.caption.rehearsal import seconds_per_picture
from idefics_cli.core.types import (
    DECODING_BYTES,
    Attachment,
    GenerationRequest,
)
from idefics_cli.engine.protocol import OpenImage, Prepared
from idefics_cli.images.sources import no_such_file
from tests.support.commands import World, run
from tests.support.fakes import EngineOf, FakeClock, FakeEngine
from tests.support.photo_folder import describe_photo

pytestmark = pytest.mark.usefixtures("photos")


def drawn(photos: Path) -> None:
    for path in (*photos.glob("*.jpg"), *photos.glob("*.png"), *photos.glob("sub/*.jpg")):
        Image.new("RGB", (8, 8)).save(path)


def test_a_dry_run_shows_the_plan_and_how_many_pictures_and_downloads_no_model(
    photos: Path,
) -> None:
    drawn(photos)
    world = World(FakeEngine(), is_cached=False)
    ran = run("caption", "photos", "-r", "--dry-run", "-o", "out", services=world.services)

    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("smolvlm-256m: ")
    assert ran.out.splitlines()[-1].startswith("4 pictures, ")
    assert ran.out.endswith(" at a time, with the prompt `Describe this image.`\n")
    assert (world.specs, Path("out").exists()) == ([], False)


def test_a_dry_run_finds_pictures_whose_headers_cannot_be_read(photos: Path) -> None:
    drawn(photos)
    (photos / "b.jpg").write_text("hello", "utf-8")
    world = World(FakeEngine(), is_cached=False)
    ran = run("caption", "photos", "--dry-run", services=world.services)

    assert ran.err.startswith("error: cannot read `photos/b.jpg`: it is ")
    assert ran.out.splitlines()[-3:] == [
        "left to caption: 2 of 3 pictures",
        "1 picture cannot be read",
        "2 pictures, 4 at a time, with the prompt `Describe this image.`",
    ]


def test_pictures_that_cannot_be_read_are_not_probed(photos: Path) -> None:
    drawn(photos)
    (photos / "b.jpg").write_text("hello", "utf-8")
    engine = FakeEngine(describe_photo)
    ran = run("caption", "photos", "--dry-run", services=World(engine).services)

    assert ran.out.splitlines()[-1].endswith(", measured with 2 pictures")
    assert len(engine.requests) == 2


def test_a_dry_run_of_a_run_that_was_begun_says_what_is_left_and_changes_nothing(
    photos: Path,
) -> None:
    drawn(photos)
    answers = iter(["one"])

    def answer(request: GenerationRequest) -> str:
        if (text := next(answers, None)) is None:
            raise KeyboardInterrupt
        return text

    command = ("caption", "photos", "-o", "out.jsonl", "--batch-size", "1")
    run(*command, services=World(FakeEngine(answer)).services)
    before = {path: path.read_bytes() for path in Path().glob("out*")}
    world = World(FakeEngine(), is_cached=False)
    ran = run(*command, "--dry-run", services=world.services)

    assert ran.out.splitlines()[-2] == "left to caption: 2 of 3 pictures"
    assert {path: path.read_bytes() for path in Path().glob("out*")} == before
    other = run(*command, "--dry-run", "-p", "What?", services=World(FakeEngine()).services)
    assert (other.code, "had other settings: prompt:" in other.err) == (2, True)


def test_a_dry_run_with_nothing_left_says_what_failed_before(photos: Path) -> None:
    drawn(photos)

    class Failing(FakeEngine):
        def prepare(
            self, request: GenerationRequest, *, open_image: OpenImage | None = None
        ) -> Prepared:
            if request.attachments[0].source.endswith("b.jpg"):
                raise no_such_file("photos/b.jpg")
            return super().prepare(request, open_image=open_image)

    command = ("caption", "photos", "-o", "out.jsonl")
    assert run(*command, services=World(Failing(describe_photo)).services).code == 3
    ran = run(*command, "--dry-run", services=World(FakeEngine()).services)

    assert (ran.code, ran.err) == (0, "")
    assert ran.out.splitlines()[-2:] == [
        "left to caption: 0 of 3 pictures",
        "1 failed before (`--retry-failed` tries them again)",
    ]


def test_a_dry_run_with_a_model_that_is_here_says_how_long_it_would_take(photos: Path) -> None:
    drawn(photos)
    ran = run("caption", "photos", "--dry-run", services=World(FakeEngine(describe_photo)).services)

    assert ran.out.splitlines()[-1] == "about 1.0 s, measured with three pictures"


def test_workers_divide_the_time_that_a_dry_run_estimates(photos: Path) -> None:
    drawn(photos)

    def estimate(*arguments: str) -> str:
        world = World(FakeEngine(describe_photo))
        words = ("caption", "photos", "--dry-run", "-o", "out.jsonl", *arguments)
        return run(*words, services=world.services).out.splitlines()[-1]

    assert estimate("--devices", "cpu") == estimate()
    assert estimate("--devices", "cpu:2") == (
        "about 0.5 s with 2 workers, measured with three pictures"
    )


def test_a_dry_run_counts_the_memory_for_decoding(photos: Path) -> None:
    drawn(photos)
    ran = run("caption", "photos", "--dry-run", services=World(FakeEngine(describe_photo)).services)
    assert "  reading pictures from their files takes up to 0.9 GiB more" in ran.out

    world = World(FakeEngine(), IDEFICS_JSON="1")
    ran = run("caption", "photos/a.jpg", "--dry-run", services=world.services)
    assert ran.record["decoding_bytes"] == DECODING_BYTES == 1_000_000_000


def test_a_dry_run_in_json_is_one_object() -> None:
    world = World(FakeEngine(), IDEFICS_JSON="1")
    ran = run("caption", "photos/a.jpg", "--dry-run", "-p", "What?", services=world.services)

    assert ran.record["pictures"] == 1
    assert ran.record["prompt"] == "What?"
    assert ran.record["model"] == "smolvlm-256m"


def test_the_time_of_a_run_is_estimated_by_three_of_its_pictures() -> None:
    pictures = tuple(CaptionItem(f"{n}.jpg", Attachment(f"{n}.jpg")) for n in range(101))
    job = CaptionJob(pictures, (CaptionQuestion("What?"),))
    engine = FakeEngine(describe_photo)

    assert seconds_per_picture(job, EngineOf(engine), clock=FakeClock(6.0)) == 2.0
    assert [r.attachments[0].source for r in engine.requests] == ["0.jpg", "50.jpg", "100.jpg"]
    assert engine.is_closed


def test_a_quick_model_is_measured_again_after_its_first_batch() -> None:
    pictures = tuple(CaptionItem(f"{n}.jpg", Attachment(f"{n}.jpg")) for n in range(101))
    job = CaptionJob(pictures, (CaptionQuestion("What?"),), batch_size=4)
    engine = FakeEngine(describe_photo)

    # 0.3 s for the three pictures, and 0.3 s for the sixteen after them.
    seconds = seconds_per_picture(job, EngineOf(engine), clock=FakeClock(0.3))
    assert seconds == pytest.approx(0.3 / 16)
    sources = [r.attachments[0].source for r in engine.requests]
    assert sources[:5] == ["0.jpg", "50.jpg", "100.jpg", "1.jpg", "7.jpg"]
    assert len(set(sources)) == len(sources) == 19


def test_a_probe_of_few_pictures_captions_each_once() -> None:
    pictures = tuple(CaptionItem(f"{n}.jpg", Attachment(f"{n}.jpg")) for n in range(5))
    job = CaptionJob(pictures, (CaptionQuestion("What?"),))
    engine = FakeEngine(describe_photo)
    assert seconds_per_picture(job, EngineOf(engine), clock=FakeClock(0.3)) == pytest.approx(0.15)
    assert len(engine.requests) == 5
