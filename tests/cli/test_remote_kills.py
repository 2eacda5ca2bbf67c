"""A run whose server is killed and started again: every picture once, as without a server."""

from __future__ import annotations

import random
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread

import pytest
from PIL import Image

from idefics_cli.cli.services import Services
from idefics_cli.core.types import LoadSpec, Progress
from idefics_cli.demo.samples import write_samples
from idefics_cli.engine.protocol import Engine, EngineFactory
from idefics_cli.engine.remote.engine import RemoteEngine
from idefics_cli.engine.remote.patience import Patience
from tests.support.commands import World, run
from tests.support.content_server import content_answer
from tests.support.fakes import FakeEngine

PATIENCE = Patience(first_wait_seconds=0.05, most_wait_seconds=0.2, gone_seconds=120)


def patient(spec: LoadSpec) -> EngineFactory:
    def make(*, progress: Progress | None = None) -> Engine:
        return RemoteEngine(spec, patience=PATIENCE)

    return make


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return int(taken.getsockname()[1])


class KilledServer:
    """A server process that is killed, and started again at the same port.

    Args:
        command: The command of the server; it writes a line when it is ready.
    """

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self.kills = 0
        self.start()

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
        )
        assert self._process.stdout is not None
        assert self._process.stdout.readline(), "the server did not start"

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()


@contextmanager
def tormented(server: KilledServer, output: Path, *, kills: int, every: int) -> Iterator[None]:
    """Kill *server* each time that the output has *every* more rows, at a random moment."""
    ended = Event()
    chance = random.Random(kills)

    def torment() -> None:
        while server.kills < kills and not ended.wait(0.005):
            rows = len(output.read_bytes().splitlines()) if output.exists() else 0
            if rows >= every * (server.kills + 1):
                time.sleep(chance.uniform(0, 0.03))
                server.kills += 1
                server.kill()
                time.sleep(chance.uniform(0, 0.3))
                server.start()

    thread = Thread(target=torment)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(60)
        server.kill()


def caption(photos: Path, output: Path, services: Services, *words: str) -> int:
    ran = run("caption", str(photos), "-o", str(output), "-q", *words, services=services)
    assert ran.err == ""
    return ran.code


def test_a_run_goes_on_when_its_server_was_killed(tmp_path: Path) -> None:
    photos, near, there = tmp_path / "photos", tmp_path / "near.tsv", tmp_path / "there.tsv"
    photos.mkdir()
    for number in range(60):
        Image.new("RGB", (40, 30), (number, 0, 0)).save(photos / f"{number:02}.png")
    assert caption(photos, near, World(FakeEngine(content_answer)).services) == 0

    port = free_port()
    server = KilledServer([sys.executable, "-m", "tests.support.content_server", str(port)])
    services = Services(environ={}, stdin=None, make_factory=patient)
    with tormented(server, there, kills=2, every=15):
        code = caption(photos, there, services, "--server", f"http://127.0.0.1:{port}")
    assert (code, server.kills) == (0, 2)
    assert there.read_bytes() == near.read_bytes()
    assert len(there.read_text().splitlines()) == 60


@pytest.mark.slow
def test_a_thousand_captions_survive_ten_kills(tmp_path: Path) -> None:
    photos, near, there = tmp_path / "photos", tmp_path / "near.tsv", tmp_path / "there.tsv"
    write_samples(photos, count=1000, seed=7)
    for other in photos.glob("*.jsonl"):
        other.unlink()
    assert caption(photos, near, Services(environ={}, stdin=None), "-m", "demo") == 0

    port = free_port()
    words = ["serve", "-m", "demo", "--port", str(port), "--keep-alive", "-1", "--json"]
    server = KilledServer([sys.executable, "-m", "idefics_cli", *words])
    services = Services(environ={}, stdin=None, make_factory=patient)
    with tormented(server, there, kills=10, every=90):
        code = caption(photos, there, services, "--server", f"http://127.0.0.1:{port}")
    assert (code, server.kills) == (0, 10)
    assert there.read_bytes() == near.read_bytes()
    assert len(there.read_text().splitlines()) == 1000
