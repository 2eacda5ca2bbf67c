"""The engine: honest ends, cancelling, seeds, errors that reach the caller, and threads."""

from __future__ import annotations

import gc
import os
import random
import signal
import subprocess
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import Cache

from idefics_cli.core.errors import (
    ContextError,
    ImageError,
    MemoryLimitError,
    ModelError,
    PromptError,
)
from idefics_cli.core.types import (
    Attachment,
    Completion,
    GenerationRequest,
    LoadSpec,
    Message,
    Sampling,
)
from idefics_cli.engine.factory import engine_factory
from idefics_cli.engine.local.cancel import Flag
from idefics_cli.engine.local.decode.detokenize import Detokenizer
from idefics_cli.engine.local.decode.sampling import BatchRow, _sample
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.local.prompt.prefill import Prompt, prefill
from idefics_cli.models.families.base import Family
from idefics_cli.models.families.protocols import Model
from idefics_cli.models.loading.loader import Loaded
from tests.support.prompts import ask

LONG = Sampling(max_new_tokens=400)


@pytest.fixture(scope="module")
def engine(checkpoint: Callable[[str], Path]) -> Iterator[LocalEngine]:
    folder = checkpoint("idefics2")
    with LocalEngine(LoadSpec(repo=str(folder), family="idefics2")) as loaded:
        # Random weights end a reply by chance; these tests want replies that run on.
        loaded.loaded.family.stop_ids.clear()
        yield loaded


def few(**changes: object) -> Sampling:
    return Sampling(max_new_tokens=20, **changes)  # type: ignore[arg-type]


def test_a_reply_that_reaches_the_token_limit_says_length(engine: LocalEngine) -> None:
    (answer,) = engine.complete([ask(sampling=Sampling(max_new_tokens=7))])
    assert (answer.finish, answer.new_tokens, len(answer.token_ids)) == ("length", 7, 7)


def test_a_reply_that_reaches_the_models_context_says_length(engine: LocalEngine) -> None:
    context = engine.loaded.context_tokens
    prepared = ask("word " * 60, Sampling(max_new_tokens=10_000))
    (answer,) = engine.complete([prepared])
    assert answer.finish == "length"
    assert answer.prompt_tokens + answer.new_tokens == context


def test_a_reply_that_the_model_ends_says_stop(checkpoint: Callable[[str], Path]) -> None:
    with LocalEngine(LoadSpec(repo=str(checkpoint("idefics2")), family="idefics2")) as engine:
        (answer,) = engine.complete([ask(sampling=few())])
        # The fifth token of the endless reply becomes an end token: the reply ends there.
        family = engine.loaded.family
        family.stop_ids = {answer.token_ids[4]}
        (ended,) = engine.complete([ask(sampling=few())])
    first = answer.token_ids.index(answer.token_ids[4])
    assert ended.finish == "stop"
    assert ended.token_ids == answer.token_ids[: first + 1]


def test_a_prompt_longer_than_the_context_is_refused(engine: LocalEngine) -> None:
    with pytest.raises(ContextError, match=r"the prompt has \d+ tokens, and the model takes 512"):
        engine.complete([ask("word " * 600)])


def test_cancelling_a_stream_keeps_what_was_said(engine: LocalEngine) -> None:
    (whole,) = engine.complete([ask(sampling=Sampling(max_new_tokens=100))])
    cancel = threading.Event()
    pieces = []
    for chunk in engine.stream(ask(sampling=Sampling(max_new_tokens=100)), cancel=cancel):
        pieces.append(chunk)
        if chunk.new_tokens >= 5:
            cancel.set()
    assert pieces[-1].finish == "cancelled"
    assert pieces[-1].new_tokens < 100
    assert whole.text.startswith("".join(p.text for p in pieces)[:-3])


def test_cancelling_a_batch_ends_every_reply_within_a_token(engine: LocalEngine) -> None:
    cancel = threading.Event()
    cancel.set()
    answers = engine.complete([ask(sampling=LONG), ask("Hi", LONG)], cancel=cancel)
    assert [(a.finish, a.new_tokens) for a in answers] == [("cancelled", 0)] * 2


def test_closing_a_stream_stops_the_work(engine: LocalEngine) -> None:
    stream = engine.stream(ask(sampling=LONG))
    next(stream)
    stream.close()  # type: ignore[attr-defined]
    started = time.monotonic()
    (alone,) = engine.complete([ask(sampling=Sampling(max_new_tokens=1))])
    waited = time.monotonic() - started
    started = time.monotonic()
    engine.complete([ask(sampling=LONG)])
    assert alone.new_tokens == 1
    # What was left of 400 tokens did not have to be finished first.
    assert waited < (time.monotonic() - started) / 2


