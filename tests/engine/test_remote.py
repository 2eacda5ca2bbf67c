"""The engine that asks a server: what it sends, reads, retries, and gives up."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.core.errors import (
    ContextError,
    IdeficsError,
    ImageError,
    MemoryLimitError,
    NoServerError,
    PromptError,
    ServerError,
    UsageError,
)
from idefics_cli.core.servers import UPLOAD_EDGE
from idefics_cli.core.types import (
    Attachment,
    Completion,
    Constraint,
    GenerationRequest,
    Message,
    PictureDetail,
    Sampling,
    TokenChunk,
)
from idefics_cli.engine.protocol import Engine
from idefics_cli.engine.remote.address import is_local, read_address
from idefics_cli.engine.remote.engine import RemoteEngine
from idefics_cli.engine.remote.width import Width
from tests.support.fakes import FakeEngine
from tests.support.http_servers import ManualEngine, serving, wait_for
from tests.support.remote import (
    QUICK,
    Scripted,
    remote_engine,
    remote_spec,
    scripted_server,
)


def asking(*parts: str | Attachment, **sampling: object) -> GenerationRequest:
    chosen = replace(Sampling(max_new_tokens=50), **sampling)  # type: ignore[arg-type]  # fields
    return GenerationRequest((Message("user", parts or ("Hi",)),), chosen)


def event(text: str = "", finish: str | None = None, **more: object) -> bytes:
    choice = {"index": 0, "delta": {"content": text}, "finish_reason": finish}
    return b"data: " + json.dumps({"choices": [choice], **more}).encode() + b"\n\n"


GOOD = Scripted(event("Two ") + event("cats", "stop") + b"data: [DONE]\n\n")


def answer(engine: Engine, request: GenerationRequest | None = None) -> Completion:
    return engine.complete([engine.prepare(request or asking())])[0]


def joined(chunks: Iterator[TokenChunk]) -> str:
    return "".join(chunk.text for chunk in chunks)


# Against our server


def test_a_streamed_answer_is_the_whole_answer() -> None:
    fake = FakeEngine(lambda request: "two cats on a roof")
    with serving(lambda progress=None: fake) as server, remote_engine(server.url) as engine:
        prepared = engine.prepare(asking())
        whole = answer(engine)
        *_, last = chunks = list(engine.stream(prepared))
        assert whole.text == "".join(each.text for each in chunks) == "two cats on a roof"
        assert (whole.finish, whole.new_tokens, whole.prompt_tokens) == ("stop", 6, 1)
        assert (last.finish, last.new_tokens, last.prompt_tokens) == ("stop", 6, 1)
        assert answer(engine, asking(max_new_tokens=2)).finish == "length"


def test_the_server_gets_the_request_as_it_is(tmp_path: Path) -> None:
    photos = [tmp_path / "a.jpg", tmp_path / "b.png"]
    for photo, colour in zip(photos, ("red", "blue"), strict=True):
        # Neither quality nor level is the usual one: nothing else than the file has these bytes.
        Image.new("RGB", (40, 30), colour).save(photo, quality=30, compress_level=0)
    first, second = (Attachment(str(photo)) for photo in photos)
    low = replace(second, detail=PictureDetail(splitting=False))
    sampling = Sampling(0.5, 0.9, 7, 1.2, 50, 3, ("END",))
    request = GenerationRequest(
        (
            Message("system", ("Be brief.",)),
            Message("user", ("Between ", first, " and", low)),
            Message("assistant", ("Both.",)),
            Message("user", ("Why?",)),
        ),
        sampling,
        constraint=Constraint("regex", "a+"),
        banned=("large",),
    )
    fake = FakeEngine("aaa")
    with serving(lambda progress=None: fake) as server, remote_engine(server.url) as engine:
        prepared = engine.prepare(request)
        assert [each.size for each in prepared.pictures] == [(40, 30)] * 2
        engine.complete([prepared])
    (got,) = fake.requests
    assert (got.sampling, got.banned, got.constraint) == (sampling, ("large",), request.constraint)
    shapes = [[p if isinstance(p, str) else p.detail for p in m.parts] for m in got.messages]
    assert shapes[1] == ["Between ", PictureDetail(), " and", PictureDetail(splitting=False)]
    assert [m.role for m in got.messages] == ["system", "user", "assistant", "user"]
    sent = [Path(a.source) for a in request.attachments]
    digests = [a.digest for a in got.attachments]
    assert digests == [hashlib.sha256(path.read_bytes()).hexdigest() for path in sent]


def test_a_raw_prompt_goes_to_the_endpoint_for_raw_prompts(tmp_path: Path) -> None:
    Image.new("RGB", (9, 9)).save(tmp_path / "a.png")
    request = replace(asking("A ", Attachment(str(tmp_path / "a.png")), " is"), mode="complete")
    fake = FakeEngine("red")
    with serving(lambda progress=None: fake) as server, remote_engine(server.url) as engine:
        assert answer(engine, request).text == "red"
    assert fake.requests[0].mode == "complete"
    assert [isinstance(p, str) for p in fake.requests[0].messages[0].parts] == [True, False, True]


def test_a_cancelled_reply_frees_its_place_at_the_server() -> None:
    manual = ManualEngine()
    with serving(lambda progress=None: manual) as server, remote_engine(server.url) as engine:
        cancel = threading.Event()
        chunks = engine.stream(engine.prepare(asking()), cancel=cancel)
        threading.Timer(0.3, lambda: manual.open[0].say("Two")).start()
        assert next(chunks).text == "Two"
        cancel.set()
        *_, last = chunks
        assert last.finish == "cancelled"
        wait_for(lambda: manual.cancelled == 1)
        # The iterator of a reply that nobody reads further.
        chunks = engine.stream(engine.prepare(asking()))
        threading.Timer(0.3, lambda: manual.open[0].say("Two")).start()
        next(chunks)
        chunks.close()  # type: ignore[attr-defined]  # it is a generator
        wait_for(lambda: manual.cancelled == 2)
        server.wait_until_idle()


def test_closing_the_engine_ends_its_requests() -> None:
    manual, events = ManualEngine(), list[object]()
    with serving(lambda progress=None: manual) as server:
        engine = remote_engine(server.url)
        engine.submit(engine.prepare(asking()), events.append)
        wait_for(lambda: bool(manual.open))
        engine.close()
        wait_for(lambda: bool(events))
        assert isinstance(events[0], Completion)
        assert events[0].finish == "cancelled"
        wait_for(lambda: manual.cancelled == 1)


def test_the_key_is_sent_and_shown_nowhere() -> None:
    with scripted_server(GOOD) as server:
        spec = remote_spec(server.url, key="secret-1234")
        assert "secret" not in repr(spec)
        with remote_engine(server.url, key="secret-1234") as engine:
            answer(engine)
        assert server.requests[0][1]["authorization"] == "Bearer secret-1234"


def test_the_key_follows_no_redirect() -> None:
    with scripted_server(GOOD) as other:
        moved = Scripted(status=307, headers={"Location": f"{other.url}/v1/chat/completions"})
        with scripted_server(moved) as server:
            with (
                remote_engine(server.url, key="secret-1234") as engine,
                pytest.raises(ServerError, match="answers 307"),
            ):
                answer(engine)
            assert other.requests == []


def test_neither_netrc_nor_a_proxy_gets_between(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / ".netrc").write_text("default login me password other\n")
    for name, value in (("HOME", str(tmp_path)), ("NETRC", str(tmp_path / ".netrc"))):
        monkeypatch.setenv(name, value)
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with scripted_server(GOOD) as server, remote_engine(server.url, key="secret-1234") as engine:
        answer(engine)
        assert server.requests[0][1]["authorization"] == "Bearer secret-1234"


@pytest.mark.parametrize(
    "body", [b"data: " + b"x" * 5_000_000, (b": " + b"x" * 60_000 + b"\n") * 1200]
)
def test_an_answer_without_an_end_is_not_read_to_its_end(body: bytes) -> None:
    with (
        scripted_server(Scripted(body)) as server,
        remote_engine(server.url) as engine,
        pytest.raises(ServerError, match="far too long"),
    ):
        answer(engine)


# Answers of other servers


@pytest.mark.parametrize(
    "body",
    [
        event("Two ") + event("cats", "stop"),  # no [DONE]
        (event("Two ") + event("cats", "stop")).replace(b"\n", b"\r\n"),
        (event("Two ") + event("cats", "stop")).replace(b"data: ", b"data:"),
        b": ping\n\n" + event("Two ") + b"event: x\nid: 7\n" + event("cats", "stop"),
        event("Two cats") + event("", "stop") + b'data: {"choices": null, "usage": {}}\n\n',
        event("Two ") + b'data: {"choices": []}\n\n' + event("cats", "eos_token"),
        b'data: {"choices": [{"delta": {"content": [{"type": "text", "text": "Two "}]}}]}\n\n'
        b'data: {"choices": [{"delta": {"reasoning_content": "hm"}}]}\n\n' + event("cats", "stop"),
    ],
)
def test_streams_of_all_shapes_are_read(body: bytes) -> None:
    with scripted_server(Scripted(body)) as server, remote_engine(server.url) as engine:
        assert answer(engine).text == "Two cats"
        assert joined(engine.stream(engine.prepare(asking()))) == "Two cats"


def test_a_server_that_does_not_stream_is_read() -> None:
    message = {"choices": [{"message": {"content": "Two cats"}, "finish_reason": "stop"}]}
    whole = Scripted(json.dumps(message).encode(), headers={"Content-Type": "application/json"})
    with scripted_server(whole) as server, remote_engine(server.url) as engine:
        assert joined(engine.stream(engine.prepare(asking()))) == "Two cats"


def error(message: str, **more: object) -> bytes:
    return json.dumps({"error": {"message": message, **more}}).encode()


@pytest.mark.parametrize(
    ("scripted", "kind", "words"),
    [
        (Scripted(error("no key"), 401), NoServerError, "answers 401: no key"),
        (Scripted(b'{"error": "no\\u001b[0m"}', 403), NoServerError, "answers 403: no"),
        (Scripted(b'{"detail": "Not Found"}', 404), NoServerError, "answers 404: Not Found"),
        (Scripted(b'{"detail": [{"msg": "bad"}]}', 422), ServerError, "answers 422: bad"),
        (Scripted(b'{"object": "error", "message": "bad"}', 400), ServerError, "400: bad"),
        (Scripted(b"<html><title>Too large</title>", 413), ServerError, "413: Too large"),
        (Scripted(error("x", code="image_too_large"), 400), ImageError, "400: x"),
        (
            Scripted(error("x", code="out_of_memory"), 500, {"x-should-retry": "false"}),
            MemoryLimitError,
            "500: x",
        ),
        (Scripted(b"data: " + error("oh") + b"\n\n"), ServerError, "broke its answer off: oh"),
        (Scripted(event("", "content_filter")), ServerError, "content_filter"),
        (Scripted(event("Two cats")), ServerError, "broke its answer off"),
        (Scripted(b"data: {\n\n"), ServerError, "not JSON"),
        (Scripted(status=0), ServerError, "did not answer"),
        (Scripted(event("Two"), hangs=True), ServerError, "no answer in time"),
    ],
)
def test_errors_of_all_shapes_are_told(
    scripted: Scripted, kind: type[IdeficsError], words: str
) -> None:
    few = replace(QUICK, tries=2)
    with scripted_server(scripted) as server, remote_engine(server.url, few) as engine:
        with pytest.raises(kind) as caught:
            answer(engine)
        assert words in str(caught.value)
        assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize(
    "message",
    [
        "this model's maximum context length is 90 tokens, and the prompt has 120",
        "This model's maximum context length is 90 tokens. However, you requested 120 tokens",
        "request (120 tokens) exceeds the available context size (90 tokens), try increasing it",
    ],
)
def test_a_prompt_that_is_too_long_is_a_context_error(message: str) -> None:
    with (
        scripted_server(Scripted(error(message), 400)) as server,
        remote_engine(server.url) as engine,
        pytest.raises(ContextError) as caught,
    ):
        answer(engine)
    assert (caught.value.prompt_tokens, caught.value.context_tokens) == (120, 90)


@pytest.mark.parametrize(
    "failing",
    [
        Scripted(status=0),
        Scripted(b"<html>", 500),
        Scripted(error("busy"), 429, {"Retry-After": "0"}),
        Scripted(error("busy"), 503, {"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        Scripted(event("Two ")),
        Scripted(event("Two "), hangs=True),
        Scripted(b"data: " + error("oh", code="internal_error") + b"\n\n"),
    ],
)
def test_a_request_that_failed_for_now_is_sent_again(failing: Scripted) -> None:
    with (
        scripted_server(failing, failing, GOOD) as server,
        remote_engine(server.url) as engine,
    ):
        assert answer(engine).text == "Two cats"
        first, *others = server.requests
        assert [each[2] for each in others] == [first[2]] * 2


def test_text_that_was_shown_is_not_shown_twice() -> None:
    with scripted_server(Scripted(event("Two ")), GOOD) as server:
        chunks = (engine := remote_engine(server.url)).stream(engine.prepare(asking()))
        assert next(chunks).text == "Two "
        with pytest.raises(ServerError, match="broke its answer off"):
            next(chunks)
        assert len(server.requests) == 1


def test_ctrl_c_is_not_delayed_by_a_long_wait() -> None:
    busy = Scripted(error("busy"), 503, {"Retry-After": "500"})
    with scripted_server(busy) as server, remote_engine(server.url) as engine:
        cancel = threading.Event()
        threading.Timer(0.2, cancel.set).start()
        started = time.monotonic()
        (reply,) = engine.complete([engine.prepare(asking())], cancel=cancel)
        assert reply.finish == "cancelled"
        assert time.monotonic() - started < 5


# Sessions


def test_a_session_outlives_requests_that_fail() -> None:
    bad = Scripted(error("bad"), 400)
    with (
        scripted_server(GOOD, bad, GOOD) as server,
        remote_engine(server.url) as engine,
        engine.serve(slots=4) as session,
    ):
        kinds = []
        for _ in range(3):
            assert session.room == 1
            session.put_requests([engine.prepare(asking())])
            found = session.get_outcome()
            assert found is not None
            kinds.append(type(found[1]))
        assert kinds == [Completion, ServerError, Completion]
        assert session.get_outcome() is None


def test_a_server_that_is_gone_ends_the_session() -> None:
    with scripted_server(GOOD) as server:
        url = server.url
    with remote_engine(url) as engine, engine.serve(slots=4) as session:
        session.put_requests([engine.prepare(asking())])
        with pytest.raises(NoServerError, match="nothing listens there; no answer for"):
            session.get_outcome()


def test_a_person_does_not_wait_for_a_server_that_is_not_there() -> None:
    with scripted_server(GOOD) as server:
        url = server.url
    patient = replace(QUICK, gone_seconds=600)
    with remote_engine(url, patient) as engine, pytest.raises(NoServerError) as caught:
        answer(engine)
    assert "cannot reach" in str(caught.value)
    assert "is it running?" in str(caught.value.hint)


def test_one_answer_that_asks_for_a_pause_pauses_all_requests() -> None:
    busy = Scripted(error("busy"), 503, {"Retry-After": "1"})
    with (
        scripted_server(busy, GOOD) as server,
        remote_engine(server.url) as engine,
        engine.serve(slots=1) as session,
    ):
        session.put_requests([engine.prepare(asking())])
        wait_for(lambda: len(server.requests) == 1)
        time.sleep(0.1)
        started = time.monotonic()
        assert answer(engine).text == "Two cats"
        assert time.monotonic() - started > 0.5
        assert session.get_outcome() is not None


def test_a_run_is_told_why_it_waits() -> None:
    busy = Scripted(error("the queue is full"), 503, {"Retry-After": "0"})
    notes: list[tuple[str, float | None]] = []
    with scripted_server(busy, busy, GOOD) as server:
        spec = remote_spec(server.url)

        def note(phase: str, share: float | None) -> None:
            notes.append((phase, share))

        with (
            RemoteEngine(spec, patience=QUICK, progress=note) as engine,
            engine.serve(slots=1) as session,
        ):
            session.put_requests([engine.prepare(asking())])
            assert session.get_outcome() is not None
        url = f"{server.url}/v1"
    assert notes == [(f"{url} answers 503: the queue is full; waiting 0.0 s", None)]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(("gains_up_to", "most", "expected"), [(1, 16, 1), (4, 16, 4), (64, 6, 6)])
def test_the_number_of_requests_at_a_time_grows_as_long_as_it_helps(
    gains_up_to: int, most: int, expected: int
) -> None:
    clock = Clock()
    width = Width(most, clock)
    for _ in range(200):
        clock.now += 1 / min(width.count, gains_up_to)
        width.note_answer()
        assert width.count <= most
    assert width.count == expected
    width.note_overload()
    assert width.count == max(1, expected // 2)


# Pictures


def photo(path: Path, size: tuple[int, int], format: str) -> Attachment:
    Image.effect_noise(size, 60).convert("RGB").save(path, format)
    return Attachment(str(path))


def test_other_servers_get_jpeg_or_png_of_bounded_size(tmp_path: Path) -> None:
    pictures = [
        photo(tmp_path / "a.webp", (3000, 150), "WEBP"),
        photo(tmp_path / "b.tif", (50, 40), "TIFF"),
    ]
    with scripted_server(GOOD) as server, remote_engine(server.url, owner="vllm") as engine:
        prepared = engine.prepare(asking(*pictures, "What is it?"))
        assert [each.size for each in prepared.pictures] == [(3000, 150), (50, 40)]
        engine.complete([prepared])
        body = json.loads(server.requests[0][2])
    uris = [p["image_url"]["url"] for p in body["messages"][0]["content"] if "image_url" in p]
    sent = [Image.open(io.BytesIO(base64.b64decode(uri.partition(",")[2]))) for uri in uris]
    assert [image.size for image in sent] == [(UPLOAD_EDGE, UPLOAD_EDGE // 20), (50, 40)]
    assert {image.format for image in sent} <= {"JPEG", "PNG"}
    assert not {"priority", "top_k", "repetition_penalty"} & body.keys()
    assert (body["stream"], body["stream_options"]) == (True, {"include_usage": True})


def test_what_other_servers_would_drop_silently_is_refused() -> None:
    with remote_engine("http://127.0.0.1:9", owner="library") as engine:
        for request in (
            replace(asking(), banned=("large",)),
            replace(asking(), constraint=Constraint("regex", "a+")),
            replace(asking(), constraint=Constraint("choice", '["a", "b"]')),
            asking(Attachment("a.png", detail=PictureDetail(longest_edge=9)), "What?"),
        ):
            with pytest.raises(PromptError):
                answer(engine, request)


def test_a_bad_picture_is_found_before_it_is_sent(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("no picture")
    with scripted_server(GOOD) as server, remote_engine(server.url) as engine:
        with pytest.raises(ImageError):
            engine.prepare(asking(Attachment(str(tmp_path / "a.jpg")), "What?"))
        assert server.requests == []


# Addresses


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("http://127.0.0.1:8000", "http://127.0.0.1:8000/v1"),
        ("http://127.0.0.1:8000/", "http://127.0.0.1:8000/v1"),
        ("https://a.example/v1/", "https://a.example/v1"),
        ("http://[::1]:8000/v1/chat/completions", "http://[::1]:8000/v1"),
        ("https://a.example/api/openai", "https://a.example/api/openai"),
    ],
)
def test_an_address_is_completed(text: str, expected: str) -> None:
    assert read_address(text) == expected


@pytest.mark.parametrize(
    "text",
    [
        "127.0.0.1:8000",
        "ftp://a.example",
        "http://",
        "http://a.example:x",
        "http://[::1",
        "http://me:secret@a.example",
        "http://a.example/v1?key=secret",
        "http://a.example/\x1b[0m",
    ],
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        read_address(text)
    assert "\x1b" not in str(caught.value)
    assert "me:secret" not in str(caught.value)


def test_loopback_is_known() -> None:
    assert all(
        is_local(f"http://{host}/v1") for host in ("127.0.0.2", "[::1]", "localhost", "localhost.")
    )
    assert not any(is_local(f"http://{host}/v1") for host in ("10.0.0.1", "localhost.example"))
