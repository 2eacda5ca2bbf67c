"""The check finds a wrong way, names what is wrong, and calls nothing wrong that is right."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from torch import Tensor, nn
from torch.nn import functional

from idefics_cli.core.errors import MemoryLimitError, ModelError
from idefics_cli.core.types import LoadSpec
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.protocol import Engine
from idefics_cli.models.hub.facts import find_facts
from idefics_cli.models.kernels.int8.linear import Int8Linear
from idefics_cli.models.kernels.rms_norm import CpuRMSNorm
from idefics_cli.models.kernels.table import KERNELS
from idefics_cli.models.planning.attention import FLASH
from idefics_cli.selfcheck import run as run_module
from idefics_cli.selfcheck.asking import MANNERS, ask_as_batch, caption_requests
from idefics_cli.selfcheck.attention import AttentionTarget, check_attention, targets_of
from idefics_cli.selfcheck.results import WayResult, faults_of, is_sound
from idefics_cli.selfcheck.run import Examination, check_ways
from idefics_cli.selfcheck.ways import Way, list_ways, reference_way
from tests.support import machines
from tests.support.fakes import FakeEngine
from tests.support.kernels import FLOAT32_WAY
from tests.support.recording import gpu_inference


@pytest.fixture
def only(
    examination: Examination, monkeypatch: pytest.MonkeyPatch
) -> Callable[[Way], list[WayResult]]:
    """Return a function that checks the reference and one way, usually with one picture."""

    def check(way: Way, **changes: object) -> list[WayResult]:
        monkeypatch.setattr(run_module, "list_ways", lambda *args, **options: [way])
        changes.setdefault("pictures", examination.pictures[:1])
        return list(check_ways(replace(examination, **changes)))  # type: ignore[arg-type] # any field

    return check


def plain(examination: Examination) -> Way:
    return reference_way(examination.facts, examination.machine)


def ways(examination: Examination) -> dict[str, Way]:
    return {
        way.name: way for way in list_ways(examination.facts, examination.machine, device="cpu")
    }


def slightly_off(forward: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Return a stand-in for *forward* whose outputs are off by 8 %: no caption changes."""

    def off(module: nn.Module, *arguments: Tensor) -> Tensor:
        out = forward(module, *arguments)
        return out + 0.08 * out.roll(1, -1)

    return off


def test_every_way_is_named_once_and_the_plan_of_float32_is_among_them(
    examination: Examination,
) -> None:
    found = list(list_ways(examination.facts, examination.machine, device="cpu"))
    names = [way.name for way in found]
    assert len(names) == len(set(names))
    assert FLOAT32_WAY in names
    assert {way.spec.quantization for way in found} == {"none", "8bit", "4bit"}
    assert all(way.refusal is None for way in found)


def test_a_gpu_is_checked_with_and_without_graphs_in_every_dtype() -> None:
    machine = machines.gpus(machines.RTX_4090, machines.RTX_2080_TI)
    found = list(list_ways(find_facts("demo"), machine, device="cuda"))
    names = [way.name for way in found]
    assert len(names) == len(set(names))
    for device, native in (("cuda:0", "bfloat16"), ("cuda:1", "float16")):
        runs = [w for w in found if w.spec.device == device and w.refusal is None]
        for dtype in ("float32", "bfloat16", "float16"):
            for attention in ("sdpa", "eager"):
                assert f"{device} {dtype} {attention}" in names
                assert f"{device} {dtype} {attention} without graphs" in names
        quantized = {w.name for w in runs if w.spec.quantization != "none"}
        assert quantized == {
            f"{device} {native} sdpa 8bit",
            f"{device} {native} sdpa 4bit nf4",
            f"{device} {native} sdpa 4bit nf4 without graphs",
        }
        refused = [w for w in found if w.spec.device == device and w.refusal is not None]
        assert [w.spec.attention for w in refused] == list(FLASH)
        assert [target.device for target in targets_of(runs)] == [device] * 9


def test_without_a_gpu_the_plan_says_why(examination: Examination) -> None:
    (way,) = list_ways(examination.facts, examination.machine, device="cuda")
    assert way.name == "cuda"
    assert "is built for the CPU" in str(way.refusal)


