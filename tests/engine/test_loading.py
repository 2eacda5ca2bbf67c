"""Opening and closing an engine: damaged checkpoints, Ctrl-C, and work that still waits."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import pytest
from safetensors.torch import load_file, save_file

from idefics_cli.core.errors import ModelError
from idefics_cli.core.types import Completion, LoadSpec, Progress, Sampling, TokenChunk
from idefics_cli.engine.factory import engine_factory
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.local.inference import Inference
from idefics_cli.engine.local.tuning import Tuning
from idefics_cli.models.loading.loader import Loaded
from tests.support.prompts import ask, endless_inference, open_engine, reopen

LONG = Sampling(max_new_tokens=480)


@pytest.fixture
def engine(checkpoint: Callable[[str], Path]) -> Iterator[LocalEngine]:
    with open_engine(checkpoint("idefics2"), "idefics2", endless_inference) as engine:
        yield engine


def test_closing_twice_is_harmless_and_a_closed_engine_says_so(
    checkpoint: Callable[[str], Path],
) -> None:
    engine = engine_factory(LoadSpec(repo=str(checkpoint("idefics2")), family="idefics2"))()
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.prepare(ask().request)


def test_closing_ends_an_active_reply(engine: LocalEngine) -> None:
    stream = engine.stream(ask(sampling=LONG))
    next(stream)
    engine.close()
    assert list(stream)[-1].finish == "cancelled"


def test_closing_ends_a_request_that_still_waits_for_its_turn(engine: LocalEngine) -> None:
    events = SimpleQueue[object]()
    tuning = Tuning(interactive_slots=1)
    with reopen(engine, partial(Inference, stop_ids=(), tuning=tuning)) as narrow:
        first = narrow.stream(ask(sampling=LONG))
        next(first)
        assert narrow.submit(ask(), events.put).place == 0
    event = events.get(timeout=20)
    assert isinstance(event, RuntimeError)
    assert str(event) == "the engine was closed meanwhile"


def test_a_listener_may_close_the_engine(engine: LocalEngine) -> None:
    events = SimpleQueue[object]()

    def close(event: object) -> None:
        try:
            engine.close()
        except Exception as error:
            events.put(error)
        events.put(event)

    engine.submit(ask(sampling=LONG), close, streams=True)
    assert isinstance(events.get(timeout=20), TokenChunk)
    while isinstance(event := events.get(timeout=20), TokenChunk):
        pass
    assert isinstance(event, Completion)
    assert event.finish == "cancelled"


SLOW = """
import threading
from idefics_cli.models.loading import loader
from idefics_cli.cli.app import main

def load_weights(*arguments, **options):
    print("loading", flush=True)
    threading.Event().wait(100)

loader.load_weights = load_weights
import sys
sys.argv = ["idefics", "ask", "Hi", "-m", "demo"]
main()
"""


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_ctrl_c_does_not_wait_until_the_weights_are_read(warm_python: tuple[str, ...]) -> None:
    command = [*warm_python, "-c", SLOW]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "loading\n"
        process.send_signal(signal.SIGINT)
        try:
            assert process.wait(timeout=30) == 130
        finally:
            process.kill()
        assert (process.stdout.read(), process.stderr.read()) == ("", "")


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_a_download_ends_when_nobody_waits_for_the_model_any_more(
    checkpoint: Callable[[str], Path],
) -> None:
    reports = []
    has_ended = threading.Event()

    def download(spec: LoadSpec, *, report: Progress) -> Loaded:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        try:
            for share in range(1000):
                report("downloading", share / 1000)
                has_ended.wait(0.02)
        finally:
            has_ended.set()
        raise AssertionError("not reached")

    with pytest.raises(KeyboardInterrupt):
        LocalEngine(
            LoadSpec(repo=str(checkpoint("idefics2")), family="idefics2"),
            progress=lambda phase, share: reports.append(phase),
            load=download,
        )
    count = len(reports)
    assert has_ended.wait(20)
    assert len(reports) <= count + 1 < 100


@pytest.mark.parametrize("victim", ["model.safetensors", "tokenizer.json", "config.json"])
@pytest.mark.parametrize("damage", ["cut", "gone"])
def test_a_damaged_checkpoint_is_a_model_error(
    victim: str, damage: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    for path in checkpoint("idefics2").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    content = (tmp_path / victim).read_bytes()
    if damage == "cut":
        (tmp_path / victim).write_bytes(content[: len(content) // 2])
    else:
        (tmp_path / victim).unlink()
    with pytest.raises(ModelError):
        LocalEngine(LoadSpec(repo=str(tmp_path), family="idefics2"))


def test_a_checkpoint_without_some_of_its_weights_is_refused(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    for path in checkpoint("idefics2").iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    gone = "model.connector.modality_projection.up_proj.weight"
    del weights[gone]
    save_file(weights, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=f"lacks 1 of its weights, such as `{gone}`"):
        LocalEngine(LoadSpec(repo=str(tmp_path), family="idefics2"))
