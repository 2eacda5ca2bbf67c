"""The requests of a job, their seeds, and the size of its batches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.job import (
    CaptionJob,
    CaptionQuestion,
    automatic_batch_size,
    automatic_readers,
)
from idefics_cli.core.types import (
    Attachment,
    GenerationRequest,
    Message,
    Mode,
    Sampling,
)
from idefics_cli.engine.protocol import OpenImage, Prepared
from idefics_cli.models.families.picture import PreparedPicture, digest_of
from tests.support.captioning import (
    photo_job,
    run_job,
)
from tests.support.fakes import FakeEngine


class PixelEngine(FakeEngine):
    """Opens each picture by itself, and answers with the seed of the request."""

    def prepare(
        self, request: GenerationRequest, *, open_image: OpenImage | None = None
    ) -> Prepared:
        with Image.open(request.attachments[0].source) as image:
            digest = digest_of([image.convert("RGB")])
        return Prepared(request, (PreparedPicture(digest, (8, 8), ((8, 8),)),))


def seeded(
    folder: Path, names: Sequence[str], seed: int, *, temperature: float = 1.0
) -> dict[str, str]:
    """Return the answers about the files *names*, which tell the seeds of the requests."""
    paths = [str(folder / name) for name in names]
    settings = Sampling(temperature=temperature, seed=seed)
    engine = PixelEngine(lambda request: f"seed {request.sampling.seed}")
    records = run_job(photo_job(paths, batch_size=len(names) // 2 or 1, sampling=settings), engine)
    return {Path(r.file_name).name: r.caption or "" for r in records}


def test_the_seed_of_a_picture_depends_on_its_content_and_the_seed_of_the_run(
    tmp_path: Path,
) -> None:
    for name, colour in (("a.png", "red"), ("b.png", "blue"), ("copy of a.png", "red")):
        Image.new("RGB", (8, 8), colour).save(tmp_path / name)

    one = seeded(tmp_path, ["a.png", "b.png", "copy of a.png"], 1)
    assert one["a.png"] == one["copy of a.png"] != one["b.png"]
    assert seeded(tmp_path, ["b.png", "a.png"], 1) == {k: one[k] for k in ("a.png", "b.png")}
    assert seeded(tmp_path, ["a.png"], 2)["a.png"] != one["a.png"]


def test_a_greedy_run_keeps_the_seed_of_the_user(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")

    assert seeded(tmp_path, ["a.png"], 7, temperature=0.0) == {"a.png": "seed 7"}


def test_a_request_has_the_picture_before_the_prompt() -> None:
    chat = photo_job(["a.jpg"])
    (picture,) = chat.pictures
    (request,) = chat.requests(picture)
    assert picture.key == "a.jpg"
    assert request == GenerationRequest(
        (Message("user", (Attachment("a.jpg"), "Describe this image.")),), Sampling(), "chat"
    )

    base = CaptionJob(chat.pictures, (CaptionQuestion("In this image,"),), mode="complete")
    (request,) = base.requests(picture)
    assert request.messages == (Message("user", (Attachment("a.jpg"), " In this image,")),)
    assert request.mode == "complete"


@pytest.mark.parametrize("mode", ["chat", "complete"])
def test_a_mark_in_the_prompt_is_the_place_of_the_picture(mode: Mode) -> None:
    pictures = photo_job(["a.jpg"]).pictures
    job = CaptionJob(pictures, (CaptionQuestion("<image>In this image,"),), mode=mode)
    (request,) = job.requests(pictures[0])
    assert request.messages == (Message("user", (Attachment("a.jpg"), "In this image,")),)


def test_the_value_of_a_field_has_no_marks() -> None:
    item = CaptionItem("a.jpg", Attachment("a.jpg"), columns=(("hint", "<image> [1]"),))
    questions = tuple(map(CaptionQuestion, ("Is [1] {hint}? [1]!", "{hint}", "{{[1]}}")))
    requests = CaptionJob([item], questions, columns=("hint",)).requests(item)
    assert [request.messages[0].parts for request in requests] == [
        ("Is ", item.attachment, " <image> [1]? the image!"),
        (item.attachment, "<image> [1]"),
        ("{", item.attachment, "}"),
    ]


GIB = 2**30


@pytest.mark.parametrize(
    ("device", "parameters", "spare_bytes", "expected"),
    [
        ("cuda:1", 8_000_000_000, 60 * GIB, 31),
        ("cuda:1", 8_000_000_000, 130 * GIB, 64),
        ("cuda", 8_000_000_000, 10 * GIB, 6),
        ("cuda", 8_000_000_000, GIB, 1),
        ("cpu", 500_000_000, 60 * GIB, 16),
        ("cpu", 2_000_000_000, 60 * GIB, 8),
        ("cpu", 500_000_000, 10 * GIB, 3),
        ("cpu", 8_000_000_000, 60 * GIB, 4),
        ("mps", 8_000_000_000, 0, 1),
        ("cpu", 8_000_000_000, -GIB, 1),
    ],
)
def test_the_automatic_batch_fits_the_spare_memory_with_more_room_on_a_cpu(
    device: str, parameters: int, spare_bytes: int, expected: int
) -> None:
    size = automatic_batch_size(device, parameters, spare_bytes=spare_bytes, picture_bytes=2 * GIB)
    assert size == expected


def test_a_gpu_gets_a_reader_for_each_core_up_to_eight() -> None:
    assert [automatic_readers("cuda:1", cores) for cores in (2, 6, 64)] == [4, 6, 8]
    assert [automatic_readers("cpu", cores) for cores in (2, 6, 64)] == [4, 4, 4]
