"""The stage of a scenario: both contenders, prompts, pictures and the choices of the user."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol

from idefics_cli.bench.agreement import Agreement, Gap, compare, tolerance
from idefics_cli.bench.cold_start.processes import Processes
from idefics_cli.bench.contenders import Ours
from idefics_cli.bench.measure import (
    Contender,
    Instruments,
    Measurement,
    Pace,
    PairedRounds,
    Series,
    measure_in_turns,
)
from idefics_cli.bench.pictures import Studio
from idefics_cli.bench.report import ReportRow
from idefics_cli.bench.serving.processes import OpenServer
from idefics_cli.bench.stand_ins import MeasureBytes, RunWorkers
from idefics_cli.bench.tuning.process import OpenTrainer
from idefics_cli.core.types import (
    Attachment,
    GenerationRequest,
    LoadSpec,
    Message,
    Part,
    Quantization,
    Sampling,
)
from idefics_cli.engine.protocol import Engine

# A prompt repeats this sentence until it is long enough. Answers to such prompts end only at the
# limit of tokens, so both contenders do equal work: the built-in model writes "I I I …", and random
# weights hardly ever generate an end token.
_FILLER = " Describe this image."
QUESTION = "Describe this image."


class PlainContender(Contender, Protocol):
    """A contender that can also rate the tokens of the other side."""

    def gap(self, request: GenerationRequest, tokens: tuple[int, ...]) -> float:
        """Return the gap of an answer of the other side; see the top of `agreement`."""
        ...


@dataclass(frozen=True, slots=True)
class CaptionTask:
    """A captioning run to measure.

    Attributes:
        pictures: Picture files, in order.
        prompt: Prompt for each picture.
        max_new_tokens: Largest number of tokens of a caption.
        batch_size: Largest number of pictures at a time.
    """

    pictures: tuple[Path, ...]
    prompt: str
    max_new_tokens: int
    batch_size: int = 8


CaptionRun = Callable[[Engine, CaptionTask], Mapping[Path, str]]
"""A function that captions every picture with an engine, closes the engine, and returns captions.

