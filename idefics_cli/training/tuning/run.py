"""A tuning run, as a library call without a terminal."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from threading import Event
from typing import TYPE_CHECKING, Any, TypeAlias, cast

import psutil
import torch
from torch import Tensor, nn

from idefics_cli.core.types import Attachment, Completion, DtypeName, GenerationRequest
from idefics_cli.training.batches import epoch_steps
from idefics_cli.training.checkpoints import Checkpoint
from idefics_cli.training.examples import TrainingExample
from idefics_cli.training.pictures import KeptFeatures, LearnedFeatures
from idefics_cli.training.schedule import CosineSchedule
from idefics_cli.training.steps import StepOutcome, TrainingSteps, count_labels
from idefics_cli.training.targets import (
    LoraChoice,
    Targets,
    enable_checkpointing,
    insert_lora,
    train_weights,
)
from idefics_cli.training.tuning.estimate import micro_tokens_on
from idefics_cli.training.tuning.events import (
    Evaluated,
    Evaluating,
    Saved,
    Stepped,
    TargetsChosen,
    TuneEvent,
)
from idefics_cli.training.tuning.job import TuneJob
from idefics_cli.training.tuning.output import OutputFolder
from idefics_cli.training.tuning.replay import ANSWER_TOKENS
from idefics_cli.training.tuning.result import SampleAnswer, TuneResult

if TYPE_CHECKING:
    from idefics_cli.models.families.picture import PictureTensors
    from idefics_cli.models.loading.loader import Loaded

Answer: TypeAlias = Callable[[Sequence[GenerationRequest], int], list[Completion]]
"""Returns the greedy answers to some requests, each of at most this many tokens."""
CHECKPOINT_SECONDS = 300.0
"""A checkpoint is written when the last one is so old."""
MOST_ASKED = 32
"""Largest number of rows that are answered in an evaluation."""
_EVALUATIONS = 10
# An answer may have this many tokens more than the longest one of the data.
_SPARE_TOKENS = 16


class TuneRun:
    """Trains a loaded model, step by step, with checkpoints.

    Args:
        loaded: The model, from `load_for_training`; it is changed.
        job: What is trained.
        output: Folder of the run.
        answer: Answers rows with the model as it is.
        preprocess: Returns the tensors of a picture.
        computed: Dtype of the computation.
        clock: Returns seconds.
        stop: When set, the run ends after the current step.
        on_event: Called with what happens.
        others: Other questions, which the model is asked before and after, to see what it forgets.

    Attributes:
        targets: What is trained.
    """

    def __init__(
        self,
        loaded: Loaded,
        job: TuneJob,
        output: OutputFolder,
        *,
        answer: Answer,
        preprocess: Callable[[Attachment], PictureTensors],
        computed: DtypeName,
        clock: Callable[[], float],
        stop: Event,
        on_event: Callable[[TuneEvent], None],
        others: Sequence[GenerationRequest] = (),
    ) -> None:
        self._others = tuple(others)
        self._loaded, self._job, self._output = loaded, job, output
        self._answer, self._clock, self._stop = answer, clock, stop
        self._on_event = on_event
        self._model = cast("nn.Module", loaded.model)
        self.targets = self._insert()
        self._evaluations: list[Evaluated] = []
        self._answers: dict[str, list[str]] = {}
        self._done = 0
        self._order: tuple[int, list[list[int]]] = (-1, [])
        self._features = self._make_features(preprocess)
        self._steps = TrainingSteps(
            loaded.model,
            loaded.family,
            self.targets,
            self._features,
            seed=job.choices.seed,
            autocast=torch.bfloat16 if computed == "bfloat16" else None,
            micro_tokens=micro_tokens_on(loaded.model.device.type),
        )

    def run(self, write_weights: Callable[[], None]) -> TuneResult:
        """Do all steps, or those that an earlier run has left.

        Args:
            write_weights: Writes the weights as they are, in the form that users take.

        Raises:
            IdeficsError: If the gradients stay infinite, the memory runs out, or the disk is full.
        """
        job, rate = self._job, self._job.choices.learning_rate or 0.0
        self._restore()
        targets = self.targets
        self._on_event(
            TargetsChosen(
                len(targets.layers), targets.weights, targets.parts, job.steps, self._done
            )
        )
        if not self._evaluations:
            self._evaluate()
            self._save(write_weights)
        schedule, saved = CosineSchedule.of_run(rate, job.steps), self._clock()
        while self._done < job.steps and not self._stop.is_set():
            self._step(schedule.learning_rate(self._done))
            if self._done in self._evaluated_steps():
                self._evaluate()
            elif self._clock() - saved < CHECKPOINT_SECONDS and not self._stop.is_set():
                continue
            self._save(write_weights)
            saved = self._clock()
        if self._done < job.steps:
            return self._result(is_whole=False, weights_step=self._done)
        best = max(self._evaluations, key=lambda each: (each.rank, each.step))
        if best.step != self._done and self._take_best(best.step):
            write_weights()
        return self._result(is_whole=True, weights_step=best.step)

    @property
    def micro_tokens(self) -> int:
        """Largest number of tokens of a micro-batch."""
        return self._steps.micro_tokens

    def probe(self) -> tuple[float, float]:
        """Do some steps, and return the seconds of one in the first epoch, and in a later one.

        The weights change, so this is for a run that is not done.
        """
        times = []
        for number in (0, min(1, self._job.steps_of_epoch - 1)):
            self._done = number
            times.append(self._timed_step())
        # The pictures of the last step have their features now, if these are kept.
        self._done = min(1, self._job.steps_of_epoch - 1)
        later = self._timed_step()
        return max(times[-1], later), later

    def _timed_step(self) -> float:
        started = self._clock()
        self._steps.step(self._examples(), number=self._done, learning_rate=0.0)
        return self._clock() - started

    def close(self) -> None:
        """Free what is kept for further steps; idempotent."""
        if isinstance(self._features, KeptFeatures):
            self._features.close()

    def _insert(self) -> Targets:
        choices, family = self._job.choices, self._loaded.family.spec
        torch.manual_seed(choices.seed)
        if choices.full:
            targets = train_weights(self._model, family, choices.parts)
        else:
            lora = LoraChoice(
                choices.parts,
                rank=choices.rank,
                alpha=choices.alpha or 0.0,
                dropout=choices.dropout,
                is_dora=choices.dora,
            )
            targets = insert_lora(self._model, family, lora)
        if choices.checkpointing:
            enable_checkpointing(self._model)
        return targets

    def _make_features(
        self, preprocess: Callable[[Attachment], PictureTensors]
    ) -> KeptFeatures | LearnedFeatures:
        model, family = self._loaded.model, self._loaded.family
        if self.targets.moves_features:
            return LearnedFeatures(model, family, preprocess)
        keeps = self._job.choices.keeps_features
        return KeptFeatures(model, family, preprocess, folder=self._output.path, keeps=keeps)

    def _step(self, learning_rate: float) -> None:
        job, started = self._job, self._clock()
        examples = self._examples()
        outcome = self._steps.step(examples, number=self._done, learning_rate=learning_rate)
        self._done += 1
        seconds = self._clock() - started
        self._output.append(_log_line(self._done, outcome, learning_rate, seconds))
        self._on_event(
            Stepped(
                step=self._done,
                steps=job.steps,
                loss=outcome.loss,
                learning_rate=learning_rate,
                is_skipped=outcome.is_skipped,
                tokens=outcome.tokens,
                seconds=seconds,
                peak_bytes=self._peak_bytes(),
            )
        )

    def _examples(self) -> list[TrainingExample]:
        """Return the examples of the next step."""
        job = self._job
        epoch, index = divmod(self._done, job.steps_of_epoch)
        if self._order[0] != epoch:
            rows, seed = job.choices.batch_size or 1, job.choices.seed
            self._order = epoch, epoch_steps(job.train, rows=rows, seed=seed, epoch=epoch)
        return [job.train[row] for row in self._order[1][index]]

    def _evaluate(self) -> None:
        rows = self._job.validation
        self._on_event(Evaluating(self._done))
        asked = rows[:MOST_ASKED]
        answers = self._answers_to(asked)
        exact = sum(answer == row.answer for answer, row in zip(answers, asked, strict=True))
        loss = self._steps.mean_loss(rows) if rows else 0.0
        found = Evaluated(self._done, loss, exact, len(asked))
        is_best = all(each.rank <= found.rank for each in self._evaluations)
        self._evaluations.append(found)
        if self._done == 0:
            self._answers["before"] = answers
            self._answers["others"] = self._answers_to_others()
        if is_best:
            self._answers["after"] = answers
            self._output.checkpoints.save_best(self._checkpoint(with_optimizer=False))
        self._output.append(
            {"step": found.step, "validation_loss": loss, "exact": exact, "asked": len(asked)}
        )
        self._on_event(found)

    def _answers_to(self, rows: Sequence[TrainingExample]) -> list[str]:
        if not rows:
            return []
        longest = max(count_labels(row) for row in rows) + _SPARE_TOKENS
        found = self._answer([row.request for row in rows], longest)
        return [each.text.strip() for each in found]

    def _answers_to_others(self) -> list[str]:
        if not self._others:
            return []
        return [each.text.strip() for each in self._answer(self._others, ANSWER_TOKENS)]

    def _evaluated_steps(self) -> set[int]:
        """Return the numbers of steps after which the model is evaluated."""
        steps, epoch = self._job.steps, self._job.steps_of_epoch
        tenths = {round(steps * part / _EVALUATIONS) for part in range(1, _EVALUATIONS + 1)}
        if steps // epoch > _EVALUATIONS:
            return tenths
        return tenths | set(range(epoch, steps + 1, epoch))

    def _save(self, write_weights: Callable[[], None]) -> None:
        if not self._job.choices.full:
            write_weights()
        self._output.checkpoints.save(self._checkpoint(with_optimizer=True))
        self._on_event(Saved(self._done))

    def _checkpoint(self, *, with_optimizer: bool) -> Checkpoint:
        notes = {
            "micro_tokens": self._steps.micro_tokens,
            "log_bytes": self._output.log_size,
            "evaluations": [asdict(each) for each in self._evaluations],
            "answers": self._answers,
        }
        state = self._steps.state() if with_optimizer else {}
        return Checkpoint(self._done, _on_cpu(self.targets.parameters), _on_cpu(state), notes)

    def _restore(self) -> None:
        found = self._output.checkpoints.latest()
        if found is None:
            self._output.cut_log(0)
            return
        self._take(found.weights)
        self._steps.load_state(found.optimizer)
        notes: dict[str, Any] = dict(found.notes)  # Any: JSON
        self._steps.micro_tokens = notes["micro_tokens"]
        self._output.cut_log(notes["log_bytes"])
        self._evaluations = [Evaluated(**each) for each in notes["evaluations"]]
        self._answers = notes["answers"]
        self._done = found.step

    def _take_best(self, step: int) -> bool:
        found = self._output.checkpoints.best(step)
        if found is not None:
            self._take(found.weights)
        return found is not None

    def _take(self, weights: Any) -> None:
        for name, parameter in self.targets.parameters.items():
            parameter.data.copy_(weights[name])

    def _result(self, *, is_whole: bool, weights_step: int) -> TuneResult:
        rows = self._job.validation[:MOST_ASKED] if is_whole else []
        now = self._answers_to_others() if is_whole else []
        pairs = list(zip(self._answers.get("others", []), now, strict=False))
        before, after = (self._answers.get(name, []) for name in ("before", "after"))
        samples = tuple(
            SampleAnswer(
                row.sources[0].source if row.sources else "",
                row.request.messages[-1].text.strip(),
                row.answer,
                *answers,
            )
            for row, *answers in zip(rows, before, after, strict=False)
        )
        return TuneResult(
            is_whole,
            self._done,
            self._job.steps,
            weights_step,
            tuple(self._evaluations),
            samples,
            others=len(pairs),
            kept=sum(one == two for one, two in pairs),
        )

    def _peak_bytes(self) -> int:
        device = self._loaded.model.device
        if device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(device))
        return int(psutil.Process().memory_info().rss)


def _on_cpu(tensors: Any) -> dict[str, Tensor]:
    return {name: tensor.detach().to("cpu", copy=True) for name, tensor in tensors.items()}


def _log_line(
    step: int, outcome: StepOutcome, learning_rate: float, seconds: float
) -> dict[str, object]:
    return {
        "step": step,
        "loss": round(outcome.loss, 6),
        "learning_rate": learning_rate,
        "norm": None if outcome.is_skipped else round(outcome.norm, 6),
        "tokens": outcome.tokens,
        "seconds": round(seconds, 4),
    }
