"""Rows become examples, and what is wrong with the data is known before the weights are loaded."""

from __future__ import annotations

import hashlib
import os
from array import array
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from itertools import islice

from idefics_cli.core.errors import (
    ContextError,
    IdeficsError,
    ImageError,
    PromptError,
    UsageError,
)
from idefics_cli.core.types import Attachment, Part, Progress
from idefics_cli.core.units import counted
from idefics_cli.models.families.base import Family
from idefics_cli.models.families.picture import PictureTensors, PreparedPicture
from idefics_cli.training.data.row import FAULTS, LeftOut, Reason, RowResult, TrainingRow
from idefics_cli.training.examples import TrainingExample, encode_row
from idefics_cli.training.labels import IGNORED, LabelledTokens
from idefics_cli.training.picture_files import TrainingPictures

SHOWN = 10
"""Largest number of rows that are kept for messages, of each kind."""


@dataclass(slots=True)
class DataSummary:
    """What the data holds.

    Attributes:
        rows: Number of rows that were read. A caption of several lines is one row.
        left_out: Number of rows that are not trained on, by reason.
        faults: The first rows that the user may want to mend.
        tokens: Number of tokens of all examples.
        labelled: Number of tokens that are learned.
        longest: Number of tokens of the longest example.
        pictures: Number of different pictures.
        repeated: Number of examples that are equal to an earlier one.
        contradictions: Number of examples with pictures and question of an earlier one, and
            another answer.
        contradicting: The keys of the first of them.
    """

    rows: int = 0
    left_out: Counter[Reason] = field(default_factory=Counter)
    faults: list[LeftOut] = field(default_factory=list)
    tokens: int = 0
    labelled: int = 0
    longest: int = 0
    pictures: int = 0
    repeated: int = 0
    contradictions: int = 0
    contradicting: list[str] = field(default_factory=list)

    @property
    def fault_count(self) -> int:
        """Number of rows that the user may want to mend."""
        return sum(self.left_out[reason] for reason in FAULTS)

    @property
    def fault_lines(self) -> list[str]:
        """What is wrong with these rows, a line for each of the first, and how many follow."""
        lines = [describe(fault) for fault in self.faults]
        more = self.fault_count - len(lines)
        return [*lines, f"and {counted(more, 'more row')} that cannot be used"] if more else lines


@dataclass(frozen=True, slots=True)
class PreparedExamples:
    """All examples of the data, in its order.

    Attributes:
        examples: The examples.
        summary: What the data holds.
        digest: Digest of the examples: equal digests mean equal tokens, labels and pictures.
    """

    examples: tuple[TrainingExample, ...]
    summary: DataSummary
    digest: str

    def check(self, data: str, *, skips_bad: bool) -> None:
        """Check that there is something to train on.

        Args:
            data: The name of the data in messages.
            skips_bad: Whether rows with faults are left out. If not, they are an error.

        Raises:
            UsageError: If there is no example.
            IdeficsError: If a row has a fault.
        """
        summary = self.summary
        first = f"; the first: {describe(summary.faults[0])}" if summary.faults else ""
        if not self.examples:
            counts = ", ".join(f"{reason}: {n}" for reason, n in summary.left_out.items())
            hint = "`--most-tokens` allows longer rows" if summary.left_out["too long"] else None
            raise UsageError(
                f"`{data}` has no row to train on" + (f" ({counts})" if counts else "") + first,
                hint=_fix(summary) if first else hint,
            )
        if first and not skips_bad:
            raise IdeficsError(
                f"{counted(summary.fault_count, 'row')} of `{data}` cannot be used{first}",
                hint=f"{_fix(summary)}; or leave them out with `--skip-bad`",
            )


def describe(left_out: LeftOut) -> str:
    """Return what is wrong with a row, on one line that names it."""
    text = str(left_out.error or left_out.reason)
    return text if left_out.key in text else f"{left_out.key}: {text}"


def prepare_examples(
    rows: Iterable[RowResult],
    family: Family,
    pictures: TrainingPictures,
    *,
    most_tokens: int | None = None,
    threads: int | None = None,
    report: Progress = lambda phase, share: None,
) -> PreparedExamples:
    """Turn *rows* into examples, and open each of their pictures once.

    Args:
        rows: The rows of the data.
        family: Family of the model.
        pictures: Opens the pictures.
        most_tokens: Largest number of tokens of an example. Longer rows are left out, not cut.
        threads: Number of threads that open pictures; None takes that of the processors, up to 4.
        report: Gets the number of the current row.

    Raises:
        UsageError: If the data cannot be read.
    """
    maker = _Maker(family, most_tokens)
    with _PictureThreads(pictures, threads or min(4, os.cpu_count() or 1)) as readers:
        for row, opened in readers.read(rows):
            is_further = isinstance(row, LeftOut) and row.reason == "further line"
            maker.summary.rows += not is_further
            report(f"reading row {maker.summary.rows}", None)
            maker.add(row, opened)
    maker.summary.pictures = len(pictures)
    return PreparedExamples(tuple(maker.examples), maker.summary, maker.digest.hexdigest())


