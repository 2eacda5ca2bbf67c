"""Where one way to compute gives way to another, a single warning names the reason."""

from __future__ import annotations

import ast
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from queue import SimpleQueue

import pytest
import torch
from torch import Tensor
from transformers import Cache

import idefics_cli
from idefics_cli.core.types import Completion, KernelChoice, LoadSpec, Sampling
from idefics_cli.engine.local.decode.batch_row import BatchRow
from idefics_cli.engine.local.decode.sampling import Scores
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.local.inference import Inference
from idefics_cli.engine.local.memory import free_unused_memory
from idefics_cli.engine.protocol import Prepared
from idefics_cli.hardware.machine import Machine
from idefics_cli.models.families.base import Inputs
from idefics_cli.models.families.protocols import Model, StepOutput
from idefics_cli.models.hub.facts import find_facts
from idefics_cli.models.kernels import attention_probe
from idefics_cli.models.kernels.attention_probe import AttentionError
from idefics_cli.models.loading.loader import keep_quantized, load
from idefics_cli.models.planning.plan import PlanChoices, make_plan
from idefics_cli.models.planning.verdicts import Fault, Verdict, read_verdicts, write_verdict
from idefics_cli.selfcheck.keeping import probe_new_gpus
from tests.support import machines
from tests.support.code import nodes
from tests.support.kernels import refusing, with_kernels
from tests.support.machines import RTX_4090
from tests.support.prompts import (
    as_request,
    ask,
    endless_inference,
    mixed_requests,
    open_engine,
)
from tests.support.recording import LateSideStream, gpu_inference

FULL = "CUDA out of memory"
GPU = machines.gpus(RTX_4090)
DEMO = LoadSpec(repo="demo", family="idefics2")
SHORT = Sampling(max_new_tokens=3)


@dataclass(frozen=True)
class Stage:
    """Where a path is made to fail.

    Attributes:
        folder: An empty folder.
        checkpoint: Returns the folder of a tiny checkpoint.
        patch: Replaces attributes until the test ends.
    """

    folder: Path
    checkpoint: Callable[[str], Path]
    patch: pytest.MonkeyPatch

    def engine(self, make_inference: Callable[..., Inference] = endless_inference) -> LocalEngine:
        """Open an engine on a tiny Idefics2."""
        return open_engine(self.checkpoint("idefics2"), "idefics2", make_inference)

    def limit_rows(self, engine: LocalEngine, error: Exception, *, most: int = 1) -> None:
        """Let every forward of more than *most* rows raise *error*."""
        family = engine.loaded.family
        forward = family.forward

        def checked(
            model: Model, inputs: Inputs, cache: Cache, *, mask: Tensor | None, positions: Tensor
        ) -> StepOutput:
            if len(positions) > most:
                raise error
            return forward(model, inputs, cache, mask=mask, positions=positions)

        self.patch.setattr(family, "forward", checked)


def kernel_fails(stage: Stage) -> None:
    stage.patch.setattr(torch, "bmm", refusing)
    load(replace(DEMO, kernels=KernelChoice(attention="cuda_split_keys")))


def step_does_not_fit(stage: Stage) -> None:
    load(replace(DEMO, dtype="float16", kernels=KernelChoice(step=("text_step",))))


def kept_weights_cannot_be_written(stage: Stage) -> None:
    (stage.folder / "kept").touch()
    load(quantized(stage), worth_keeping_bytes=0)


def kept_weights_are_damaged(stage: Stage) -> None:
    spec = quantized(stage)
    (file,) = keep_quantized(spec).glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-100])
    for _ in range(2):
        load(spec, worth_keeping_bytes=0)


def quantized(stage: Stage) -> LoadSpec:
    folder = str(stage.folder / "kept")
    return with_kernels(replace(DEMO, quantization="8bit", quantized_folder=folder))


def complete_twice(stage: Stage, make_inference: Callable[..., Inference]) -> None:
    with stage.engine(make_inference) as engine:
        for _ in range(2):
            engine.complete(mixed_requests(engine))