def test_the_callers_cancel_event_is_only_ever_set_by_the_caller(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancel = threading.Event()
    list(engine.stream(ask(sampling=few()), cancel=cancel))
    half_read = engine.stream(ask(sampling=LONG), cancel=cancel)
    next(half_read)
    half_read.close()  # type: ignore[attr-defined]
    with pytest.raises(ContextError):
        engine.complete([ask("word " * 600)], cancel=cancel)
    assert not cancel.is_set()


def test_a_batch_that_is_tried_again_in_halves_is_answered_to_the_end(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = engine.complete([ask(sampling=few())])[0]
    family = engine.loaded.family
    encode = family.encode

    def full(requests: list[GenerationRequest], images: list[object]) -> object:
        if len(requests) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(requests, images)  # type: ignore[arg-type]

    monkeypatch.setattr(family, "encode", full)
    with engine.serve(slots=2) as session:
        session.put_requests([ask(sampling=few()), ask(sampling=few())])
        outcomes = [session.get_outcome(), session.get_outcome()]
        assert session.slots == 1
    answers = [found[1] for found in outcomes if found and isinstance(found[1], Completion)]
    assert [(a.token_ids, a.at_a_time) for a in answers] == [(whole.token_ids, 1)] * 2


def test_what_a_batch_held_is_free_when_its_memory_error_arrives(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    held = []

    def full(model: Model, family: Family, prompt: Prompt, cache: Cache, **more: Flag) -> object:
        prefill(model, family, prompt, cache, **more)
        held.append(weakref.ref(cache))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("idefics_cli.engine.local.decode.token_loop.prefill", full)
    gc.disable()
    try:
        with pytest.raises(MemoryLimitError):
            engine.complete([ask(), ask()])
        assert [cache() for cache in held] == [None] * len(held) != []
    finally:
        gc.enable()


def test_the_same_seed_gives_the_same_reply_and_another_seed_another(engine: LocalEngine) -> None:
    def reply(seed: int | None) -> tuple[int, ...]:
        return engine.complete([ask(sampling=few(temperature=1.5, seed=seed))])[0].token_ids

    assert reply(1) == reply(1)
    assert reply(1) != reply(2)
    assert reply(None) != reply(None)


def test_each_row_of_a_batch_is_sampled_its_own_way(engine: LocalEngine) -> None:
    ways = [
        few(),
        few(temperature=1.2, seed=5),
        few(temperature=0.7, top_k=5, seed=6),
        few(temperature=2.0, top_p=0.5, seed=7),
        few(repetition_penalty=1.8),
        Sampling(max_new_tokens=3),
    ]
    batch = [ask(sampling=way) for way in ways]
    alone = [engine.complete([prepared])[0] for prepared in batch]
    together = engine.complete(batch)
    assert [a.token_ids for a in together] == [a.token_ids for a in alone]
    assert len({a.token_ids for a in alone}) == len(ways)


def test_repetition_penalty_equals_the_librarys(engine: LocalEngine) -> None:
    loaded = engine.loaded
    prepared = ask(sampling=few(repetition_penalty=1.3))
    inputs = loaded.family.encode([prepared.request], [()])
    out = loaded.model.generate(  # type: ignore[attr-defined]
        **inputs,
        max_new_tokens=20,
        do_sample=False,
        repetition_penalty=1.3,
        eos_token_id=None,
        bad_words_ids=[[i] for i in loaded.family.banned_ids],
        pad_token_id=0,
    )
    (answer,) = engine.complete([prepared])
    assert list(answer.token_ids) == out[0, inputs["input_ids"].shape[1] :].tolist()


def test_top_k_and_top_p_leave_only_the_likeliest_tokens() -> None:
    scores = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0])

    def drawn(**changes: float) -> set[int]:
        sampling = Sampling(temperature=1.0, seed=0, **changes)  # type: ignore[arg-type]
        row = BatchRow(sampling, prompt=[], limit=9)
        return {_sample(scores, row) for _ in range(400)}

    # Probabilities: 0.636, 0.234, 0.086, 0.032, 0.012.
    assert drawn(top_k=2) == {0, 1}
    assert drawn(top_p=0.6) == {0}
    assert drawn(top_p=0.7) == {0, 1}
    assert drawn(top_p=0.9) == {0, 1, 2}
    assert drawn() == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    "way",
    [
        {"temperature": 1e-46},
        {"temperature": 1e-5},
        {"temperature": 1e308},
        {"temperature": 1.0, "top_p": 1e-9},
        {"temperature": 1.0, "top_p": 1e-300},  # zero as float32
        {"temperature": 1.0, "top_k": 10**9},
        {"repetition_penalty": 1e-300},
        {"repetition_penalty": 1e308},
        {"repetition_penalty": 1e308, "temperature": 1e-46},
    ],
)
def test_settings_at_the_edge_of_their_range_give_an_answer(
    way: dict[str, float], engine: LocalEngine
) -> None:
    (answer,) = engine.complete([ask(sampling=few(seed=1, **way))])
    assert answer.new_tokens == 20
    if way.get("temperature", 1) <= 1e-5 and "repetition_penalty" not in way:
        assert answer.token_ids == engine.complete([ask(sampling=few())])[0].token_ids


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_model_that_computes_no_numbers_is_an_error_and_no_empty_answer(
    temperature: float, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = engine.loaded.model.lm_head  # type: ignore[attr-defined]
    monkeypatch.setattr(head.weight, "data", torch.full_like(head.weight.data, torch.nan))
    with pytest.raises(ModelError, match="out of range in float32"):
        engine.complete([ask(sampling=few(temperature=temperature))])


def test_an_exception_in_the_inference_thread_reaches_the_caller(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*args: object) -> object:
        raise ZeroDivisionError("deep inside")

    family = engine.loaded.family
    monkeypatch.setattr(family, "next_inputs", broken)
    with pytest.raises(ZeroDivisionError, match="deep inside"):
        engine.complete([ask()])
    with pytest.raises(ZeroDivisionError, match="deep inside"):
        list(engine.stream(ask()))
    monkeypatch.undo()
    assert engine.complete([ask(sampling=few())])[0].new_tokens == 20


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 99 bytes"),
        MemoryError(),
    ],
)
def test_running_out_of_memory_is_an_error_with_a_way_out(
    error: Exception, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> object:
        raise error

    monkeypatch.setattr(engine.loaded.family, "encode", full)
    with pytest.raises(MemoryLimitError, match="out of memory with 2 prompts") as caught:
        engine.complete([ask(), ask()])
    assert caught.value.hint is not None
    assert "--batch-size" in caught.value.hint


def test_many_threads_get_their_own_answers(engine: LocalEngine) -> None:
    texts = [f"Question {i} {'x' * i}?" for i in range(6)]
    expected = [engine.complete([ask(t, few())])[0].token_ids for t in texts]
    got: dict[int, tuple[int, ...]] = {}

    def work(index: int) -> None:
        got[index] = engine.complete([ask(texts[index], few())])[0].token_ids

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[i] for i in range(len(texts))] == expected


