"""The progress of a tuning run, on stderr."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Self

from idefics_cli.core.types import Progress
from idefics_cli.core.units import counted, format_duration, format_size
from idefics_cli.training.tuning.estimate import TrainingMemory
from idefics_cli.training.tuning.events import (
    Evaluated,
    Evaluating,
    Saved,
    Stepped,
    TargetsChosen,
    TuneEvent,
)
from idefics_cli.ui.terminal.console import Console

if TYPE_CHECKING:
    from idefics_cli.training.preparing import DataSummary

# Where no line can be redrawn, a line is written from time to time.
_FIRST_LINE_SECONDS = 10.0
_LINE_SECONDS = 30.0
# The shown loss is a running mean over about this number of steps.
_SMOOTHED_STEPS = 20


class TuneProgress:
    """Shows a tuning run: a line that is redrawn on a terminal, elsewhere lines now and then.

    Args:
        console: The streams of the command.
        clock: Returns seconds.
    """

    def __init__(self, console: Console, *, clock: Callable[[], float]) -> None:
        self._console, self._clock = console, clock
        self._status = ExitStack()
        self._show: Progress | None = None
        self._next_line = clock() + _FIRST_LINE_SECONDS
        self._loss: float | None = None
        self._skipped = 0
        self._tokens, self._seconds, self._steps = 0, 0.0, 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Remove the line."""
        self._status.close()

    def handle(self, event: TuneEvent) -> None:
        """Show *event*."""
        match event:
            case TargetsChosen():
                self._tell(_targets(event))
                if event.done:
                    self._tell(f"going on after {event.done} of {event.steps} steps")
            case Evaluating():
                self._redraw(f"step {event.step}: trying the model on rows that it does not learn")
            case Evaluated():
                self._tell(evaluation_line(event))
            case Stepped():
                self._count(event)
            case Saved():
                pass

    def show_stopping(self) -> None:
        """Tell that the run ends after the current step."""
        self._tell("finishing the step; Ctrl-C again stops at once")

    def _count(self, event: Stepped) -> None:
        share = 1 / min(self._steps + 1, _SMOOTHED_STEPS)
        former = event.loss if self._loss is None else self._loss
        self._steps += 1
        if event.is_skipped:
            self._tell(f"step {event.step} was left out: its gradients were not finite")
        else:
            self._loss = former + share * (event.loss - former)
        self._tokens += event.tokens
        self._seconds += event.seconds
        line = self._line(event)
        if self._console.draws:
            self._redraw(line)
        elif self._clock() >= self._next_line and event.step < event.steps:
            self._console.note(line)
            self._next_line = self._clock() + _LINE_SECONDS

    def _line(self, event: Stepped) -> str:
        left = (event.steps - event.step) * self._seconds / self._steps
        parts = [f"step {event.step} of {event.steps}"]
        if self._loss is not None:
            parts.append(f"loss {self._loss:.3f}")
        if self._seconds:
            parts.append(f"{self._tokens / self._seconds:.0f} tokens/s")
        return ", ".join([*parts, format_size(event.peak_bytes), f"{format_duration(left)} left"])

    def _redraw(self, text: str) -> None:
        if not self._console.draws or self._console.quiet:
            return
        if self._show is None:
            self._show = self._status.enter_context(self._console.status(text))
        self._show(text, None)

    def _tell(self, text: str) -> None:
        """Write a line that stays."""
        self._status.close()
        self._show = None
        self._console.tell(text)


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What `--dry-run` finds out.

    Attributes:
        rows: Number of rows of the data that are learned.
        replayed_rows: Number of rows with the model's own answers that are learned, too.
        validation_rows: Number of rows that are not.
        left_out: Number of rows that are left out, by reason.
        tokens: Number of tokens of all rows that are learned.
        longest: Number of tokens of the longest of them.
        labelled: Number of their tokens that are learned.
        layers: Number of layers with LoRA matrices; 0 if the weights are trained.
        trained: Number of trained weights.
        steps: Number of steps.
        seconds: Estimated time of all steps, without evaluations.
        memory: Estimated memory of training.
        device: The device of the model.
    """

    rows: int
    replayed_rows: int
    validation_rows: int
    left_out: dict[str, int]
    tokens: int
    longest: int
    labelled: int
    layers: int
    trained: int
    steps: int
    seconds: float
    memory: TrainingMemory
    device: str


def rehearsal_lines(rehearsal: Rehearsal) -> list[str]:
    """Return what `--dry-run` prints."""
    memory = rehearsal.memory
    beside = f" beside {counted(rehearsal.layers, 'layer')}" if rehearsal.layers else ""
    replayed = counted(rehearsal.replayed_rows, "answer")
    own = f"{replayed} of the model to other questions, " if rehearsal.replayed_rows else ""
    tried = f"{rehearsal.validation_rows} to try the model on"
    rows = [
        ("rows", f"{rehearsal.rows} to learn, {own}{tried}"),
        *(("left out", f"{count}: {reason}") for reason, count in rehearsal.left_out.items()),
        (
            "tokens",
            f"{rehearsal.tokens:,}, of which {rehearsal.labelled:,} are learned; "
            f"the longest row has {rehearsal.longest:,}",
        ),
        ("trained", f"{rehearsal.trained:,} weights{beside}"),
        ("steps", f"{rehearsal.steps}, in about {format_duration(rehearsal.seconds)}"),
        ("memory", f"about {format_size(memory.total)} of {_memory_of(rehearsal.device)}"),
        ("  weights", format_size(memory.weights)),
        ("  training", format_size(memory.trained)),
        ("  activations", format_size(memory.activations)),
        ("  logits", format_size(memory.logits)),
        ("  vision", format_size(memory.vision)),
        ("  libraries", format_size(memory.runtime)),
    ]
    return [f"{name:<14} {text}" for name, text in rows]


def _memory_of(device: str) -> str:
    return "RAM" if device in ("cpu", "mps") else f"the memory of the GPU ({device})"


def tell_data(
    console: Console, summaries: Sequence[DataSummary], *, learned: int, tried: int
) -> None:
    """Tell what the data of a run holds, and how many rows are learned, or tried."""
    parts = [f"{counted(learned, 'row')} to learn", f"{tried} to try the model on"]
    reasons = Counter[str]()
    for summary in summaries:
        reasons.update(summary.left_out)
    if reasons:
        told = ", ".join(f"{reason}: {count}" for reason, count in reasons.items())
        parts.append(f"{sum(reasons.values())} left out ({told})")
    console.tell(", ".join(parts))
    repeated = sum(summary.repeated for summary in summaries)
    if repeated:
        console.note(f"{counted(repeated, 'row')} repeat an earlier one")
    contradicting = [key for summary in summaries for key in summary.contradicting]
    if contradicting:
        count = sum(summary.contradictions for summary in summaries)
        console.warn(
            f"{counted(count, 'row')} ask what an earlier one asks, and want another answer, "
            f"such as `{contradicting[0]}`"
        )


def evaluation_line(event: Evaluated) -> str:
    """Return an evaluation as a line."""
    if not event.asked:
        return f"step {event.step}: no rows to try the model on"
    return (
        f"step {event.step}: validation loss {event.loss:.3f}, "
        f"{event.exact} of {event.asked} answers exact"
    )


def _targets(event: TargetsChosen) -> str:
    parts = f"of the {' and '.join(event.parts)} model, in {counted(event.steps, 'step')}"
    if not event.layers:
        return f"training {event.weights:,} weights {parts}"
    layers = counted(event.layers, "layer")
    return f"training an adapter of {event.weights:,} weights beside {layers} {parts}"
