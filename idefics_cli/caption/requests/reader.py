"""The reader of requests: it turns a row of the list into a request that is ready for the model."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from idefics_cli.caption.executors.reading import Opened
from idefics_cli.caption.item import CaptionItem, ItemWords
from idefics_cli.caption.job import CaptionJob
from idefics_cli.caption.records import failed
from idefics_cli.caption.requests.listing import RequestList
from idefics_cli.caption.requests.row import decode_row
from idefics_cli.caption.requests.shapes import Defaults, Request, request_of
from idefics_cli.caption.resume.entry import JournalEntry
from idefics_cli.caption.resume.stamp import FileContent, sha256_of
from idefics_cli.core.errors import ImageError, PromptError
from idefics_cli.core.files import stamp_of_file
from idefics_cli.core.types import Attachment, CaptionRecord, GenerationRequest, Part
from idefics_cli.engine.protocol import Engine


class RequestSource:
    """The requests of a list, parsed when they are needed. Safe in any thread.

    Args:
        rows: The list.
        defaults: What a request has if its row does not say it.

    Attributes:
        rows: The argument of this name.
        other_models: How many rows named each model other than the one that answers.
    """

    def __init__(self, rows: RequestList, defaults: Defaults) -> None:
        self.rows = rows
        self.other_models: Counter[str] = Counter()
        self._defaults = defaults

    def request(self, key: str) -> Request:
        """Return the request of the row *key*.

        Raises:
            PromptError: If the row is no request.
        """
        row = decode_row(self.rows.text(key))
        if (first := self.rows.same_id(key)) is not None:
            raise PromptError(
                f"line {first} has the same `custom_id`", hint="give each request its own"
            )
        request = request_of(row, self._defaults, self.rows.resolve)
        if request.model is not None and (
            len(self.other_models) < 100 or request.model in self.other_models
        ):
            self.other_models[request.model] += 1
        return request


class RequestReader:
    """Reads the rows of a job; see `ItemReader`.

    Args:
        source: The requests.
        job: The job. The engine has its limits.
        engine: Prepares the requests.
    """

    def __init__(self, source: RequestSource, job: CaptionJob, engine: Engine) -> None:
        self._source = source
        self._engine = engine

    def read(self, picture: CaptionItem) -> Opened | CaptionRecord:
        """Return the request of a row, or the record of its failure."""
        before: str | None = None
        try:
            request = self._source.request(picture.key)
            before = _stamps(request.names)
            digests = {source: _digest_of(source) for source in request.names}
            prepared = self._engine.prepare(_with_digests(request.generation, digests))
            if _stamps(request.names) != before:
                raise ImageError(
                    "a picture changed while it was read",
                    kind="truncated",
                    hint="run the same command again when it is whole",
                )
        except Exception as error:  # a worker's edge
            return replace(failed(picture.key, error), stamp=before)
        content = FileContent(_joined(digests.values()), before)
        return Opened(picture, (prepared,), content, request.form)


class RequestRules:
    """How a journal knows requests: by the text of a row, and the files of its pictures.

    A request whose row is gone has no answer in the output. See `ItemRules`.

    Args:
        rows: The list.
    """

    words = ItemWords("request", "answer", "answered", "answer")
    keeps_unlisted = False

    def __init__(self, rows: RequestList) -> None:
        self._rows = rows

    def identity(self, key: str, folder: Path) -> str:
        """Return the digest of the row *key*."""
        return self._rows.identity(key)

    def name(self, identity: str, folder: Path) -> str:
        """Return *identity*: a row that is not listed has no number."""
        return identity

    def has_changed(self, item: CaptionItem, entry: JournalEntry) -> bool:
        """Return whether a picture has changed. Files are read only if their stamps changed."""
        lines = [line.partition(" ") for line in (entry.stamp or "").split("\0") if line]
        files = [(former, self._rows.resolve(path)) for former, _, path in lines]
        # A file that is missing now counts as unchanged, so that its answer is kept.
        if all(stamp_of_file(path) in (None, former) for former, path in files):
            return False
        return entry.sha256 is None or entry.sha256 != _joined(
            _digest_of(path) for _, path in files
        )


def _with_digests(request: GenerationRequest, digests: Mapping[str, str]) -> GenerationRequest:
    """Return *request* with the digests of its files.

    The engine then decodes a picture once, however many requests are about it.
    """

    def known(part: Part) -> Part:
        if isinstance(part, str):
            return part
        return replace(part, digest=digests.get(part.source, ""))

    messages = (replace(m, parts=tuple(map(known, m.parts))) for m in request.messages)
    return replace(request, messages=tuple(messages))


def _digest_of(source: str) -> str:
    return sha256_of(CaptionItem(source, Attachment(source))) or ""


def _joined(digests: Iterable[str]) -> str | None:
    """Return a digest of *digests*; None if there are none."""
    text = " ".join(digests)
    return hashlib.sha256(text.encode()).hexdigest() if text else None


def _stamps(names: Mapping[str, str]) -> str | None:
    """Return an entry for each file, separated by NUL: its stamp, a space, its path in the row.

    The stamp of a missing file is `-`.
    """
    entries = (f"{stamp_of_file(source) or '-'} {name}" for source, name in names.items())
    return "\0".join(entries) or None
