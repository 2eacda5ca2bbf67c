"""The data of `idefics tune`: rows become examples, before the weights of the model are read."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from idefics_cli.cli.invocation import Invocation
from idefics_cli.core.files import scratch_folder
from idefics_cli.core.types import LoadSpec, Progress
from idefics_cli.core.units import counted

if TYPE_CHECKING:
    from idefics_cli.cli.commands.tune.prompts import RowPrompts
    from idefics_cli.models.families.base import Family
    from idefics_cli.training.data.options import Learn, Lines, ReadOptions
    from idefics_cli.training.examples import TrainingExample
    from idefics_cli.training.picture_files import TrainingPictures
    from idefics_cli.training.preparing import DataSummary, PreparedExamples


@dataclass(frozen=True, slots=True)
class DataChoices:
    """The data, and how it is read.

    Attributes:
        data: Folder or file.
        picture: Column with the picture.
        question: Column with the question.
        answer: Column with the answer.
        images: Folder to which the paths of pictures are relative.
        lines: Which lines of a text file are captions.
        learn: Which answers of a conversation are learned.
        validation: Share of the pictures that is not learned, or other data.
        most_tokens: Largest number of tokens of a row; None for the usual limit.
        skips_bad: Whether rows that cannot be used are left out.
    """

    data: str
    picture: str | None
    question: str | None
    answer: str | None
    images: str | None
    lines: Lines
    learn: Learn
    validation: float | Path
    most_tokens: int | None
    skips_bad: bool


@dataclass(frozen=True, slots=True)
class TuneData:
    """The examples, and what was left out.

    Attributes:
        train: The examples that are learned.
        validation: The examples that are not.
        pictures: Opens their pictures.
        summaries: What the data holds, and what the other data for validation holds, if any.
        prompt: The question for later captions; None if the rows have several.
    """

    train: list[TrainingExample]
    validation: list[TrainingExample]
    pictures: TrainingPictures
    summaries: tuple[DataSummary, ...]
    prompt: str | None = None

    @property
    def left_out(self) -> Counter[str]:
        """Number of rows that are left out, by reason."""
        counts: Counter[str] = Counter()
        for summary in self.summaries:
            counts.update(summary.left_out)
        return counts

    @property
    def faults(self) -> int:
        """Number of rows that the user may want to mend."""
        return sum(summary.fault_count for summary in self.summaries)

    @property
    def tokens(self) -> int:
        """Number of tokens of the examples that are learned."""
        return sum(len(example.tokens.token_ids) for example in self.train)


def check_data(choices: DataChoices) -> None:
    """Check that the data has rows of a known shape, without the model and its libraries.

    Raises:
        InputError: If it is missing, cannot be read, or has no rows.
        UsageError: If it has an unknown shape.
    """
    from idefics_cli.training.data.read import check_has_rows

    options = _read_options(choices)
    check_has_rows(Path(choices.data), options)
    if isinstance(choices.validation, Path):
        check_has_rows(choices.validation, options)


@contextmanager
def prepared_data(
    invocation: Invocation,
    choices: DataChoices,
    spec: LoadSpec,
    family: Family,
    context_tokens: int,
    *,
    report: Progress,
) -> Iterator[TuneData]:
    """Yield all examples, after each of their pictures was opened once.

    Raises:
        UsageError: If the data cannot be read, or no row is left.
        IdeficsError: If rows have faults, and the user did not say `--skip-bad`.
    """
    from idefics_cli.training.data.read import read_rows
    from idefics_cli.training.examples import split_examples
    from idefics_cli.training.picture_files import TrainingPictures
    from idefics_cli.training.preparing import prepare_examples
    from idefics_cli.training.tuning.job import MOST_TOKENS

    most = choices.most_tokens or min(context_tokens, MOST_TOKENS)
    options = _options(invocation, choices, spec, prompts := _prompts(invocation, spec))
    with scratch_folder("idefics-tune") as folder:
        pictures = TrainingPictures(family, folder, limits=spec.limits, offline=spec.offline)

        def examples_of(data: Path) -> PreparedExamples:
            rows = read_rows(data, options)
            found = prepare_examples(rows, family, pictures, most_tokens=most, report=report)
            return _checked(invocation, choices, found, data)

        found = examples_of(Path(choices.data))
        if isinstance(choices.validation, Path):
            train, other = list(found.examples), examples_of(choices.validation)
            _warn_of_shared(invocation, train, other.examples)
            validation, summaries = list(other.examples), [found.summary, other.summary]
        else:
            train, validation = split_examples(found.examples, choices.validation)
            summaries = [found.summary]
        yield TuneData(train, validation, pictures, tuple(summaries), prompts.to_record(train))


def _checked(
    invocation: Invocation, choices: DataChoices, found: PreparedExamples, data: Path
) -> PreparedExamples:
    for line in found.summary.fault_lines:
        invocation.console.warn(line)
    found.check(str(data), skips_bad=choices.skips_bad or invocation.settings.dry_run)
    return found


def _warn_of_shared(
    invocation: Invocation,
    train: Sequence[TrainingExample],
    validation: Sequence[TrainingExample],
) -> None:
    from idefics_cli.training.examples import find_shared

    if shared := find_shared(train, validation):
        invocation.console.warn(
            f"the pictures of {counted(len(shared), 'row')} for validation are learned, such as "
            f"those of {shared[0].key}, so the validation loss is too low"
        )


def _prompts(invocation: Invocation, spec: LoadSpec) -> RowPrompts:
    from idefics_cli.cli.commands.tune.prompts import RowPrompts
    from idefics_cli.models.hub.registry import default_caption_prompt

    prompt = invocation.settings.prompt or default_caption_prompt(spec.repo, chats=spec.chats)
    return RowPrompts(prompt, spec.limits)


def _options(
    invocation: Invocation, choices: DataChoices, spec: LoadSpec, prompts: RowPrompts
) -> ReadOptions:
    from idefics_cli.models.families.spec import find_family

    return replace(
        _read_options(choices),
        prompt=prompts.text,
        fill=prompts.fill,
        mode="chat" if spec.chats else "complete",
        seed=invocation.settings.seed or 0,
        takes_videos=find_family(spec.family).takes_videos,
    )


def _read_options(choices: DataChoices) -> ReadOptions:
    """Return the options that need no model, with an empty prompt."""
    from idefics_cli.training.data.options import ReadOptions

    return ReadOptions(
        "",
        picture=choices.picture,
        question=choices.question,
        answer=choices.answer,
        images=Path(choices.images) if choices.images else None,
        lines=choices.lines,
        learn=choices.learn,
    )
