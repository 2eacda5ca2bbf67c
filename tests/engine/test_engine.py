"""Replies of the engine: how they end, cancelling, errors that reach the caller, and threads."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import cast

import pytest
import torch
from PIL import Image
from torch import Tensor, nn
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
    Message,
    Sampling,
    TokenChunk,
)
from idefics_cli.engine.local.decode.detokenize import Detokenizer
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.local.inference import Inference
from idefics_cli.models.families.base import Inputs
from idefics_cli.models.families.picture import PreparedPicture
from idefics_cli.models.families.protocols import Model, StepOutput
from idefics_cli.models.kernels.text_step.step import TextStep
from idefics_cli.models.loading.loader import Loaded
from tests.support.pixels import pixel_values
from tests.support.prompts import as_request, ask, open_engine, reopen

LONG = Sampling(max_new_tokens=400)
SHORT = Sampling(max_new_tokens=20)


@pytest.fixture(scope="module")
def engine(endless: Callable[[str], LocalEngine]) -> LocalEngine:
    return endless("idefics2")


def start_stream(
    engine: LocalEngine, cancel: threading.Event | None = None
) -> Generator[TokenChunk, None, None]:
    """Return a stream of a long reply of which one chunk was read."""
    stream = engine.stream(ask(sampling=LONG), cancel=cancel)
    next(stream)
    return cast("Generator[TokenChunk, None, None]", stream)


def test_a_reply_that_reaches_the_token_limit_says_length(engine: LocalEngine) -> None:
    (answer,) = engine.complete([ask(sampling=Sampling(max_new_tokens=7))])
    assert (answer.finish, answer.new_tokens, len(answer.token_ids)) == ("length", 7, 7)


def test_a_reply_that_reaches_the_models_context_says_length(engine: LocalEngine) -> None:
    prepared = ask("word " * 60, Sampling(max_new_tokens=10_000))
    (answer,) = engine.complete([prepared])
    assert answer.finish == "length"
    assert answer.prompt_tokens + answer.new_tokens == engine.context_tokens


def test_a_reply_that_the_model_ends_says_stop(checkpoint: Callable[[str], Path]) -> None:
    with open_engine(checkpoint("idefics2"), "idefics2") as engine:
        (answer,) = engine.complete([ask(sampling=SHORT)])
        # With the fifth token of that reply as an end token, the reply ends there.
        stop_id = answer.token_ids[4]

        def make_inference(loaded: Loaded) -> Inference:
            return Inference(loaded, stop_ids=(stop_id,))

        with reopen(engine, make_inference) as stopping:
            (ended,) = stopping.complete([ask(sampling=SHORT)])
    first = answer.token_ids.index(stop_id)
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
    start_stream(engine).close()
    started = time.monotonic()
    (alone,) = engine.complete([ask(sampling=Sampling(max_new_tokens=1))])
    waited = time.monotonic() - started
    started = time.monotonic()
    engine.complete([ask(sampling=LONG)])
    assert alone.new_tokens == 1
    # The rest of the 400 tokens was not generated first.
    assert waited < (time.monotonic() - started) / 2


def test_the_callers_cancel_event_is_only_ever_set_by_the_caller(engine: LocalEngine) -> None:
    cancel = threading.Event()
    list(engine.stream(ask(sampling=SHORT), cancel=cancel))
    start_stream(engine, cancel).close()
    with pytest.raises(ContextError):
        engine.complete([ask("word " * 600)], cancel=cancel)
    assert not cancel.is_set()


def test_a_batch_that_is_tried_again_in_halves_is_answered_to_the_end(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = engine.complete([ask(sampling=SHORT)])[0]
    family = engine.loaded.family
    forward = family.forward

    def forward_one(
        model: Model, inputs: Inputs, cache: Cache, *, mask: Tensor | None, positions: Tensor
    ) -> StepOutput:
        if len(positions) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return forward(model, inputs, cache, mask=mask, positions=positions)

    monkeypatch.setattr(family, "forward", forward_one)
    with engine.serve(slots=2) as session:
        session.put_requests([ask(sampling=SHORT), ask(sampling=SHORT)])
        outcomes = [session.get_outcome(), session.get_outcome()]
        assert session.slots == 1
    answers = [found[1] for found in outcomes if found and isinstance(found[1], Completion)]
    assert [(a.token_ids, a.at_a_time) for a in answers] == [(whole.token_ids, 1)] * 2


def test_the_cache_of_a_batch_is_free_when_its_memory_error_arrives(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    caches = []
    family = engine.loaded.family
    forward = family.forward

    def run_out_of_memory(
        model: Model, named: Inputs, cache: Cache, *, mask: Tensor | None, positions: Tensor
    ) -> None:
        forward(model, named, cache, mask=mask, positions=positions)
        caches.append(weakref.ref(cache))
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(family, "forward", run_out_of_memory)
    gc.disable()
    try:
        with pytest.raises(MemoryLimitError):
            engine.complete([ask(), ask()])
        assert [cache() for cache in caches] == [None] * len(caches) != []
    finally:
        gc.enable()


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_nan_are_an_error_and_no_empty_answer(
    temperature: float, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = cast("nn.Module", engine.loaded.model).get_submodule("lm_head")
    weight = head.get_parameter("weight")
    # Compiled steps keep the weights that they were made with.
    monkeypatch.setattr(TextStep, "MOST_ROWS", 0)
    monkeypatch.setattr(weight, "data", torch.full_like(weight.data, torch.nan))
    with pytest.raises(ModelError, match="out of range in float32") as caught:
        engine.complete([ask(sampling=Sampling(max_new_tokens=20, temperature=temperature))])
    assert caught.value.hint == "try `--dtype bfloat16`; else its weights may be damaged"


def test_the_hidden_tokens_of_the_family_are_left_out_of_every_text(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = engine.loaded.family
    (whole,) = engine.complete([ask()])
    hidden = frozenset(whole.token_ids[:1])
    monkeypatch.setattr(family, "hidden_ids", hidden)
    (shown,) = engine.complete([ask()])
    assert shown.token_ids == whole.token_ids
    expected = Detokenizer(family.tokenizer, strip=True, hidden=hidden).whole(whole.token_ids)
    assert shown.text == expected != whole.text
    assert "".join(chunk.text for chunk in engine.stream(ask())) == expected
    with engine.serve(slots=1) as session:
        session.put_requests([ask()])
        found = session.get_outcome()
    assert found is not None
    assert isinstance(found[1], Completion)
    assert found[1].text == expected


def test_an_exception_in_the_inference_thread_reaches_the_caller(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> object:
        raise ZeroDivisionError("deep inside")

    monkeypatch.setattr(engine.loaded.family, "next_inputs", fail)
    with pytest.raises(ZeroDivisionError, match="deep inside"):
        engine.complete([ask()])
    with pytest.raises(ZeroDivisionError, match="deep inside"):
        list(engine.stream(ask()))
    monkeypatch.undo()
    assert engine.complete([ask(sampling=SHORT)])[0].new_tokens == 20


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 99 bytes"),
        MemoryError(),
    ],
)
def test_running_out_of_memory_is_an_error_with_a_way_out(
    error: Exception, engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> object:
        raise error

    monkeypatch.setattr(engine.loaded.family, "text_inputs", fail)
    with pytest.raises(MemoryLimitError, match="out of memory with 2 prompts") as caught:
        engine.complete([ask(), ask()])
    assert caught.value.hint is not None
    assert "--batch-size" in caught.value.hint


def test_many_threads_get_their_own_answers(engine: LocalEngine) -> None:
    texts = [f"Question {i} {'x' * i}?" for i in range(6)]
    expected = [engine.complete([ask(text, SHORT)])[0].token_ids for text in texts]
    got: dict[int, tuple[int, ...]] = {}

    def work(index: int) -> None:
        got[index] = engine.complete([ask(texts[index], SHORT)])[0].token_ids

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(texts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [got[i] for i in range(len(texts))] == expected


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


def test_prepare_keeps_the_size_and_the_pixels_of_a_picture(
    engine: LocalEngine, tmp_path: Path
) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (30, 20), (1, 2, 3)).save(path)
    prepared = engine.prepare(
        GenerationRequest((Message("user", (Attachment(str(path)), "What?")),))
    )
    assert [picture.size for picture in prepared.pictures] == [(30, 20)]
    (tile,) = pixel_values(engine.find_tensors(prepared)[0])
    # -1 is black, 1 is white.
    assert ((tile[:, 3, 3] + 1) * 127.5).round().tolist() == [1, 2, 3]


def test_equal_prompts_are_encoded_once(
    engine: LocalEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = engine.loaded.family
    encode, encoded = family.encode, [0]

    def counted(
        requests: Sequence[GenerationRequest], pictures: Sequence[Sequence[PreparedPicture]]
    ) -> Inputs:
        encoded[0] += 1
        return encode(requests, pictures)

    monkeypatch.setattr(family, "encode", counted)
    # No other test asks this.
    first, second = (as_request(engine, [("user", [number], "So?")]) for number in (0, 3))
    assert first.shape_key == second.shape_key
    one, other = engine.complete([first])[0], engine.complete([second])[0]
    assert encoded == [1]
    assert one.token_ids != other.token_ids
    # Another question, another shape, or no picture is another prompt.
    for prepared in (
        as_request(engine, [("user", [0], "So what?")]),
        as_request(engine, [("user", [1], "So?")]),
        as_request(engine, [("user", [], "So?")]),
    ):
        before = encoded[0]
        engine.complete([prepared])
        assert encoded[0] == before + 1
