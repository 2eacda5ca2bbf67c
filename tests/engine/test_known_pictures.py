"""A picture that the engine remembers by the digest of its file is not opened again."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pytest
from PIL import Image

from idefics_cli.core.types import Attachment, GenerationRequest, ImageLimits, Message, Sampling
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.local.inference import Inference
from idefics_cli.engine.local.tuning import Tuning
from idefics_cli.engine.protocol import OpenImage
from idefics_cli.images.loader import ImageLoader
from idefics_cli.images.media import MediaLoader
from tests.support.prompts import reopen
from tests.support.tiny import CHATTING

EngineOf = Callable[[str], LocalEngine]


def save(folder: Path, name: str, color: str) -> Attachment:
    path = folder / name
    Image.effect_noise((90, 60), 80).convert("RGB").save(path)
    with Image.open(path) as image:
        Image.blend(image.convert("RGB"), Image.new("RGB", image.size, color), 0.4).save(path)
    return Attachment(str(path), hashlib.sha256(path.read_bytes()).hexdigest())


def about(*attachments: Attachment) -> GenerationRequest:
    message = Message("user", (*attachments, "What is it?"))
    return GenerationRequest((message,), Sampling(max_new_tokens=5))


def counted(opened: list[str]) -> OpenImage:
    loader = ImageLoader(ImageLimits())

    def open_image(attachment: Attachment, draft_edge: int) -> Image.Image:
        opened.append(attachment.source)
        return loader.open(attachment, draft_edge=draft_edge)

    return open_image


@pytest.mark.parametrize("kind", CHATTING)
def test_a_picture_is_opened_once_and_the_answers_are_equal(
    kind: str, endless: EngineOf, tmp_path: Path
) -> None:
    engine = endless(kind)
    first, second = save(tmp_path, "a.png", "red"), save(tmp_path, "b.png", "blue")
    opened: list[str] = []
    prepared = engine.prepare(about(first), open_image=counted(opened))
    assert engine.prepare(about(first), open_image=counted(opened)).pictures == prepared.pictures
    (answer,) = engine.complete([prepared])
    del prepared
    both = engine.prepare(about(first, second), open_image=counted(opened))
    assert opened == [first.source, second.source]
    (expected,) = engine.complete(
        [engine.prepare(about(Attachment(first.source), Attachment(second.source)))]
    )
    (given,) = engine.complete([both])
    assert given.token_ids == expected.token_ids
    assert answer.prompt_tokens < given.prompt_tokens == expected.prompt_tokens


def test_a_file_of_the_same_bytes_is_decoded_once_and_a_changed_file_again(
    endless: EngineOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine, decoded = endless("idefics2"), []
    open_stream = ImageLoader.open_stream

    def watched(self: ImageLoader, stream: BinaryIO, source: str, **options: Any) -> Image.Image:
        decoded.append(source)
        return open_stream(self, stream, source, **options)

    monkeypatch.setattr(ImageLoader, "open_stream", watched)
    attachment = Attachment(save(tmp_path, "a.png", "red").source)
    copy = tmp_path / "copy.png"
    copy.write_bytes(Path(attachment.source).read_bytes())
    first = engine.prepare(about(attachment, Attachment(str(copy)))).pictures
    assert engine.prepare(about(attachment)).pictures == first[:1] == first[1:]
    assert decoded == [attachment.source]
    Path(attachment.source).write_bytes(Path(save(tmp_path, "b.png", "blue").source).read_bytes())
    assert engine.prepare(about(attachment)).pictures != first[:1]
    assert decoded == [attachment.source] * 2


def test_a_file_too_large_to_be_read_whole_is_decoded_from_the_disk(tmp_path: Path) -> None:
    attachment = Attachment(save(tmp_path, "a.png", "red").source)
    same, decode = MediaLoader(ImageLimits(max_bytes=100)).read(attachment)
    assert same == attachment
    image = decode(same, 1000)
    assert isinstance(image, Image.Image)
    assert image.tobytes() == ImageLoader(ImageLimits()).open(attachment).tobytes()


def test_without_a_digest_a_picture_is_opened_every_time(endless: EngineOf, tmp_path: Path) -> None:
    attachment = Attachment(save(tmp_path, "a.png", "red").source)
    opened: list[str] = []
    for _ in range(2):
        endless("idefics2").prepare(about(attachment), open_image=counted(opened))
    assert opened == [attachment.source] * 2


def test_a_picture_is_opened_again_when_newer_ones_took_its_memory(
    endless: EngineOf, tmp_path: Path
) -> None:
    with reopen(
        endless("idefics2"), partial(Inference, tuning=Tuning(tile_bytes=15_000))
    ) as engine:
        first, second = save(tmp_path, "a.png", "green"), save(tmp_path, "b.png", "red")
        opened: list[str] = []
        for attachment in (first, first, second, first):
            engine.prepare(about(attachment), open_image=counted(opened))
    assert opened == [first.source, second.source, first.source]


def test_files_of_equal_pixels_keep_their_own_sizes(endless: EngineOf, tmp_path: Path) -> None:
    large, small = tmp_path / "large.png", tmp_path / "small.png"
    Image.new("RGB", (512, 256), "red").save(large)
    Image.new("RGB", (256, 128), "red").save(small)
    attachments = [
        Attachment(str(path), hashlib.sha256(path.read_bytes()).hexdigest())
        for path in (large, small)
    ]
    engine = endless("smolvlm")
    prepared = engine.prepare(about(*attachments))
    again = engine.prepare(about(*attachments))
    assert [p.size for p in prepared.pictures] == [(512, 256), (256, 128)]
    assert [p.size for p in again.pictures] == [(512, 256), (256, 128)]


def test_the_context_of_the_engine_is_that_of_its_measure(endless: EngineOf) -> None:
    engine = endless("idefics2")
    assert engine.measure(engine.prepare(about())).context_tokens == engine.context_tokens