def recording_fails(stage: Stage) -> None:
    def capture(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        raise RuntimeError("operation not permitted when stream is capturing")

    complete_twice(stage, partial(gpu_inference, capture=capture))


def replay_differs(stage: Stage) -> None:
    def capture(function: Callable[[], Tensor]) -> Callable[[], Tensor]:
        return lambda: torch.zeros_like(function())

    complete_twice(stage, partial(gpu_inference, capture=capture))


def side_stream_fails(stage: Stage) -> None:
    stream = LateSideStream(torch.OutOfMemoryError(FULL))
    make_inference = partial(gpu_inference, side_stream=stream)
    with stage.engine(make_inference) as engine, engine.serve(slots=2) as session:
        requests = [
            as_request(engine, [("user", [number], "What is it?")], sampling=SHORT)
            for number in range(8)
        ]
        session.put_requests(requests)
        for _ in requests:
            outcome = session.get_outcome()
            assert outcome is not None
            assert isinstance(outcome[1], Completion)


def memory_is_not_freed(stage: Stage) -> None:
    def fail() -> None:
        raise RuntimeError("captures_underway.empty() INTERNAL ASSERT FAILED")

    stage.patch.setattr(torch.cuda, "is_available", lambda: True)
    stage.patch.setattr(torch.cuda, "empty_cache", fail)
    free_unused_memory()


def batch_fails(stage: Stage) -> None:
    with stage.engine() as engine:
        stage.limit_rows(engine, RuntimeError("the batch is wrong"))
        for _ in range(2):
            # Requests that come one after the other might never run together.
            done = engine.complete([ask(sampling=SHORT)] * 2)
            assert [each.new_tokens for each in done] == [SHORT.max_new_tokens] * 2


def memory_is_full_of_what_is_kept(stage: Stage) -> None:
    choose_tokens = Scores.choose_tokens
    with stage.engine() as engine:
        (kept,) = engine.complete([ask(sampling=SHORT)])

        def checked(scores: Scores, rows: Sequence[BatchRow]) -> None:
            if engine.inference.has_kept:
                raise torch.OutOfMemoryError(FULL)
            choose_tokens(scores, rows)

        for _ in range(2):
            stage.patch.setattr(Scores, "choose_tokens", checked)
            assert engine.complete([ask(sampling=SHORT)])[0].token_ids == kept.token_ids
            stage.patch.setattr(Scores, "choose_tokens", choose_tokens)
            assert engine.inference.has_kept


def memory_is_too_small_for_a_batch(stage: Stage) -> None:
    with stage.engine() as engine:
        alone = engine.complete([ask(sampling=SHORT)])[0]
        stage.limit_rows(engine, torch.OutOfMemoryError(FULL))
        for _ in range(2):
            engine.inference.drop_caches()
            # Beside another request, the batch may run alone later.
            first = submitted(engine, [ask(sampling=Sampling(max_new_tokens=300))])
            done = engine.complete([ask(sampling=SHORT)] * 2)
            assert [each.token_ids for each in done] == [alone.token_ids] * 2
            first.get()


def memory_is_too_small_for_separate_requests(stage: Stage) -> None:
    with stage.engine() as engine:
        stage.limit_rows(engine, torch.OutOfMemoryError(FULL))
        for _ in range(2):
            outcomes = submitted(engine, [ask(sampling=SHORT)] * 4)
            assert all(isinstance(outcomes.get(), Completion) for _ in range(4))


def submitted(engine: LocalEngine, requests: Sequence[Prepared]) -> SimpleQueue[object]:
    outcomes: SimpleQueue[object] = SimpleQueue()
    for request in requests:
        engine.submit(request, outcomes.put, urgency="batch")
    return outcomes


def plan_warnings(
    fault: Fault | None = None, machine: Machine = GPU, model: str = "smolvlm-256m"
) -> list[str]:
    faults = [] if fault is None else [fault]
    plan = make_plan(find_facts(model), PlanChoices(), machine, faults=faults)
    return list(plan.warnings)


def attention_is_wrong(stage: Stage) -> list[str]:
    return plan_warnings(Fault("cuda:0", "decode is off by 0.5", attention="sdpa"))


def kernel_is_wrong(stage: Stage) -> list[str]:
    return plan_warnings(Fault("cuda:0", "decode is off by 0.5", kernel="cuda_split_keys"))


def graphs_are_wrong(stage: Stage) -> list[str]:
    return plan_warnings(Fault("cuda:0", "3 of 12 right", with_graphs=True))


def gpu_is_left_out(stage: Stage) -> list[str]:
    note = "cuda:0 is left out: no kernel image is available"
    return plan_warnings(machine=replace(machines.cpu(24), notes=(note,)))


def gpu_is_too_small(stage: Stage) -> list[str]:
    return plan_warnings(machine=machines.gpus(("Small", 1, (8, 6))), model="idefics2-8b")


def apple_gpu_is_too_small(stage: Stage) -> list[str]:
    return plan_warnings(machine=machines.apple(16), model="idefics2-8b")


def torch_is_built_for_the_processor(stage: Stage) -> list[str]:
    return plan_warnings(machine=machines.cpu(24, has_nvidia_driver=True, torch_build="cpu"))


def verdict_is_damaged(stage: Stage) -> list[str]:
    write_verdict(stage.folder, Verdict("cuda:0", "", True), GPU)
    (path,) = stage.folder.iterdir()
    path.write_text("{")
    return list(read_verdicts(stage.folder, GPU).notes)


def probe_cannot_run(stage: Stage) -> list[str]:
    def probe(attention: str, **options: object) -> list[AttentionError]:
        if attention != "sdpa":
            raise RuntimeError(FULL)
        return []

    stage.patch.setattr(attention_probe, "probe_attention", probe)
    return notes_of_first_use(stage.folder)


def probe_cannot_be_kept(stage: Stage) -> list[str]:
    stage.patch.setattr(attention_probe, "probe_attention", lambda *a, **b: [])
    (stage.folder / "file").touch()
    return notes_of_first_use(stage.folder / "file")


def notes_of_first_use(folder: Path) -> list[str]:
    shape = find_facts("smolvlm-256m").shape
    verdicts = read_verdicts(folder / "checks", GPU)
    found = probe_new_gpus(folder / "checks", verdicts, GPU, shape, is_here=lambda device: True)
    return list(found.notes)


@dataclass(frozen=True)
class Row:
    """A path that gives way.

    Attributes:
        provoke: Makes it give way, twice if that is possible with one engine. Returns the warnings
            of a plan or of verdicts; None if the warning is logged.
        message: The warning, as the source has it; of a plan or of verdicts, a part of it.
        reason: The reason in the warning.
    """

    provoke: Callable[[Stage], list[str] | None]
    message: str
    reason: str


MEMORY = f"OutOfMemoryError: {FULL}"
ROWS = (
    Row(kernel_fails, "the kernel `%s` fails its self-test; %s replaces it", "cuda_split_keys"),
    Row(
        step_does_not_fit,
        "the kernel `%s` does not fit: %s; torch replaces it",
        "the model is in float16",
    ),
    Row(
        kept_weights_cannot_be_written,
        "the next start quantizes again: %s",
        "cannot store quantized weights in ",
    ),
    Row(
        kept_weights_are_damaged,
        "the kept weights are quantized again: %s",
        "they are damaged or incomplete",
    ),
    Row(
        recording_fails,
        "decoding without CUDA graphs: %s",
        "RuntimeError: operation not permitted when stream is capturing",
    ),
    Row(replay_differs, "decoding without CUDA graphs: %s", "the recording is off by "),
    Row(side_stream_fails, "encoding pictures without a side stream: %s", FULL),
    Row(memory_is_not_freed, "the memory of the GPU was not freed: %s", "captures_underway"),
    Row(
        batch_fails,
        "answering %d requests one by one, because they failed together: %s",
        "RuntimeError: the batch is wrong",
    ),
    Row(
        memory_is_full_of_what_is_kept,
        "what was kept for later requests is dropped, because the memory ran out: %s",
        MEMORY,
    ),
    Row(
        memory_is_too_small_for_a_batch,
        "answering requests one by one, because the memory ran out: %s",
        MEMORY,
    ),
    Row(
        memory_is_too_small_for_separate_requests,
        "answering fewer requests at a time, because the memory ran out: %s",
        MEMORY,
    ),
    Row(attention_is_wrong, "left out: sdpa on cuda:0 computes wrongly here", "off by 0.5"),
    Row(kernel_is_wrong, "left out: the kernel `cuda_split_keys` computes wrongly", "off by 0.5"),
    Row(graphs_are_wrong, "left out: CUDA graphs on cuda:0 computes wrongly", "3 of 12 right"),
    Row(gpu_is_left_out, "cuda:0 is left out: ", "no kernel image is available"),
    Row(gpu_is_too_small, "the GPU is not used: with the GPU, it needs ", " are usable on cuda:0"),
    Row(apple_gpu_is_too_small, "the GPU is not used: ", "too large for the Apple GPU"),
    Row(
        torch_is_built_for_the_processor, "the GPU is not used: ", "this torch is built for the CPU"
    ),
    Row(verdict_is_damaged, "the check of cuda:0 in ", " is ignored: "),
    Row(probe_cannot_run, "cuda_split_keys in bfloat16 was not checked on cuda:0: ", FULL),
    Row(probe_cannot_be_kept, "the check of attention is not kept in ", "Not a directory"),
)


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.provoke.__name__)
def test_a_path_that_gives_way_says_so_once_with_the_reason(
    row: Row,
    tmp_path: Path,
    checkpoint: Callable[[str], Path],
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING, "idefics_cli"):
        found = row.provoke(Stage(tmp_path, checkpoint, patch))
    if found is not None:
        (message,) = (text for text in found if row.message in text)
        assert row.reason in message
        return
    (record,) = (each for each in caplog.records if each.name.startswith("idefics_cli."))
    assert (record.levelno, record.msg) == (logging.WARNING, row.message)
    assert row.reason in record.getMessage()
    assert "\n" not in record.getMessage()


def warnings_in_the_source() -> Iterator[str]:
    """Yield the message of each warning that loading, kernels and the engine log."""
    package = Path(idefics_cli.__file__).parent
    for room in ("models", "engine", "hardware"):
        for path in sorted((package / room).rglob("*.py")):
            for node in nodes(path.read_text(encoding="utf-8")):
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                if node.func.attr in ("warning", "_warn") and isinstance(
                    node.args[0], ast.Constant
                ):
                    yield str(node.args[0].value)


def test_every_warning_is_in_the_table() -> None:
    logged = {row.message for row in ROWS if "%" in row.message}
    assert set(warnings_in_the_source()) == logged
