"""A store with the API of S3, of whose answers a fifth are errors: no picture is lost.

It needs `pip install s3fs 'moto[server,s3]'`: `pytest -m slow tests/cli/test_s3.py`.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest

from tests.support.commands import World, run
from tests.support.fakes import FakeEngine
from tests.support.sources import PICTURE

pytestmark = pytest.mark.slow
COUNT = 500
SECRETS = ("AKIAHUNTER2", "hunter2hunter2")


class Faulty:
    """A WSGI application, of whose answers a part are errors.

    Args:
        inner: The application.

    Attributes:
        rate: The part.
        failed: Number of these answers.
    """

    def __init__(self, inner: Any) -> None:
        self._inner = inner
        self._random = random.Random(1)
        self.rate = 0.0
        self.failed = 0

    def __call__(self, environ: Any, start: Callable[..., object]) -> Any:
        if self._random.random() >= self.rate:
            return self._inner(environ, start)
        self.failed += 1
        start("503 Slow Down", [("Content-Type", "application/xml")])
        return [b"<Error><Code>SlowDown</Code><Message>slow down</Message></Error>"]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Faulty]:
    pytest.importorskip("s3fs")
    moto = pytest.importorskip("moto.server")
    serving = pytest.importorskip("werkzeug.serving")
    app = Faulty(moto.DomainDispatcherApplication(moto.create_backend_app))
    server = serving.make_server("127.0.0.1", 0, app, threaded=True)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.port}")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    for name, value in zip(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), SECRETS, strict=True):
        monkeypatch.setenv(name, value)
    yield app
    server.shutdown()


@pytest.mark.filterwarnings("ignore")  # those of botocore and of moto
def test_every_picture_is_captioned_once(
    store: Faulty, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    system = pytest.importorskip("s3fs").S3FileSystem()
    system.mkdir("pictures")
    for number in range(COUNT):
        system.pipe_file(f"pictures/in/{number // 100}/{number:03}.png", PICTURE)
    store.rate = 0.2
    services = World(FakeEngine(lambda request: "a caption")).services
    ran = run("caption", "s3://pictures/in", "-r", "-o", "out.jsonl", services=services)

    assert (ran.code, store.failed > COUNT // 10) == (0, True), ran.err
    rows = [json.loads(line) for line in Path("out.jsonl").read_text().splitlines()]
    assert [row["file_name"] for row in rows] == [
        f"s3://pictures/in/{number // 100}/{number:03}.png" for number in range(COUNT)
    ]
    assert {row["status"] for row in rows} == {"ok"}
    texts = [path.read_text() for path in Path().iterdir()] + [ran.out, ran.err]
    assert not [text for text in texts for secret in SECRETS if secret in text]