def test_a_sound_way_is_right_in_all_manners(
    only: Callable[..., list[WayResult]], examination: Examination
) -> None:
    way = ways(examination)[FLOAT32_WAY]
    reference, result = only(way, pictures=examination.pictures)
    assert (reference.status, result.status, result.reason) == ("right", "right", "")
    assert [m.manner for m in result.manners] == ["logits", *MANNERS, "chat"]
    assert [(m.right, m.total) for m in result.manners] == [(3, 3)] * 5 + [(9, 9)]
    assert result.pace is not None
    assert is_sound([reference, result])
    assert faults_of([reference, result], "cpu") == ()


def test_a_kernel_that_is_wrong_is_named_and_becomes_a_fault(
    only: Callable[..., list[WayResult]],
    examination: Examination,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(CpuRMSNorm, "forward", slightly_off(CpuRMSNorm.forward))
    monkeypatch.setattr(CpuRMSNorm, "passes_self_test", classmethod(lambda kernel: True))
    results = only(ways(examination)[FLOAT32_WAY])
    result = results[1]
    assert (result.status, result.culprit) == ("wrong", "rms_norm")
    assert result.reason.startswith("logits: 0 of 1 right; off by 0.")
    assert [(m.right, m.total) for m in result.manners[1:5]] == [(1, 1)] * 4
    assert not is_sound(results)
    (fault,) = faults_of(results, "cpu")
    assert (fault.device, fault.kernel, fault.dtype) == ("cpu", "rms_norm", None)


def test_other_tokens_with_the_same_text_are_wrong_in_float32(
    only: Callable[..., list[WayResult]], examination: Examination
) -> None:
    way = plain(examination)

    class Changed(LocalEngine):
        def complete(self, batch, *, cancel=None):  # type: ignore[no-untyped-def] # as its base
            return [
                replace(reply, token_ids=(*reply.token_ids, 0)) if is_changed[0] else reply
                for reply in super().complete(batch, cancel=cancel)
            ]

    is_changed = [False]
    opened: list[LoadSpec] = []

    def open_engine(spec: LoadSpec) -> Engine:
        is_changed[0] = bool(opened)
        opened.append(spec)
        return Changed(spec)

    result = only(way, open_engine=open_engine)[1]
    assert result.status == "wrong"
    assert "has other tokens than the reference" in result.reason


@pytest.mark.parametrize(
    ("error", "status"),
    [(ModelError("no package"), "refused"), (MemoryLimitError("too large"), "refused")],
)
def test_what_cannot_be_loaded_is_refused_with_its_reason(
    only: Callable[..., list[WayResult]],
    examination: Examination,
    error: Exception,
    status: str,
) -> None:
    opened: list[LoadSpec] = []

    def open_engine(spec: LoadSpec) -> Engine:
        opened.append(spec)
        if len(opened) > 1:
            raise error
        return LocalEngine(spec)

    reference, result = only(plain(examination), open_engine=open_engine)
    assert (result.status, result.reason) == (status, str(error))
    assert is_sound([reference, result])


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (ModelError("the logits contain NaN"), "the logits contain NaN"),
        (RuntimeError("CUDA error: misaligned\nmore"), "RuntimeError: CUDA error: misaligned"),
    ],
)
def test_an_error_of_a_reply_is_wrong_and_ends_only_this_way(
    only: Callable[..., list[WayResult]], examination: Examination, error: Exception, reason: str
) -> None:
    class Failing(LocalEngine):
        def complete(self, batch, *, cancel=None):  # type: ignore[no-untyped-def] # as its base
            raise error

    opened: list[LoadSpec] = []

    def open_engine(spec: LoadSpec) -> Engine:
        opened.append(spec)
        return LocalEngine(spec) if len(opened) == 1 else Failing(spec)

    result = only(plain(examination), open_engine=open_engine)[1]
    assert (result.status, result.reason) == ("wrong", reason)


def test_a_wrong_reference_ends_the_check(examination: Examination) -> None:
    engine = FakeEngine(lambda request: "A cat.")
    results = list(check_ways(replace(examination, open_engine=lambda spec: engine)))
    assert [result.status for result in results] == ["wrong"]
    assert "'A cat.', not '" in results[0].reason
    assert not is_sound(results)