def test_closing_twice_is_harmless_and_a_closed_engine_says_so(
    checkpoint: Callable[[str], Path],
) -> None:
    engine = engine_factory(LoadSpec(repo=str(checkpoint("idefics2")), family="idefics2"))()
    engine.close()
    engine.close()
    with pytest.raises(RuntimeError, match="closed"):
        engine.prepare(ask().request)


def test_closing_ends_a_reply_in_the_making(checkpoint: Callable[[str], Path]) -> None:
    engine = LocalEngine(LoadSpec(repo=str(checkpoint("idefics2")), family="idefics2"))
    engine.loaded.family.stop_ids.clear()
    stream = engine.stream(ask(sampling=Sampling(max_new_tokens=480)))
    next(stream)
    engine.close()
    assert list(stream)[-1].finish == "cancelled"


def test_closing_ends_a_stream_that_still_waits_for_its_turn(
    checkpoint: Callable[[str], Path],
) -> None:
    engine = LocalEngine(LoadSpec(repo=str(checkpoint("idefics2")), family="idefics2"))
    engine.loaded.family.stop_ids.clear()
    first = engine.stream(ask(sampling=LONG))
    next(first)
    ended: list[str] = []

    def wait_in_line() -> None:
        with pytest.raises(RuntimeError) as caught:
            list(engine.stream(ask()))
        ended.append(str(caught.value))

    second = threading.Thread(target=wait_in_line, daemon=True)
    second.start()
    while engine._worker._work_queue.empty():
        time.sleep(0.01)
    engine.close()
    second.join(timeout=20)
    assert ended == ["the engine was closed meanwhile"]


