"""What every engine promises, whatever answers behind it."""

from __future__ import annotations

import pickle
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.core.errors import ImageError
from idefics_cli.core.types import (
    Attachment,
    GenerationRequest,
    Message,
    PictureDetail,
    Sampling,
)
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.local.inference import Inference
from idefics_cli.engine.local.tuning import Tuning
from idefics_cli.engine.protocol import Engine, Prepared
from tests.support.fakes import FakeEngine
from tests.support.http_servers import serving
from tests.support.prompts import open_engine
from tests.support.remote import digest_answer, remote_engine

# Far less than the pixels of one picture.
TINY_STORE = partial(Inference, stop_ids=(), tuning=Tuning(tile_bytes=1))


def describe(request: GenerationRequest) -> str:
    return " ".join(Path(each.source).stem for each in request.attachments)


@pytest.fixture(params=["local", "fake", "remote"])
def engine(request: pytest.FixtureRequest, checkpoint: Callable[[str], Path]) -> Iterator[Engine]:
    """Every engine; the next one has a row here."""
    if request.param == "fake":
        yield FakeEngine(describe)
        return
    if request.param == "remote":
        fake = FakeEngine(digest_answer)
        with serving(lambda progress=None: fake) as server, remote_engine(server.url) as remote:
            yield remote
        return
    with open_engine(checkpoint("idefics3"), "idefics3", TINY_STORE) as engine:
        yield engine


@pytest.fixture
def photos(tmp_path: Path) -> list[Attachment]:
    """Return pictures that differ."""
    found = []
    for number in range(4):
        path = tmp_path / f"{number}.png"
        # The same pictures in every run: answers of a random model about others may be equal.
        pixels = random.Random(number).randbytes(90 * 60 * 3)
        Image.frombytes("RGB", (90, 60), pixels).save(path)
        found.append(Attachment(str(path)))
    return found


def about(*attachments: Attachment) -> GenerationRequest:
    message = Message("user", (*attachments, "What is it?"))
    return GenerationRequest((message,), Sampling(max_new_tokens=5))


def text(engine: Engine, prepared: Prepared) -> str:
    return engine.complete([prepared])[0].text


def test_a_prepared_request_pickles_without_torch(engine: Engine, photos: list[Attachment]) -> None:
    prepared = engine.prepare(about(*photos[:2]))
    data = pickle.dumps(prepared)
    assert pickle.loads(data) == prepared
    assert len(data) < 2000, "it holds no pixels"
    script = (
        "import pickle, sys; prepared = pickle.load(sys.stdin.buffer);"
        "print(len(prepared.pictures), 'torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", script], input=data, capture_output=True)
    assert (run.stdout.split(), run.stderr) == ([b"2", b"False"], b"")


def test_a_request_that_was_pickled_gets_the_same_answer(
    engine: Engine, photos: list[Attachment]
) -> None:
    prepared = [engine.prepare(about(each)) for each in photos]
    pickled = [pickle.loads(pickle.dumps(each)) for each in prepared]
    expected = [text(engine, engine.prepare(about(each))) for each in photos]
    assert len(set(expected)) == len(photos)
    assert [text(engine, each) for each in pickled] == expected
    assert [text(engine, each) for each in prepared] == expected
    assert [engine.measure(each) for each in pickled] == [engine.measure(e) for e in prepared]


def test_a_picture_without_its_tiles_survives_the_pickle(
    engine: Engine, photos: list[Attachment]
) -> None:
    prepared = engine.prepare(about(photos[0]))
    whole = Prepared(prepared.request, tuple(p.without_tiles() for p in prepared.pictures))
    expected = engine.measure(whole)
    again = pickle.loads(pickle.dumps(whole))
    # Newer pictures take the memory of the pixels.
    for each in photos[1:]:
        engine.prepare(about(each))
    assert text(engine, again) == text(engine, whole)
    assert engine.measure(again) == expected


# The engine that holds tensors


def test_a_session_has_one_slot_or_more(engine: Engine) -> None:
    for slots in (0, -1):
        with pytest.raises(ValueError, match=f"1 or more, not {slots}"):
            engine.serve(slots=slots)


def test_a_closed_engine_takes_no_request_and_tells_no_listener(engine: Engine) -> None:
    prepared, events = engine.prepare(about()), list[object]()
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.submit(prepared, events.append)
    with pytest.raises(RuntimeError, match="closed"):
        engine.serve(slots=1)
    assert events == []


@pytest.fixture
def local(checkpoint: Callable[[str], Path]) -> Iterator[LocalEngine]:
    with open_engine(checkpoint("idefics2"), "idefics2", TINY_STORE) as engine:
        yield engine


def test_callers_that_hold_many_requests_hold_no_pixels(
    local: LocalEngine, photos: list[Attachment]
) -> None:
    pictures = local.inference.pictures
    prepared = [local.prepare(about(photos[0]))]
    alone = pictures.held_bytes
    assert alone > 0
    for number in range(20):
        prepared.append(local.prepare(about(photos[number % 4])))
        assert pictures.held_bytes <= 2 * alone
    for each in prepared:
        text(local, each)
    assert pictures.held_bytes == 0, "the features exist"


def test_a_picture_that_changed_after_it_was_prepared_is_an_error(
    local: LocalEngine, photos: list[Attachment]
) -> None:
    prepared = local.prepare(about(photos[0]))
    Path(photos[0].source).write_bytes(Path(photos[1].source).read_bytes())
    local.prepare(about(photos[2]))
    local.prepare(about(photos[3]))
    with pytest.raises(ImageError, match="another picture than when it was prepared"):
        local.complete([prepared])
    with local.serve(slots=2) as session:
        session.put_requests([prepared, local.prepare(about(photos[2]))])
        outcomes = dict(filter(None, [session.get_outcome(), session.get_outcome()]))
    assert isinstance(outcomes[0], ImageError)
    assert not isinstance(outcomes[1], Exception)


def test_a_request_of_another_model_is_an_error(
    local: LocalEngine, photos: list[Attachment], checkpoint: Callable[[str], Path]
) -> None:
    with open_engine(checkpoint("idefics3"), "idefics3") as other:
        prepared = other.prepare(about(photos[0]))
    with pytest.raises(ImageError) as caught:
        local.complete([prepared])
    assert "prepared for another model" in str(caught.value.hint)


def test_a_picture_that_is_opened_again_keeps_its_detail(
    photos: list[Attachment], checkpoint: Callable[[str], Path]
) -> None:
    whole = replace(photos[0], detail=PictureDetail(splitting=False))
    with open_engine(checkpoint("idefics3"), "idefics3", TINY_STORE) as engine:
        prepared = engine.prepare(about(whole))
        expected = engine.complete([prepared])[0].token_ids
        assert expected != engine.complete([engine.prepare(about(photos[0]))])[0].token_ids
        engine.inference.drop_caches()
        assert engine.complete([prepared])[0].token_ids == expected
