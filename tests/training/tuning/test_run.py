"""Runs: they go on after a stop or a kill with the same bits, and end with the best weights."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from threading import Event
from typing import cast

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from idefics_cli.core.errors import IdeficsError, UsageError
from idefics_cli.core.types import Completion, GenerationRequest
from idefics_cli.training.examples import TrainingExample
from idefics_cli.training.targets import LoraChoice
from idefics_cli.training.tuning.events import (
    Evaluated,
    Evaluating,
    Saved,
    Stepped,
    TargetsChosen,
    TuneEvent,
)
from idefics_cli.training.tuning.files import write_adapter
from idefics_cli.training.tuning.job import TuneChoices, TuneJob, make_job, settings_of
from idefics_cli.training.tuning.output import OutputFolder
from idefics_cli.training.tuning.result import TuneResult
from idefics_cli.training.tuning.run import Answer, TuneRun
from tests.support.fakes import FakeClock
from tests.support.training import load_tiny, make_examples, make_rows, preprocessor

KIND = "idefics2"
ADAPTER = "adapter_model.safetensors"
CHOICES = TuneChoices(rank=2, dropout=0.2, learning_rate=1e-2, epochs=4, batch_size=3, seed=5)
Listen = Callable[[TuneEvent], None]


class KilledError(BaseException):
    """Stands for SIGKILL: nothing is written after it."""


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("model")


def completions(texts: Sequence[str]) -> list[Completion]:
    return [Completion(text, 1, 1, 1, "stop") for text in texts]


def echo(requests: Sequence[GenerationRequest], most_tokens: int) -> list[Completion]:
    """Answer the first request right, and no other."""
    first = make_rows(1)[0].messages[-1].text
    return completions([first if number == 0 else "no" for number in range(len(requests))])


@cache
def examples_of(model: Path) -> list[TrainingExample]:
    return make_examples(load_tiny(model, KIND).family, 9)


def job_of(model: Path, choices: TuneChoices = CHOICES, count: int = 9) -> TuneJob:
    examples = examples_of(model)[:count]
    return make_job(choices, examples[2:], examples[:2], parameters=1000)


def tune(
    model: Path,
    folder: Path,
    *,
    choices: TuneChoices = CHOICES,
    listen: Listen = lambda event: None,
    answer: Answer = echo,
    stop: Event | None = None,
    job: TuneJob | None = None,
) -> TuneResult:
    loaded = load_tiny(model, KIND)
    job = job or job_of(model, choices)
    lora = LoraChoice(
        choices.parts, rank=choices.rank, alpha=2.0 * choices.rank, dropout=choices.dropout
    )
    with OutputFolder(folder) as output:
        output.start({"settings": settings_of(job.choices), "data": {"digest": job.data_digest}})
        run = TuneRun(
            loaded,
            job,
            output,
            answer=answer,
            preprocess=preprocessor(loaded.family),
            computed="float32",
            clock=FakeClock(),
            stop=stop or Event(),
            on_event=listen,
        )
        try:
            return run.run(
                lambda: write_adapter(
                    output,
                    cast("nn.Module", loaded.model),
                    loaded.family.spec,
                    lora,
                    base=str(model),
                )
            )
        finally:
            run.close()


@dataclass(frozen=True)
class Whole:
    """A run with `CHOICES` that nothing disturbed."""

    folder: Path
    result: TuneResult
    seen: list[TuneEvent]


@pytest.fixture(scope="module")
def whole(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Whole:
    folder, seen = tmp_path_factory.mktemp("whole"), list[TuneEvent]()
    return Whole(folder, tune(model, folder, listen=seen.append), seen)


@pytest.mark.parametrize("last", [1, 4, 11])
def test_a_stopped_run_goes_on_with_the_same_bits(
    last: int, whole: Whole, model: Path, tmp_path: Path
) -> None:
    assert stopped_after(last, CHOICES, model, tmp_path) == whole.result
    assert_same(tmp_path, whole.folder)


def test_a_stopped_run_that_learns_the_vision_goes_on_with_the_same_bits(
    model: Path, tmp_path: Path
) -> None:
    choices = replace(CHOICES, parts=("text", "connector", "vision"), checkpointing=True)
    result = tune(model, tmp_path / "whole", choices=choices)
    assert stopped_after(4, choices, model, tmp_path / "parts") == result
    assert_same(tmp_path / "parts", tmp_path / "whole")


def stopped_after(last: int, choices: TuneChoices, model: Path, folder: Path) -> TuneResult:
    """Stop a run after step *last*, and return the result of the run that goes on."""
    stop = Event()

    def listen(event: TuneEvent) -> None:
        if isinstance(event, Stepped) and event.step == last:
            stop.set()

    stopped = tune(model, folder, choices=choices, listen=listen, stop=stop)
    seen: list[TuneEvent] = []
    rest = tune(model, folder, choices=choices, listen=seen.append)

    assert (stopped.is_whole, stopped.step) == (False, last)
    assert [e.done for e in seen if isinstance(e, TargetsChosen)] == [last]
    assert [e.step for e in seen if isinstance(e, Stepped)] == list(range(last + 1, 13))
    return rest


def test_ten_kills_change_no_bit(whole: Whole, model: Path, tmp_path: Path) -> None:
    rng = random.Random(3)
    kills, largest = 0, 0
    kinds = (Saved, TargetsChosen, Stepped, Evaluating, Evaluated)

    def listen(event: TuneEvent) -> None:
        nonlocal largest
        if isinstance(event, Stepped):
            # At most the steps since the last checkpoint are lost; here one is at each tenth.
            assert event.step >= largest - 2
            largest = max(largest, event.step)
        is_next = kills < 10 and isinstance(event, kinds[kills % 5])
        # The event at the start comes only once.
        if is_next and (isinstance(event, TargetsChosen) or rng.random() < 0.7):
            raise KilledError

    for _ in range(100):
        try:
            result = tune(model, tmp_path, listen=listen)
        except KilledError:
            kills += 1
        else:
            break
    assert kills == 10  # two at each kind of event
    assert result.is_whole
    assert_same(tmp_path, whole.folder)


def assert_same(one: Path, two: Path) -> None:
    assert (one / ADAPTER).read_bytes() == (two / ADAPTER).read_bytes()
    logs = [
        [
            json.loads(line) | {"seconds": 0}
            for line in (folder / "training.jsonl").read_text().splitlines()
        ]
        for folder in (one, two)
    ]
    assert logs[0] == logs[1]


def test_the_weights_with_the_most_exact_answers_are_kept(model: Path, tmp_path: Path) -> None:
    asked: list[int] = []
    copies: dict[int, bytes] = {}

    wanted = [row.messages[-1].text for row in make_rows(2)]

    def answer(requests: Sequence[GenerationRequest], most_tokens: int) -> list[Completion]:
        asked.append(1)
        return completions(wanted if len(asked) == 4 else ["no", "no"])

    def listen(event: TuneEvent) -> None:
        if isinstance(event, Stepped):  # the file has the weights of the checkpoint before
            copies.setdefault(event.step, (tmp_path / ADAPTER).read_bytes())

    result = tune(model, tmp_path, answer=answer, listen=listen)

    best = result.evaluations[3].step
    assert result.weights_step == best < result.steps
    assert (tmp_path / ADAPTER).read_bytes() == copies[best + 1]
    assert [sample.after for sample in result.samples] == [s.wanted for s in result.samples]
    assert {sample.before for sample in result.samples} == {"no"}


def test_other_data_or_settings_are_refused_and_named(
    whole: Whole, model: Path, tmp_path: Path
) -> None:
    shutil.copytree(whole.folder, tmp_path, dirs_exist_ok=True)
    with pytest.raises(UsageError, match=r"settings: rank was 2, now 3; alpha was 4\.0, now 6\.0"):
        tune(model, tmp_path, choices=replace(CHOICES, rank=3))
    with pytest.raises(UsageError, match="settings: the data has changed"):
        tune(model, tmp_path, job=job_of(model, count=8))


def test_overwrite_starts_again(whole: Whole, model: Path, tmp_path: Path) -> None:
    shutil.copytree(whole.folder, tmp_path, dirs_exist_ok=True)
    (tmp_path / "mine.txt").write_text("mine")
    OutputFolder(tmp_path, overwrite=True).close()
    assert sorted(os.listdir(tmp_path)) == ["mine.txt", "training.jsonl"]
    tune(model, tmp_path, choices=replace(CHOICES, rank=3, epochs=1))
    assert (tmp_path / ADAPTER).exists()


def test_a_second_run_in_the_folder_is_refused(tmp_path: Path) -> None:
    with OutputFolder(tmp_path), pytest.raises(UsageError, match="another run writes to"):
        OutputFolder(tmp_path)
    OutputFolder(tmp_path).close()


def test_a_folder_with_other_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("mine")
    with pytest.raises(UsageError, match="holds other files"):
        OutputFolder(tmp_path)
    assert os.listdir(tmp_path) == ["a.txt"]


def test_a_full_disk_ends_the_run_and_the_last_adapter_stays(
    whole: Whole, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies: list[bytes] = []
    real = os.fsync

    def listen(event: TuneEvent) -> None:
        if isinstance(event, Stepped) and event.step == 5:
            copies.append((tmp_path / ADAPTER).read_bytes())
            monkeypatch.setattr(os, "fsync", full)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(IdeficsError, match="No space left on device"):
        tune(model, tmp_path, listen=listen)
    assert (tmp_path / ADAPTER).read_bytes() == copies[0]
    monkeypatch.setattr(os, "fsync", real)
    tune(model, tmp_path)
    assert_same(tmp_path, whole.folder)


def test_a_run_is_evaluated_before_at_each_tenth_and_at_the_end(whole: Whole) -> None:
    result = whole.result
    steps = [event.step for event in whole.seen if isinstance(event, Evaluated)]
    # 12 steps in 4 epochs of 3
    assert steps == sorted({0, *(round(1.2 * k) for k in range(1, 11)), 3, 6, 9, 12})
    assert [each.step for each in result.evaluations] == steps
    assert {(each.exact, each.asked) for each in result.evaluations} == {(1, 2)}
    assert all(tensor.isfinite().all() for tensor in load_file(whole.folder / ADAPTER).values())
    assert result.evaluations[-1].loss < result.evaluations[0].loss
    assert torch.is_grad_enabled()