SLOW = """
import time
from idefics_cli.models.loading import loader
from idefics_cli.cli.app import main

def load_weights(*arguments, **options):
    print("loading", flush=True)
    time.sleep(100)

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
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    reports = []

    def interrupted(spec: LoadSpec, *, report: Callable[[str, float | None], None]) -> Loaded:
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
        for share in range(1000):
            report("downloading", share / 1000)
            time.sleep(0.02)
        raise AssertionError("not reached")

    monkeypatch.setattr("idefics_cli.engine.local.engine.load", interrupted)
    with pytest.raises(KeyboardInterrupt):
        LocalEngine(
            LoadSpec(repo=str(checkpoint("idefics2")), family="idefics2"),
            progress=lambda phase, share: reports.append(phase),
        )
    said = len(reports)
    time.sleep(0.2)
    assert len(reports) <= said + 1 < 100


def test_a_broken_image_fails_in_prepare_with_its_class(
    engine: LocalEngine, tmp_path: Path
) -> None:
    request = GenerationRequest(
        (Message("user", (Attachment(str(tmp_path / "no.png")), "What is it?")),)
    )
    with pytest.raises(ImageError) as caught:
        engine.prepare(request)
    assert caught.value.kind == "missing"


def test_an_empty_question_is_refused(engine: LocalEngine) -> None:
    with pytest.raises(PromptError, match="the prompt is empty"):
        engine.prepare(ask("  \n").request)


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
    with pytest.raises(ModelError, match=f"lacks 1 of its weights, as `{gone}`"):
        LocalEngine(LoadSpec(repo=str(tmp_path), family="idefics2"))


class Bytes:
    """A tokenizer whose tokens are bytes, special from 256 on."""

    def decode(self, token_ids: list[int], **options: bool) -> str:
        return bytes(i for i in token_ids if i < 256).decode("utf-8", errors="replace")


@pytest.mark.parametrize("text", ["plain", "Zürich 漢字 🙂!", "  led and trailed \n\n", "", "\n"])
def test_characters_of_several_tokens_arrive_whole(text: str) -> None:
    tokens = [*text.encode(), 300]
    for strip in (True, False):
        stream = Detokenizer(Bytes(), strip=strip)  # type: ignore[arg-type]
        pieces = [stream.feed(tokens[:n], last=n == len(tokens)) for n in range(1, len(tokens) + 1)]
        assert "".join(pieces) == (text.strip() if strip else text)
        assert not any("\ufffd" in piece for piece in pieces)


@pytest.mark.parametrize("text", ["🙂😀🎉🔥💡🚀 done", "a🙂😀🎉🔥b", "鬱漢字仮名交文🙂鬱 x"])
def test_runs_of_characters_that_the_vocabulary_lacks_arrive_whole(
    text: str, engine: LocalEngine
) -> None:
    tokenizer = engine.loaded.family.tokenizer
    tokens = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert len(tokens) > 2 * len(text)  # byte by byte
    assert Detokenizer(tokenizer, strip=True).whole(tokens) == text


@pytest.mark.parametrize("strip", [True, False])
def test_a_whole_reply_is_what_its_pieces_join_to(engine: LocalEngine, strip: bool) -> None:
    family = engine.loaded.family
    # Special tokens, bytes of half characters and word marks, in any order.
    ids, rng = range(len(family.tokenizer)), random.Random(0)
    for length in range(40):
        tokens = [rng.choice(ids) for _ in range(length)]
        stream = Detokenizer(family.tokenizer, strip=strip)
        pieces = [stream.feed(tokens[:n], last=n == length) for n in range(1, length + 1)]
        assert Detokenizer(family.tokenizer, strip=strip).whole(tokens) == "".join(pieces)


def test_a_character_that_never_completes_is_shown_as_such_at_the_end() -> None:
    tokens = list("ab🙂".encode())[:-1]
    assert Detokenizer(Bytes(), strip=True).whole(tokens) == "ab\ufffd"  # type: ignore[arg-type]


def test_the_loaded_spec_and_images_are_what_prepare_gives(
    engine: LocalEngine, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (30, 20), (1, 2, 3)).save(path)
    prepared = engine.prepare(
        GenerationRequest((Message("user", (Attachment(str(path)), "What?")),))
    )
    assert [picture.size for picture in prepared.pictures] == [(30, 20)]
    (tile,) = prepared.pictures[0].tiles
    # -1 is black, 1 is white.
    assert ((tile[:, 3, 3] + 1) * 127.5).round().tolist() == [1, 2, 3]
