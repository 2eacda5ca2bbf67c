"""What an engine changes of its process, and that it leaves all memory free when it is closed."""

from __future__ import annotations

import gc
import json
import logging
import platform
import subprocess
import sys
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
import torch

from idefics_cli.core.types import LoadSpec
from idefics_cli.core.units import GIB
from idefics_cli.engine.local.kv_budget import KvBudget
from idefics_cli.engine.local.memory import stay_within_free_memory
from idefics_cli.engine.local.tuning import Tuning
from idefics_cli.models.families.protocols import Model
from tests.support.prompts import open_engine

# This runs in a fresh process, because the fault needs the first imports of the libraries.
_LOAD_TWICE = """
import json, weakref
from idefics_cli.core.types import LoadSpec
from idefics_cli.engine.factory import engine_factory
from idefics_cli.hardware.machine import probe_machine

probe_machine()
is_alive = []
for _ in range(2):
    spec = LoadSpec(repo="demo", family="idefics2", threads=1, offline=True)
    engine = engine_factory(spec)()
    parameter = weakref.ref(engine.loaded.model.get_input_embeddings().weight)
    engine.close()
    is_alive.append(parameter() is not None)
print(json.dumps(is_alive))
"""


@pytest.fixture
def _without_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def _cudnn_attention() -> Iterator[None]:
    """Switch the attention of cuDNN on, as in a fresh process."""
    before = torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]  # of torch
    torch.backends.cuda.enable_cudnn_sdp(True)
    yield
    torch.backends.cuda.enable_cudnn_sdp(before)


def test_every_model_of_a_process_is_freed_when_its_engine_is_closed() -> None:
    done = subprocess.run([sys.executable, "-c", _LOAD_TWICE], capture_output=True, check=True)
    assert json.loads(done.stdout) == [False, False]


@pytest.mark.usefixtures("_without_collection")
def test_tensors_in_cycles_are_freed_before_the_memory_of_the_gpu_is_given_back(
    checkpoint: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    engine = open_engine(checkpoint("idefics2"), "idefics2")
    parameter = weakref.ref(engine.loaded.model.get_input_embeddings().weight)
    cycle: list[object] = [engine.loaded]
    cycle.append(cycle)
    del cycle
    was_freed: list[bool] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: was_freed.append(parameter() is None))
    engine.close()
    assert was_freed == [True]


def test_an_engine_closes_although_the_allocator_is_broken(
    checkpoint: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> None:
        raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED\nmore lines")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "empty_cache", fail)
    engine = open_engine(checkpoint("idefics2"), "idefics2")
    with caplog.at_level(logging.WARNING):
        engine.close()
    (message,) = caplog.messages
    assert message.startswith("the memory of the GPU was not freed: RuntimeError: captures_")
    assert "\n" not in message


@pytest.mark.usefixtures("_cudnn_attention")
def test_an_engine_runs_without_the_attention_of_cudnn(checkpoint: Callable[[str], Path]) -> None:
    # The attention of cuDNN gives wrong text on a GPU only, so this test checks that it is off.
    open_engine(checkpoint("idefics2"), "idefics2").close()
    assert not torch.backends.cuda.cudnn_sdp_enabled()  # type: ignore[no-untyped-call]  # of torch


class OnCards:
    """A model on the CPU that says that it lies on cards.

    Args:
        model: The model.
        device_map: The cards of its modules, as accelerate writes them.
    """

    def __init__(self, model: Model, device_map: dict[str, int | str]) -> None:
        self._model = model
        self.device, self.hf_device_map = torch.device("cuda:0"), device_map

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)


# Bytes that are free on each of three cards.
FREE = {0: 8 * GIB, 1: 2 * GIB, 2: GIB}
SPLIT_IN_THE_MIDDLE: dict[str, int | str] = {
    "model.vision_model": 0,
    "model.connector": 2,
    "model.text_model.embed_tokens": 0,
    "model.text_model.layers.0": 0,
    "model.text_model.layers.1": 1,
    "model.text_model.norm": 2,
    "lm_head": 2,
}


@pytest.mark.parametrize(
    ("device_map", "expected"),
    [
        ({"": 1}, FREE[0]),  # not spread: only the device of the model counts
        # Each card holds the states of one of two layers, so the fuller one decides.
        (SPLIT_IN_THE_MIDDLE, 2 * FREE[1]),
        ({"model.vision_model": 2, "model.text_model": 1, "lm_head": 0}, FREE[1]),
        ({**SPLIT_IN_THE_MIDDLE, "model.text_model.layers.1": "cpu"}, FREE[0]),
        ({**SPLIT_IN_THE_MIDDLE, "model.text_model.layers.0": 2}, 2 * FREE[2]),
    ],
)
def test_kv_states_fit_into_the_free_memory_of_every_card(
    device_map: dict[str, int | str],
    expected: int,
    checkpoint: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (FREE[device.index], 80 * GIB))
    with open_engine(checkpoint("idefics2"), "idefics2") as engine:
        model = cast("Model", OnCards(engine.loaded.model, device_map))
        loaded = replace(engine.loaded, model=model)
        budget = KvBudget(loaded, Tuning(), uses_slots=False)
    assert budget.max_bytes == int(expected * 0.8)


@pytest.mark.parametrize(
    ("spec", "limits"),
    [
        (LoadSpec("x", "idefics2", device="cuda"), {0: 0.75}),
        (LoadSpec("x", "idefics2", device="cuda:1"), {1: 0.75}),
        (
            LoadSpec(
                "x", "idefics2", device="cuda", device_map="auto", max_memory={"0": 1, "1": 1}
            ),
            {0: 0.75, 1: 0.75},
        ),
        (LoadSpec("x", "idefics2", device="cpu"), {}),
    ],
)
def test_on_windows_memory_beyond_the_free_part_of_a_gpu_is_an_error(
    spec: LoadSpec, limits: dict[int, float], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[int, float] = {}
    # 5 of 8 GiB are free, and this process holds one more.
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (5 * GIB, 8 * GIB))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: GIB)
    monkeypatch.setattr(
        torch.cuda,
        "set_per_process_memory_fraction",
        lambda fraction, device: found.update({device: fraction}),
    )
    stay_within_free_memory(spec)
    assert found == {}
    monkeypatch.setattr(platform, "system", lambda: "Windows")
    stay_within_free_memory(spec)
    assert found == limits