def test_a_recording_that_is_given_up_is_wrong_although_all_replies_are_right(
    only: Callable[..., list[WayResult]], examination: Examination
) -> None:
    def failing(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")

    opened: list[LoadSpec] = []

    def open_engine(spec: LoadSpec) -> Engine:
        opened.append(spec)
        if len(opened) == 1:
            return LocalEngine(spec)
        return LocalEngine(spec, make_inference=partial(gpu_inference_of_model, capture=failing))

    result = only(plain(examination), open_engine=open_engine)[1]
    assert [(m.right, m.total) for m in result.manners] == [(1, 1)] * 5 + [(3, 3)]
    assert result.status == "wrong"
    assert "decoding without CUDA graphs: RuntimeError: operation not permitted" in result.reason


def gpu_inference_of_model(loaded, *, capture):  # type: ignore[no-untyped-def] # as its callee
    return gpu_inference(loaded, capture=capture, stop_ids=loaded.family.stop_ids)


def test_only_graphs_are_left_out_where_the_way_without_them_is_right(
    examination: Examination,
) -> None:
    spec = replace(plain(examination).spec, device="cuda:0")
    recorded = WayResult(Way(spec), "wrong", "batch: 11 of 12 right")
    launched = WayResult(Way(spec).without_graphs(), "right")
    (fault,) = faults_of([recorded, launched], "cuda:0")
    assert (fault.with_graphs, fault.subject) == (True, "float32 sdpa CUDA graphs on cuda:0")
    (both,) = faults_of([recorded, replace(launched, status="wrong")], "cuda:0")
    assert (both.with_graphs, both.subject) == (False, "float32 sdpa on cuda:0")
    assert faults_of([recorded, launched], "cpu") == ()


def test_the_kernel_of_quantized_weights_is_found_by_the_next_one(
    only: Callable[..., list[WayResult]],
    examination: Examination,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = ways(examination)
    way = next(w for w in found.values() if w.spec.quantization == "8bit" and w.is_planned)
    kernel = way.spec.kernels.text[0]
    layer = _layer_of(kernel)
    monkeypatch.setattr(layer, "forward", slightly_off(layer.forward))
    monkeypatch.setattr(layer, "passes_self_test", classmethod(lambda kernel: True))
    result = only(way)[1]
    assert (result.status, result.culprit) == ("wrong", kernel)


def _layer_of(name: str) -> type[Int8Linear]:
    layer = KERNELS[name].layer_kernel()
    assert isinstance(layer, type)
    assert issubclass(layer, Int8Linear)
    return layer


def test_the_probe_finds_attention_that_two_equal_recordings_do_not(
    examination: Examination, monkeypatch: pytest.MonkeyPatch
) -> None:
    sound = functional.scaled_dot_product_attention

    def attend(query: Tensor, *rest: Any, **more: Any) -> Tensor:
        out = sound(query, *rest, **more)
        is_decode = query.shape[2] <= 4 and more.get("attn_mask") is not None
        return out * 1.05 if is_decode else out

    monkeypatch.setattr(functional, "scaled_dot_product_attention", attend)
    way = plain(examination)
    with LocalEngine(way.spec, make_inference=gpu_inference) as engine:
        ask_as_batch(engine, caption_requests(examination.pictures))
        graphs = engine.inference.graphs
        assert graphs is not None
        assert graphs.failure is None
    (row,) = check_attention([AttentionTarget("cpu", "float32", "sdpa")], examination.facts.shape)
    assert (row.status, row.right, row.total) == ("wrong", 7, 9)
    assert row.reason.startswith("decode with a mask is off by 0.05")


def test_a_plan_without_graphs_records_nothing(examination: Examination) -> None:
    spec = replace(plain(examination).spec, uses_graphs=False)
    with LocalEngine(spec, make_inference=gpu_inference) as engine:
        (reply,) = ask_as_batch(engine, caption_requests(examination.pictures[:1]))
        assert not isinstance(reply, Exception)
        assert engine.inference.graphs is None


def test_a_kernel_that_no_layer_uses_is_no_silent_fallback(
    only: Callable[..., list[WayResult]],
    examination: Examination,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = ways(examination).values()
    way = next(way for way in found if way.spec.quantization == "8bit" and way.is_planned)
    kernel = way.spec.kernels.text[0]
    monkeypatch.setattr(
        _layer_of(kernel), "layer_for", classmethod(lambda *arguments, **options: None)
    )
    result = only(way)[1]
    assert (result.status, result.reason) == ("wrong", f"no layer uses the kernel `{kernel}`")
    assert result.culprit == kernel