_Opened = Mapping[Attachment, tuple[Attachment, PreparedPicture]]
"""The file and the picture of each attachment of a row."""


class _Maker:
    def __init__(self, family: Family, most_tokens: int | None) -> None:
        self._family = family
        self._most_tokens = most_tokens
        self._ids: dict[int, int] = {}
        self._answers: dict[bytes, bytes] = {}
        self.examples: list[TrainingExample] = []
        self.summary = DataSummary()
        self.digest = hashlib.sha256()

    def add(self, row: RowResult, opened: _Opened | ImageError) -> None:
        """Add the example of *row*, or count the reason why it has none."""
        if isinstance(row, LeftOut):
            self._leave_out(row)
        elif isinstance(opened, ImageError):
            self._leave_out(LeftOut(row.key, "unreadable picture", opened))
        else:
            try:
                example = self._encode(row, opened)
            except ContextError as error:
                self._leave_out(LeftOut(row.key, "too long", error))
            except PromptError as error:
                self._leave_out(LeftOut(row.key, "wrong row", error))
            else:
                self._add(example)

    def _encode(self, row: TrainingRow, opened: _Opened) -> TrainingExample:
        def kept(part: Part) -> Part:
            return part if isinstance(part, str) else opened[part][0]

        found = dict(opened.values())
        messages = (replace(m, parts=tuple(map(kept, m.parts))) for m in row.messages)
        return encode_row(
            replace(row, messages=tuple(messages)),
            self._family,
            lambda attachment: PictureTensors(found[attachment]),
            most_tokens=self._most_tokens,
        )

    def _add(self, example: TrainingExample) -> None:
        tokens, summary = self._shared(example.tokens), self.summary
        self.examples.append(replace(example, tokens=tokens))
        summary.tokens += len(tokens.token_ids)
        summary.labelled += sum(label != IGNORED for label in tokens.labels)
        summary.longest = max(summary.longest, len(tokens.token_ids))
        for numbers in (tokens.token_ids, tokens.labels):
            self.digest.update(array("q", [len(numbers), *numbers]).tobytes())
        self.digest.update(example.content)
        texts = "\0".join(f"{m.role} {m.text}" for m in example.request.messages)
        asked = hashlib.sha256(example.content + texts.encode()).digest()
        answer = hashlib.sha256(example.answer.encode()).digest()
        known = self._answers.setdefault(asked, answer)
        if known is answer:
            return
        if known == answer:
            summary.repeated += 1
            return
        summary.contradictions += 1
        if len(summary.contradicting) < SHOWN:
            summary.contradicting.append(example.key)

    def _shared(self, tokens: LabelledTokens) -> LabelledTokens:
        """Return *tokens* with one object for each id, which takes a third of the memory."""
        known = self._ids.setdefault
        labels = [IGNORED if label == IGNORED else known(label, label) for label in tokens.labels]
        return LabelledTokens([known(i, i) for i in tokens.token_ids], labels)

    def _leave_out(self, row: LeftOut) -> None:
        self.summary.left_out[row.reason] += 1
        if row.reason in FAULTS and len(self.summary.faults) < SHOWN:
            self.summary.faults.append(row)


class _PictureThreads:
    """Threads that open the pictures of the next rows."""

    def __init__(self, pictures: TrainingPictures, threads: int) -> None:
        self._pictures = pictures
        self._window = 4 * threads
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="pictures")

    def __enter__(self) -> _PictureThreads:
        return self

    def __exit__(self, *error: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)

    def read(self, rows: Iterable[RowResult]) -> Iterator[tuple[RowResult, _Opened | ImageError]]:
        """Yield *rows* in order, with their pictures or the error of one of them."""
        left = iter(rows)
        waiting: deque[tuple[RowResult, Future[_Opened | ImageError]]] = deque()
        while True:
            for row in islice(left, self._window - len(waiting)):
                waiting.append((row, self._pool.submit(self._open, row)))
            if not waiting:
                return
            first, future = waiting.popleft()
            yield first, future.result()

    def _open(self, row: RowResult) -> _Opened | ImageError:
        if isinstance(row, LeftOut):
            return {}
        try:
            attachments = (a for message in row.messages for a in message.attachments)
            return {each: self._pictures.prepare(each) for each in attachments}
        except ImageError as error:
            return error


def _fix(summary: DataSummary) -> str:
    """Return how the user can mend the faults of the data."""
    errors = [fault.error for fault in summary.faults]
    if all(isinstance(error, ImageError) and error.kind == "missing" for error in errors):
        return "`--images DIR` says where the pictures are"
    hints = {error.hint for error in errors if error is not None}
    return (hints.pop() if len(hints) == 1 else None) or "mend them"