A picture that failed has no entry in the result.
"""


@dataclass(frozen=True, slots=True)
class Choices:
    """Choices of the user.

    Attributes:
        batch_sizes: Batch sizes of `decode`, and of plain transformers in `caption`.
        contexts: Numbers of prompt tokens in `prefill` and `decode`.
        new_tokens: Length of an answer.
        pace: How long a measurement takes.
        quick: Whether to measure fewer figures.
        sizes: Width and height of the pictures in `vision`.
        count: Number of pictures to caption.
        pictures: Files to caption; if there are none, pictures are drawn.
        caption_prompt: Prompt for each picture to caption.
        caption_batch: Largest number of pictures at a time in our captioning.
        both_splittings: Whether to measure vision with and without splitting, if the model can
            do both.
        plain_quantization: Quantization of plain transformers; None means the same as on our side.
        train_rows: Number of rows of a training step.
        train_dtype: Dtype of training, or "auto".
        checkpointing: Whether training computes activations twice, to save memory.
    """

    batch_sizes: tuple[int, ...] = (1, 4, 16)
    contexts: tuple[int, ...] = (800, 2000)
    new_tokens: int = 24
    pace: Pace = field(default_factory=Pace)
    quick: bool = False
    sizes: tuple[tuple[int, int], ...] = ((980, 980), (980, 653), (640, 480))
    count: int = 24
    pictures: tuple[Path, ...] = ()
    caption_prompt: str = QUESTION
    caption_batch: int = 8
    both_splittings: bool = True
    plain_quantization: Quantization | None = None
    train_rows: int = 4
    train_dtype: str = "auto"
    checkpointing: bool = True


@dataclass(frozen=True, slots=True)
class World:
    """Connections of a run to the outside.

    Attributes:
        spec: How our side loads the model.
        folder: Folder of the checkpoint.
        name: Name of the model as a command takes it.
        make_engine: Loads our engine.
        make_plain: Loads plain transformers.
        caption: Runs our captioning.
        draw_scenes: Writes a number of pictures into a folder, for captions.
        processes: Starts fresh processes.
        open_trainer: Loads a model for training.
        open_server: Starts a server.
        run_workers: Runs stand-ins in worker processes.
        measure_bytes: Measures the memory of a run with stand-ins.
        instruments: The clock, the load of the machine, and the reference.
        say: Shows a text about the measurement that begins.
    """

    spec: LoadSpec
    folder: Path
    name: str
    make_engine: Callable[[LoadSpec], Engine]
    make_plain: Callable[[LoadSpec], PlainContender]
    caption: CaptionRun
    draw_scenes: Callable[[Path, int], Sequence[Path]]
    processes: Processes
    open_trainer: OpenTrainer
    open_server: OpenServer
    run_workers: RunWorkers
    measure_bytes: MeasureBytes
    instruments: Instruments
    say: Callable[[str], None] = lambda text: None


class Prompts:
    """Makes requests that all begin differently, so that no side can reuse a prefix.

    Args:
        spec: The loaded model. A base model gets texts to complete instead of chat messages.
        count: Returns the number of prompt tokens of a request.
    """

    def __init__(self, spec: LoadSpec, count: Callable[[GenerationRequest], int]) -> None:
        self._spec = spec
        self._count = count
        self._made = 0
        self._repeats: dict[int, int] = {}

    def text(self, tokens: int, *, new_tokens: int) -> GenerationRequest:
        """Return a request with a prompt of *tokens* tokens, or a few fewer."""
        if tokens not in self._repeats:
            one, two = (self._count(self._text(n, new_tokens)) for n in (1, 2))
            self._repeats[tokens] = max(1, 1 + (tokens - one) // max(1, two - one))
        return self._text(self._repeats[tokens], new_tokens)

    def about(self, pictures: Iterable[Path], text: str, *, new_tokens: int) -> GenerationRequest:
        """Return a request that asks *text* about *pictures*."""
        return self._request((*(Attachment(str(p)) for p in pictures), text), new_tokens)

    def reply(
        self, request: GenerationRequest, answer: str, text: str, *, new_tokens: int
    ) -> GenerationRequest:
        """Return *request* with its *answer* and a next question, *text*."""
        more = (Message("assistant", (answer,)), Message("user", (text,)))
        return replace(
            request,
            messages=(*request.messages, *more),
            sampling=Sampling(max_new_tokens=new_tokens),
        )

    def _text(self, repeats: int, new_tokens: int) -> GenerationRequest:
        self._made += 1
        # Each prompt begins with its own number, so that no two prompts share a prefix. The number
        # always has five digits, so that the prompts have the same length.
        return self._request((f"{self._made:05}{_FILLER * repeats}",), new_tokens)

    def _request(self, parts: tuple[Part, ...], new_tokens: int) -> GenerationRequest:
        if not self._spec.chats:
            # A raw prompt has a space before each text, as in the model card of idefics2-8b-base.
            parts = tuple(f" {part}" if isinstance(part, str) else part for part in parts)
        return GenerationRequest(
            (Message("user", parts),),
            Sampling(max_new_tokens=new_tokens),
            "chat" if self._spec.chats else "complete",
        )


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure to compute from measured rounds.

    Attributes:
        name: Name of the row.
        compares: What is timed, in words.
        unit: Unit of the values.
        value: Computes the value from the measurement of a side.
        more_is_better: Whether a larger value is better.
    """

    name: str
    compares: str
    unit: str
    value: Callable[[Measurement], float]
    more_is_better: bool = False


