"""The reader of requests: it turns a row of the list into a request that is ready for the model."""

from __future__ import annotations

import hashlib
import io
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from idefics_cli.caption.executors.reading import Opened
from idefics_cli.caption.item import CaptionItem, ItemWords
from idefics_cli.caption.job import CaptionJob
from idefics_cli.caption.records import failed
from idefics_cli.caption.requests.listing import RequestList
from idefics_cli.caption.requests.row import decode_row
from idefics_cli.caption.requests.shapes import Defaults, Request, request_of
from idefics_cli.caption.resume.journal import JournalEntry
from idefics_cli.caption.resume.stamp import FileContent, read_picture, stamp_of_file
from idefics_cli.core.errors import ImageError, PromptError
from idefics_cli.core.types import Attachment, CaptionRecord
from idefics_cli.engine.protocol import Engine, OpenImage
from idefics_cli.models.families.spec import find_family

if TYPE_CHECKING:
    from idefics_cli.images.media import Media


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
                f"`custom_id` is that of line {first} too", hint="give each request its own"
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
        job: The job, with its limits.
        engine: Prepares the requests.
    """

    def __init__(self, source: RequestSource, job: CaptionJob, engine: Engine) -> None:
        from idefics_cli.images.media import MediaLoader

        self._source = source
        self._engine = engine
        takes_videos = find_family(engine.spec.family).takes_videos
        self._loader = MediaLoader(job.limits, takes_videos=takes_videos)

    def read(self, picture: CaptionItem) -> Opened | CaptionRecord:
        """Return the request of a row, or the record of its failure."""
        names: dict[str, str] = {}
        digests: dict[str, str] = {}
        before: str | None = None
        try:
            request = self._source.request(picture.key)
            names.update(request.names)
            before = _stamps(names)
            prepared = self._engine.prepare(request.generation, open_image=self._opener(digests))
            if _stamps(names) != before:
                raise ImageError(
                    "a picture changed while it was read",
                    kind="truncated",
                    hint="run the same command again when it is whole",
                )
        except Exception as error:  # a worker's edge
            return replace(failed(picture.key, error), stamp=before)
        digest = "".join(digests.get(source, "") for source in names)
        sha256 = hashlib.sha256(digest.encode()).hexdigest() if names else None
        return Opened(picture, (prepared,), FileContent(sha256, before), request.form)

    def _opener(self, digests: dict[str, str]) -> OpenImage:
        def open_image(attachment: Attachment, draft_edge: int) -> Media:
            file = read_picture(CaptionItem(attachment.source, attachment))
            if file.content.sha256 is not None:
                digests[attachment.source] = file.content.sha256
            if file.data is None:
                return self._loader.open_media(attachment, draft_edge=draft_edge)
            stream, source = io.BytesIO(file.data), attachment.source
            return self._loader.open_media_stream(stream, source, draft_edge=draft_edge)

        return open_image


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
        """Return whether the file of a picture has changed. A missing file changes nothing."""
        for line in (entry.stamp or "").split("\n"):
            former, _, path = line.partition(" ")
            now = stamp_of_file(self._rows.resolve(path)) if path else None
            if now is not None and now != former:
                return True
        return False


def _stamps(names: dict[str, str]) -> str | None:
    """Return a line for each file: its stamp, or `-` if it is missing, and its path in the row."""
    lines = (f"{stamp_of_file(source) or '-'} {name}" for source, name in names.items())
    return "\n".join(lines) or None
