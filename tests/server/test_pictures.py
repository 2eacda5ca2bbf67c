"""The pictures of requests: what is read once, and what is read again."""

from __future__ import annotations

import base64

import pytest

from idefics_cli.core.types import Attachment, GenerationRequest, Message
from idefics_cli.server.errors import ApiError
from idefics_cli.server.pictures import RequestPictures
from tests.support.fakes import FakeEngine
from tests.support.http_servers import REMOTE_LIMITS

_FIELD = "messages[0].content[0].image_url.url"


def _request(address: str) -> GenerationRequest:
    return GenerationRequest((Message("user", (Attachment(address), "What is it?")),))


def test_a_known_address_has_the_same_digest_and_can_be_opened_again(scenes: list[str]) -> None:
    pictures, request = RequestPictures(REMOTE_LIMITS, offline=True), _request(scenes[0])
    engines = [FakeEngine(), FakeEngine()]
    prepared = [pictures.prepare(each, request, (_FIELD,)) for each in engines]
    assert engines[0].opened == engines[1].opened
    assert len(engines[0].opened) == 1
    assert prepared[0] == prepared[1]

    pictures.prepare(engines[0], request, (_FIELD,))
    assert len(engines[0].opened) == 1


def test_other_addresses_have_other_digests(scenes: list[str]) -> None:
    pictures, engine = RequestPictures(REMOTE_LIMITS, offline=True), FakeEngine()
    for scene in scenes[:3] * 2:
        pictures.prepare(engine, _request(scene), (_FIELD,))
    assert len(engine.opened) == len(set(engine.opened)) == 3


def test_a_known_address_of_a_bad_picture_gives_the_same_error() -> None:
    pictures = RequestPictures(REMOTE_LIMITS, offline=True)
    address = "data:image/png;base64," + base64.b64encode(b"no picture").decode()
    told = []
    for _ in range(2):
        with pytest.raises(ApiError) as caught:
            pictures.prepare(FakeEngine(), _request(address), (_FIELD,))
        told.append(caught.value.body())
    assert told[0] == told[1]
    assert caught.value.param == _FIELD
