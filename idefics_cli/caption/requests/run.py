"""A run over requests as a library call: `caption_pictures` with rows in place of pictures.

batch = RequestBatch(RequestList("requests.jsonl"), Defaults())
job = batch.job(batch_size=8)
outcome = caption_pictures(job, batch.output(Path("a.jsonl"), "demo"), spec, kind=batch.kind)
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.job import CaptionJob, CaptionQuestion
from idefics_cli.caption.kind import ItemKind
from idefics_cli.caption.output import CaptionOutput
from idefics_cli.caption.rehearsal import unreadable
from idefics_cli.caption.requests.answers import AnswerSink
from idefics_cli.caption.requests.listing import RequestList
from idefics_cli.caption.requests.reader import RequestReader, RequestRules, RequestSource
from idefics_cli.caption.requests.shapes import Defaults
from idefics_cli.caption.sinks.base import Existing, SinkFormat
from idefics_cli.caption.wording import Wording
from idefics_cli.core.errors import IdeficsError, ImageError, PromptError, UsageError
from idefics_cli.core.files import cannot_write, limited_lines, replacing
from idefics_cli.core.types import Finish, ImageLimits

EXTENSIONS = (".jsonl", ".ndjson")
"""Extensions of a file of answers."""
FAILURES_END = ".failures.jsonl"
"""What follows the name of the output in that of the list of failed requests."""


@dataclass(frozen=True, slots=True)
class Verbatim(Wording):
    """Takes each reply as it is."""

    def finish(self, text: str, finish: Finish) -> str:
        """Return *text*."""
        return text


@dataclass(slots=True)
class RequestBatch:
    """The requests of a run.

    Attributes:
        rows: The list.
        defaults: What a request has if its row does not say it.
        source: The requests, parsed.
    """

    rows: RequestList
    defaults: Defaults
    source: RequestSource = field(init=False)

    def __post_init__(self) -> None:
        self.source = RequestSource(self.rows, self.defaults)

    def job(
        self,
        *,
        batch_size: int,
        is_batch_automatic: bool = False,
        readers: int = 4,
        limits: ImageLimits | None = None,
    ) -> CaptionJob:
        """Return the job, with the rows in place of pictures."""
        return CaptionJob(
            self.rows,
            (CaptionQuestion(""),),
            mode="chat" if self.defaults.chats else "complete",
            sampling=self.defaults.sampling,
            batch_size=batch_size,
            is_batch_automatic=is_batch_automatic,
            readers=readers,
            limits=limits or ImageLimits(),
            form=self.defaults.form,
            banned=self.defaults.banned,
            wording=Verbatim(),
            asks_again=False,
            takes_any_reply=True,
        )

    @property
    def kind(self) -> ItemKind:
        """The kind of the items."""
        path = self.rows.path
        return ItemKind(
            partial(RequestReader, self.source),
            RequestRules(self.rows),
            partial(check_failed_requests, self.rows),
            partial(write_failed_requests, self.rows),
            () if path is None else (("the requests", Path(path)),),
            self.rows.place,
            {"prompt": None, "system": self.defaults.system},
        )

    def has_pictures(self) -> bool:
        """Return whether any request has a picture; wrong requests do not count."""
        for item in self.rows:
            with suppress(PromptError):
                if self.source.request(item.key).generation.attachments:
                    return True
        return False

    def unusable(
        self, items: Iterable[CaptionItem], limits: ImageLimits, *, takes_videos: bool = False
    ) -> Iterator[IdeficsError]:
        """Yield the error of each of *items* that is wrong, or has a picture that cannot be read.

        Only the headers of files are read. URLs are not opened.
        """
        for item in items:
            try:
                request = self.source.request(item.key)
            except PromptError as error:
                yield PromptError(f"{self.rows.place(item.key)}: {error}", hint=error.hint)
                continue
            pictures = (CaptionItem(item.key, one) for one in request.generation.attachments)
            for _, failure in unreadable(pictures, limits, takes_videos=takes_videos):
                yield ImageError(
                    f"{self.rows.place(item.key)}: {failure}", kind=failure.kind, hint=failure.hint
                )
                break

    def output(
        self,
        path: Path | None,
        model: str,
        *,
        existing: Existing = "error",
        failures: Path | None = None,
    ) -> CaptionOutput:
        """Return the output of the answers of *model*; see `CaptionOutput`."""
        make = partial(AnswerSink, rows=self.rows, model=model, form=self.defaults.form)
        return CaptionOutput(
            "answers",
            path,
            existing=existing,
            failures=failures,
            row=SinkFormat(make, extensions=EXTENSIONS),
            failures_end=FAILURES_END,
        )


def write_failed_requests(rows: RequestList, path: Path, keys: Sequence[str]) -> None:
    """Write the rows *keys* to *path*, as a file of requests; without keys, there is no file.

    Raises:
        IdeficsError: If the file cannot be written.
    """
    try:
        if not keys:
            if path.is_file():
                path.unlink()
            return
        with replacing(path) as file:
            for key in keys:
                file.write(_text(rows, key) + b"\n")
    except OSError as error:
        raise cannot_write(path, error) from error


def check_failed_requests(rows: RequestList, path: Path, keys: Collection[str]) -> None:
    """Check that a list of failed requests may replace *path*: a new file, or one of *rows*.

    Raises:
        UsageError: If the file holds anything else, which would be lost.
    """
    if not path.exists():
        return
    if not path.is_file():  # a pipe would wait for its writer
        raise UsageError(f"cannot write `{path}`: not a regular file")
    try:
        with path.open("rb") as file:
            if all(not line.strip() or rows.has_row(line) for line in limited_lines(file)):
                return
    except OSError as error:
        raise UsageError(f"cannot write `{path}`: {error.strerror}") from error
    raise UsageError(
        f"`{path}` exists already, and holds other things than requests of this run",
        hint="remove it, or name another file for `--failures`",
    )


def _text(rows: RequestList, key: str) -> bytes:
    try:
        return rows.text(key)
    except PromptError:  # too long, or changed since
        return b""
