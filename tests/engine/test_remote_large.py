"""A server that refuses large requests gets smaller pictures, once."""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from idefics_cli.cli.services import Services
from idefics_cli.core.errors import ServerError
from idefics_cli.core.types import Attachment, GenerationRequest, Message, Sampling
from idefics_cli.engine.remote.engine import RemoteEngine
from tests.support.commands import Terminal, run
from tests.support.remote import QUICK, Scripted, remote_engine, remote_spec, scripted_server

REFUSAL = Scripted(b"<html><title>Request Entity Too Large</title>", 413)
CHOICE = {"delta": {"content": "Two cats"}, "finish_reason": "stop"}
ANSWER = Scripted(b"data: " + json.dumps({"choices": [CHOICE]}).encode() + b"\n\ndata: [DONE]\n\n")


@pytest.fixture
def photo(tmp_path: Path) -> Attachment:
    path = tmp_path / "photo.png"
    Image.effect_noise((1500, 900), 60).convert("RGB").save(path)
    return Attachment(str(path))


def asking(*parts: str | Attachment) -> GenerationRequest:
    return GenerationRequest((Message("user", parts),), Sampling(max_new_tokens=5))


def pictures(body: bytes) -> list[Image.Image]:
    """Return the pictures of a request."""
    value: Any = json.loads(body)
    parts = [part for message in value["messages"] for part in message["content"]]
    uris = [part["image_url"]["url"] for part in parts if part["type"] == "image_url"]
    return [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in uris]


def test_pictures_are_sent_again_smaller_and_the_user_is_told(photo: Attachment) -> None:
    note = "data:image/png;base64,AAAA is only text"
    told: list[str] = []
    with (
        scripted_server(REFUSAL, ANSWER) as server,
        RemoteEngine(
            remote_spec(server.url), patience=QUICK, progress=lambda text, share: told.append(text)
        ) as engine,
        engine.serve(slots=1) as session,
    ):
        session.put_requests([engine.prepare(asking(photo, note))])
        found = session.get_outcome(20)
    assert found is not None
    assert getattr(found[1], "text", found[1]) == "Two cats"
    assert any("1024 pixels" in text for text in told)
    first, second = (body for _, _, body in server.requests)
    assert [one.size for one in pictures(first)] == [(1500, 900)]
    assert [one.size for one in pictures(second)] == [(1024, 614)]
    assert len(second) < len(first) / 2
    assert note in second.decode()


@pytest.mark.parametrize("streams", [False, True])
def test_single_answers_tell_that_pictures_were_sent_smaller(
    photo: Attachment, *, streams: bool
) -> None:
    told: list[str] = []
    with (
        scripted_server(REFUSAL, ANSWER) as server,
        RemoteEngine(
            remote_spec(server.url), patience=QUICK, progress=lambda text, share: told.append(text)
        ) as engine,
    ):
        prepared = engine.prepare(asking(photo, "What?"))
        for _ in range(2):
            if streams:
                assert "".join(chunk.text for chunk in engine.stream(prepared)) == "Two cats"
            else:
                assert engine.complete([prepared])[0].text == "Two cats"
    (note,) = told
    assert "sent again with at most 1024 pixels a side" in note


def test_ask_and_chat_note_that_pictures_were_sent_smaller(
    photo: Attachment, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    note = "refuses large requests, so their pictures are sent again with at most 1024 pixels"
    models = Scripted(json.dumps({"data": [{"id": "a", "owned_by": "idefics"}]}).encode())
    with scripted_server(models, REFUSAL, ANSWER) as server:
        words = ("ask", "What?", "-i", photo.source, "--server", server.url)
        ran = run(*words, services=Services(environ={}, stdin=None))
    assert (ran.code, ran.out) == (0, "Two cats\n"), ran.err
    assert ran.err.count(note) == 1

    lines = ["What?", "And?"]
    monkeypatch.setattr("builtins.input", lambda prompt="": lines.pop(0) if lines else "/exit")
    with scripted_server(models, models, REFUSAL, ANSWER) as server:
        ran = run(
            *("chat", "--accessible", "-i", photo.source, "--server", server.url),
            services=Services(environ={"HOME": str(tmp_path)}, stdin=Terminal()),
            terminal=True,
        )
    assert ran.code == 0, ran.err
    assert " ".join(ran.err.split()).count(note) == 1


def test_a_server_that_refuses_them_again_is_not_asked_a_third_time(photo: Attachment) -> None:
    with scripted_server(REFUSAL) as server, remote_engine(server.url) as engine:
        with pytest.raises(ServerError, match="413: Request Entity Too Large"):
            engine.complete([engine.prepare(asking(photo, "What?"))])
        assert len(server.requests) == 2
        with pytest.raises(ServerError, match="413"):
            engine.complete([engine.prepare(asking("A long text"))])
        assert len(server.requests) == 3
