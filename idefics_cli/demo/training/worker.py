"""One process of a training run: its options, its steps and its watches."""

from __future__ import annotations

import json
import multiprocessing
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from transformers.utils import logging

from idefics_cli.core.errors import EXIT_INTERRUPTED
from idefics_cli.demo.build import build_model, build_processor
from idefics_cli.demo.training.course import Course
from idefics_cli.demo.training.dataset import BatchSource, Pictures
from idefics_cli.demo.training.encoding import Encoder
from idefics_cli.demo.training.losses import AuxiliaryHeads, Losses, compute_losses
from idefics_cli.demo.training.messages import print_line
from idefics_cli.demo.training.parameters import HEADS, language_names, matrix_names
from idefics_cli.demo.training.watch import WATCHED, share_right, watch
from idefics_cli.models.families.protocols import Processor
from idefics_cli.training.optimizer import Barrier, Buffers, ShardedOptimizer

LOG = "training.jsonl"
"""Name of the log in the folder of the model. Each watch adds a line."""


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a training run.

    Attributes:
        out: Folder of the model and of the log.
        data: Folder of the drawn pictures; None means a temporary folder.
        minutes: Length of the training, without the drawing of pictures. It counts only if *steps*
            is None.
        steps: Length of the training in optimizer steps; None means that *minutes* counts.
        processes: Number of processes, with one core each; 1 on a GPU.
        pictures: Number of pictures of the training split.
        watch_seconds: Time between two watches.
        watch_pictures: Number of held-out pictures of a watch.
        seed: Seed of the weights, of the order of the pictures and of the questions.
        device: "cpu", "cuda" or "mps".
        dtype: Dtype of weights and computation, "bfloat16" or "float32". The optimizer keeps
            float32 copies of the weights.
        course: Learning rate, batches and phases.
    """

    out: Path
    data: Path | None = None
    minutes: float = 37.0
    steps: int | None = None
    processes: int = 1
    pictures: int = 150_000
    watch_seconds: float = 180.0
    watch_pictures: int = 160
    seed: int = 0
    device: str = "cpu"
    dtype: str = "float32"
    course: Course = field(default_factory=Course)

    @property
    def final_pictures(self) -> int:
        """Number of held-out pictures of the last watch."""
        return self.watch_pictures * 15 // 4


@dataclass(frozen=True, slots=True)
class Shared:
    """Memory and barrier that the processes of one run share.

    Attributes:
        buffers: Weights and gradients.
        control: Two numbers that process 0 sets, float64: the progress from 0 to 1, and 1 if it is
            time for a watch.
        tallies: Results of a watch (processes, watched tasks, 2), int64.
        barrier: A barrier at which all processes wait for each other.
    """

    buffers: Buffers
    control: Tensor
    tallies: Tensor
    barrier: Barrier


@dataclass(frozen=True, slots=True)
class Fresh:
    """The processor, the model and the auxiliary heads before training.

    They are equal in all processes.
    """

    processor: Processor
    model: nn.Module
    heads: AuxiliaryHeads

    @classmethod
    def build(cls, options: Options) -> Fresh:
        """Make the modules from the seed of *options*."""
        torch.manual_seed(options.seed)
        processor = build_processor()
        model = build_model(processor.tokenizer)
        # On a CPU, the backward pass of the fused attention in bfloat16 takes twice as long.
        model.set_attn_implementation("eager")  # type: ignore[operator]  # a PreTrainedModel
        return cls(processor, model, AuxiliaryHeads())

    def parameters(self) -> dict[str, nn.Parameter]:
        """Return all parameters by name. Names of the auxiliary heads begin with `HEADS`."""
        heads = {HEADS + name: each for name, each in self.heads.named_parameters()}
        return dict(self.model.named_parameters()) | heads


def work(rank: int, options: Options, shared: Shared) -> None:
    """Train in this process, which is number *rank* of several."""
    logging.disable_progress_bar()
    torch.set_num_threads(1)
    # Ctrl-C reaches every process of the group. Only the process that started the others reports
    # it.
    with suppress(KeyboardInterrupt, threading.BrokenBarrierError):
        Worker(rank, options, shared, Fresh.build(options)).run()


class Worker:
    """One process of a run. All processes train; process 0 also keeps time, logs and saves."""

    def __init__(self, rank: int, options: Options, shared: Shared, fresh: Fresh) -> None:
        self._rank, self._options, self._shared = rank, options, shared
        self._processor, self._model, self._heads = fresh.processor, fresh.model, fresh.heads
        self._encoder = Encoder(self._processor)
        parameters = fresh.parameters()
        self._optimizer = ShardedOptimizer(
            parameters,
            shared.buffers,
            matrices=matrix_names(parameters),
            pausable=language_names(parameters),
            rank=rank,
            barrier=shared.barrier,
        )
        if options.data is None:
            raise ValueError("the pictures are not rendered yet")
        self._held_out = Pictures(options.data, "combo")
        self._source = BatchSource(
            Pictures(options.data, "train"),
            self._encoder,
            seed=options.seed,
            rank=rank,
            processes=options.processes,
        )
        self._started = self._watched = time.monotonic()
        self._losses: list[dict[str, float]] = []

    def run(self) -> None:
        """Train until the time or the number of steps is reached."""
        progress, step = 0.0, 0
        while progress < 1:
            self._step(progress, step)
            step += 1
            self._exit_if_orphaned()
            if self._rank == 0:
                self._keep_time(step)
            self._shared.barrier.wait()
            progress, watches = self._shared.control.tolist()
            if watches:
                self._watch(step, progress)

    def _exit_if_orphaned(self) -> None:
        """End all workers if the process that started them was killed."""
        parent = multiprocessing.parent_process()
        if parent is not None and not parent.is_alive():
            self._shared.barrier.abort()
            raise SystemExit(EXIT_INTERRUPTED)

    def _step(self, progress: float, step: int) -> None:
        phase = self._options.course.at(progress, step)
        size = max(1, round(phase.batch_size / self._options.processes))
        batch = self._source.next_batch(size, is_vision_only=phase.is_vision_only)
        self._optimizer.clear()
        losses = compute_losses(
            self._model, self._heads, batch, with_language=not phase.is_vision_only
        )
        losses.total(phase.auxiliary_weight).backward()  # type: ignore[no-untyped-call]  # torch 2.13
        norm = self._optimizer.step(phase.learning_rate, pauses=phase.is_vision_only)
        self._losses.append(_numbers(losses) | {"gradient_norm": norm})

    def _keep_time(self, step: int) -> None:
        now = time.monotonic()
        if self._options.steps is not None:
            progress = step / self._options.steps
        else:
            progress = (now - self._started) / (60 * self._options.minutes)
        watches = progress >= 1 or now - self._watched > self._options.watch_seconds
        self._shared.control[:] = torch.tensor([min(1.0, progress), float(watches)])

    def _watch(self, step: int, progress: float) -> None:
        """Ask about held-out pictures; process 0 logs the result and saves the model."""
        is_last = progress >= 1
        count = self._options.final_pictures if is_last else self._options.watch_pictures
        indices = range(self._rank, count, self._options.processes)
        tally = watch(self._model, self._encoder, self._held_out, indices, seed=self._rank)
        self._shared.tallies[self._rank] = tally
        self._shared.barrier.wait()
        if self._rank == 0:
            self._log(step, progress, self._shared.tallies.sum(0))
            save(self._model, self._processor, self._options.out)
        self._losses.clear()
        self._watched = time.monotonic()
        self._shared.barrier.wait()

    def _log(self, step: int, progress: float, tally: Tensor) -> None:
        seconds = time.monotonic() - self._started
        means = {
            name: round(sum(values) / len(values), 4)
            for name in ("language", "patches", "slots", "gradient_norm")
            if (values := [losses[name] for losses in self._losses if name in losses])
        }
        tasks = {
            task: round(right / asked, 3)
            for task, (right, asked) in zip(WATCHED, tally.tolist(), strict=True)
            if asked
        }
        right = share_right(tally)
        record = {"step": step, "seconds": round(seconds, 1), "losses": means, "right": right}
        with (self._options.out / LOG).open("a", encoding="utf-8") as file:
            file.write(json.dumps(record | {"tasks": tasks}) + "\n")
        shown = "  ".join(f"{name} {value}" for name, value in means.items())
        print_line(f"{progress:5.0%}  step {step}  {seconds:.0f} s  right {right:.1%}  {shown}")


def _numbers(losses: Losses) -> dict[str, float]:
    numbers = {"patches": losses.patches.item(), "slots": losses.slots.item()}
    return numbers if losses.language is None else numbers | {"language": losses.language.item()}


def save(model: nn.Module, processor: Processor, folder: Path) -> None:
    """Write a folder for `from_pretrained`: bfloat16 weights, config, processor, tokenizer."""
    # The weights are copied into a new model, because the trained one has its weights in shared
    # memory and uses eager attention.
    copy = build_model(processor.tokenizer).to(torch.bfloat16)
    copy.load_state_dict(model.state_dict())
    cast(_Savable, copy).save_pretrained(folder)
    cast(_Savable, processor).save_pretrained(folder)
    for path in folder.iterdir():
        # safetensors makes its files readable for their owner only, so the mode is set here.
        if path.is_file():
            path.chmod(0o644)


class _Savable(Protocol):
    """A model or a processor of transformers."""

    def save_pretrained(self, folder: Path) -> None:
        """Write the files of this object to *folder*."""
        ...