class Stage:
    """Both contenders with one model.

    Args:
        world: Connections to the outside.
        choices: Choices of the user.
        studio: Draws pictures.
    """

    def __init__(self, world: World, choices: Choices, studio: Studio) -> None:
        self.world = world
        self.choices = choices
        self.studio = studio
        self._engine: Engine | None = None
        self._spec = world.spec
        self._plain: tuple[LoadSpec, PlainContender] | None = None

    @property
    def spec(self) -> LoadSpec:
        """The choices for the model that is loaded, or that the next use loads."""
        return self._spec

    def use(self, spec: LoadSpec) -> None:
        """Use the model as *spec* says from now on; if it differs, both sides load it anew."""
        if spec != self._spec:
            self.close()
            self._spec = spec

    @property
    def engine(self) -> Engine:
        """Our engine, loaded at the first use."""
        if self._engine is None:
            self.world.say("loading ours")
            self._engine = self.world.make_engine(self._spec)
        return self._engine

    @property
    def plain(self) -> PlainContender:
        """Plain transformers, loaded at the first use."""
        method = self.choices.plain_quantization or self._spec.quantization
        spec = replace(self._spec, quantization=method)
        if self._plain is None or self._plain[0] != spec:
            self.world.say("loading plain transformers")
            self._plain = (spec, self.world.make_plain(spec))
        return self._plain[1]

    @property
    def context_tokens(self) -> int:
        """The largest number of tokens of a prompt and its reply together."""
        return self.engine.context_tokens

    def prompts(self) -> Prompts:
        """Return a new maker of requests."""
        engine = self.engine

        def count_tokens(request: GenerationRequest) -> int:
            measure = engine.measure(engine.prepare(request))
            assert measure is not None  # an engine in this process can count
            return measure.prompt_tokens

        return Prompts(self._spec, count_tokens)

    def measure_in_turns(self, make: Callable[[int], Sequence[GenerationRequest]]) -> PairedRounds:
        """Let both sides answer the requests of *make*; see `measure.measure_in_turns`."""
        ours = Ours(self.engine, self.world.instruments.clock)
        return measure_in_turns(
            make,
            ours,
            self.plain,
            pace=self.choices.pace,
            instruments=self.world.instruments,
        )

    def rows(
        self, scenario: str, paired: PairedRounds, figures: Iterable[Figure]
    ) -> Iterator[ReportRow]:
        """Yield a row for each of *figures*, computed from the same rounds."""
        agreement = self.agreement(paired)
        prompt = max(r.ours.prompt_tokens for r in paired.rounds)
        for figure in figures:
            ours = Series(tuple(figure.value(r.ours) for r in paired.rounds))
            plain = Series(tuple(figure.value(r.plain) for r in paired.rounds))
            yield ReportRow(
                scenario,
                figure.name,
                figure.compares,
                figure.unit,
                figure.more_is_better,
                ours,
                plain,
                agreement,
                paired.foreign_cores,
                paired.reference,
                (f"{prompt} prompt tokens",),
            )

    def agreement(self, paired: PairedRounds) -> Agreement:
        """Compare the answers of *paired*."""
        gap: Gap = self.plain.gap
        return compare(paired.all_rounds, allowed=self.allowed, gap=gap)

    @property
    def allowed(self) -> float | None:
        """Largest allowed gap between answers; None if all tokens must be equal."""
        other = self.choices.plain_quantization not in (None, self._spec.quantization)
        # transformers loads 4-bit weights as nf4 only, so with int4 the formats of both sides
        # differ.
        int4 = self._spec.quantization == "4bit" and self._spec.format_4bit == "int4"
        return tolerance(self._spec, same_format=not other and not int4)

    def release(self) -> None:
        """Free our engine; the next use loads it again."""
        if self._engine is not None:
            self._engine.close()
        self._engine = None

    def close(self) -> None:
        """Free both models."""
        self.release()
        self._plain = None

    @contextmanager
    def opened(self) -> Iterator[Stage]:
        """Free both models at the end of the `with` block.

        After Ctrl-C, this does not wait for work of the engine to end.
        """
        try:
            yield self
        except KeyboardInterrupt as error:
            if self._engine is not None:
                self._engine.__exit__(type(error), error, error.__traceback__)
            raise
        else:
            self.close()
