"""The memory of a GPU: features that are evicted, peaks within the plan, quantized weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch

from idefics_cli.bench.pictures import draw
from idefics_cli.bench.random_model import make
from idefics_cli.bench.shapes import SHAPES
from idefics_cli.core.types import (
    Attachment,
    GenerationRequest,
    LoadSpec,
    Message,
    Quantization,
    Sampling,
)
from idefics_cli.demo.samples import write_samples
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.local.inference import Inference
from idefics_cli.engine.local.tuning import Tuning
from idefics_cli.engine.protocol import Prepared
from idefics_cli.models.hub.facts import registry_facts
from idefics_cli.models.planning.memory import ON_CUDA, kv_bytes, tile_bytes, working_bytes
from tests.support.prompts import as_request, open_engine
from tests.support.serving import LIMITS, serve_all, tokens_of

EngineOf = Callable[[str], LocalEngine]
DEVICE = "cuda:0"
KIND = "idefics2"
LAYERS = 2
QUESTION = "Describe this image."

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


@pytest.fixture(scope="module")
def wide_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Random weights as wide as those of idefics2-8b, with few layers: 1.6 GB."""
    folder = tmp_path_factory.mktemp("wide") / "model"
    make(folder, SHAPES["idefics2-8b"], dtype="bfloat16", layers=LAYERS)
    return folder


def about(engine: LocalEngine, path: Path, *, new_tokens: int = 48) -> Prepared:
    """Return the request to describe the picture at *path*."""
    message = Message("user", (Attachment(str(path)), QUESTION))
    return engine.prepare(GenerationRequest((message,), Sampling(max_new_tokens=new_tokens)))


def test_features_that_are_evicted_at_once_change_no_reply(
    checkpoint: Callable[[str], Path], endless: EngineOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    cpu = endless(KIND)

    def requests(engine: LocalEngine) -> list[Prepared]:
        return [
            as_request(
                engine, [("user", [at], "What is it?")], sampling=Sampling(max_new_tokens=limit)
            )
            for at, limit in enumerate(LIMITS)
        ]

    # No features fit, so their memory is free while the side stream may still write into it.
    options = {"stop_ids": (), "tuning": Tuning(feature_bytes=1)}
    evicting = partial(Inference, **options)  # type: ignore[arg-type]  # the options have several types
    with open_engine(checkpoint(KIND), KIND, evicting, device=DEVICE) as gpu:
        wanted = tokens_of(serve_all(cpu, requests(cpu)))
        for _ in range(3):
            assert tokens_of(serve_all(gpu, requests(gpu))) == wanted
        assert gpu.inference.look_ahead.is_on


@pytest.mark.parametrize("tiles", [1, 5])
def test_a_picture_takes_no_more_memory_than_the_plan_has(
    tiles: int, wide_checkpoint: Path, tmp_path: Path
) -> None:
    shape = next(facts.shape for facts in registry_facts() if facts.name == "idefics2-8b")
    draw(tmp_path / "x.png", (980, 980), seed=1)
    spec = LoadSpec(
        str(wide_checkpoint),
        "idefics2",
        dtype="bfloat16",
        device=DEVICE,
        splitting=True,
        vision_tiles=tiles,
    )
    with LocalEngine(spec) as engine:
        request = about(engine, tmp_path / "x.png", new_tokens=2)
        assert [len(picture.tile_sizes) for picture in request.pictures] == [5]
        prompt = engine.measure(request).prompt_tokens
        held = torch.cuda.memory_allocated(DEVICE)
        torch.cuda.reset_peak_memory_stats(DEVICE)
        engine.complete([request])
        peak = torch.cuda.max_memory_allocated(DEVICE) - held
    working = working_bytes(
        shape,
        dtype="bfloat16",
        attention="sdpa",
        splitting=True,
        tokens=prompt,
        forward=ON_CUDA,
    )
    each = tile_bytes(shape, dtype="bfloat16", attention="sdpa", forward=ON_CUDA)
    states = kv_bytes(shape, dtype="bfloat16", tokens=prompt + 256) * LAYERS // shape.layers
    # The states are copied from the prefill into a slot.
    assert peak <= max(working, tiles * each) + 2 * states


@pytest.mark.parametrize("quantization", ["4bit", "8bit"])
def test_a_quantized_model_on_a_gpu_tells_the_truth(
    quantization: Quantization, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes")
    samples = write_samples(tmp_path, count=16, seed=7)
    spec = LoadSpec("demo", KIND, dtype="bfloat16", quantization=quantization, device=DEVICE)
    with LocalEngine(spec) as engine:
        for rows in (1, 4, 16):
            requests = [about(engine, tmp_path / each.file_name) for each in samples]
            groups = [requests[at : at + rows] for at in range(0, len(requests), rows)]
            texts = [done.text for group in groups for done in engine.complete(group)]
            right = sum(text == sample.caption for text, sample in zip(texts, samples, strict=True))
            assert right >= 15, texts
        graphs = engine.inference.graphs
        assert (graphs is None) == (quantization == "8bit")
        assert graphs is None or graphs.failure is None
