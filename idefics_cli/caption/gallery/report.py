"""The writer of the report: one HTML file that shows the pictures of a run with their captions."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from string import Template
from typing import BinaryIO, get_args
from urllib.parse import quote

from idefics_cli.caption.sinks.rows import CAPTION, row
from idefics_cli.core.errors import IdeficsError, ImageErrorKind, UsageError
from idefics_cli.core.escapes import escaped
from idefics_cli.core.files import cannot_write, check_place, remove_unfinished, replacing
from idefics_cli.core.sources import is_address, is_uri, without_password
from idefics_cli.core.types import Attachment, CaptionRecord, ImageLimits

_PARTS = Path(__file__).parent
_MARK = b'<meta name="generator" content="idefics caption">'
_THREADS = 4
_ROWS_PER_BLOCK = 200
_THUMBNAIL_EDGE = 224
# All thumbnails together may have this size, which is enough for about 20,000 pictures. Further
# pictures have no thumbnails: the page loads their files when the reader scrolls to them.
_MAX_THUMBNAIL_BYTES = 128 * 1024 * 1024
_NOT_SHOWN = "-"


def check_report(path: Path, *, overwrite: bool = False) -> None:
    """Raise a UsageError unless *path* can become a report: a new file, or an earlier report."""
    check_place(path)
    if path.exists() and not path.is_file():
        raise UsageError(f"cannot write `{path}`: a report needs a file, not a device or a pipe")
    if path.exists() and not overwrite:
        with path.open("rb") as file:
            if _MARK not in file.read(1024):
                raise UsageError(
                    f"`{path}` exists already, and is not a report",
                    hint="`--overwrite` replaces it; or name another file",
                )


def write_report(
    path: Path,
    records: Iterable[CaptionRecord],
    *,
    columns: tuple[str, ...] = (),
    title: str = "Captions",
    limits: ImageLimits | None = None,
    max_thumbnail_bytes: int = _MAX_THUMBNAIL_BYTES,
    on_row: Callable[[], None] = lambda: None,
) -> None:
    """Write the page for *records* to *path*, whole or not at all.

    The page needs no network and no other file. The thumbnails show the files as they are now; a
    missing or unreadable file has none. Only a few hundred rows are in memory at a time.

    Args:
        path: The page; an existing file is replaced.
        records: Records whose names are relative to the current folder.
        columns: Names of the questions.
        title: Title of the page.
        limits: Limits for the pictures that are opened.
        max_thumbnail_bytes: Largest size of all thumbnails; further pictures are shown by their
            files.
        on_row: Called after each row.

    Raises:
        IdeficsError: If the page cannot be written.
    """
    remove_unfinished(path.parent)
    try:
        with ThreadPoolExecutor(_THREADS) as pool, replacing(path) as file:
            thumbnails = _Thumbnails(limits or ImageLimits(), pool, max_thumbnail_bytes)
            pairs = _with_thumbnails(records, thumbnails)
            _write_page(file, pairs, path, title, columns, on_row)
    except OSError as error:
        raise cannot_write(path, error) from error


def _write_page(
    file: BinaryIO,
    pairs: Iterator[tuple[CaptionRecord, str]],
    path: Path,
    title: str,
    columns: tuple[str, ...],
    on_row: Callable[[], None],
) -> None:
    head, tail = _page(title)
    file.write(head)
    file.write(_block("columns", "application/json", _json(list(columns or (CAPTION,)))))
    _write_rows(file, pairs, path, columns, on_row)
    file.write(tail)


def _write_rows(
    file: BinaryIO,
    pairs: Iterator[tuple[CaptionRecord, str]],
    path: Path,
    columns: tuple[str, ...],
    on_row: Callable[[], None],
) -> None:
    rows: list[dict[str, object]] = []
    thumbnails: list[str] = []

    def end_block() -> None:
        file.write(_block("rows", "application/json", _json(rows)))
        file.write(_block("thumbs", "text/plain", "\n".join(thumbnails)))
        rows.clear()
        thumbnails.clear()

    for record, thumbnail in pairs:
        cells = row(record, escaped(record.file_name), columns)
        shown = {name: value for name, value in cells.items() if value is not None}
        rows.append({**shown, "href": _link(record.file_name, path)})
        thumbnails.append(thumbnail)
        if len(rows) == _ROWS_PER_BLOCK:
            end_block()
        on_row()
    if rows:
        end_block()


def _with_thumbnails(
    records: Iterable[CaptionRecord], thumbnails: _Thumbnails
) -> Iterator[tuple[CaptionRecord, str]]:
    """Yield each record with its thumbnail; threads make the next thumbnails meanwhile."""
    waiting: deque[tuple[CaptionRecord, Future[str]]] = deque()
    for record in records:
        waiting.append((record, thumbnails.submit(record)))
        if len(waiting) > 64:
            first, made = waiting.popleft()
            yield first, thumbnails.result(made)
    while waiting:
        first, made = waiting.popleft()
        yield first, thumbnails.result(made)


class _Thumbnails:
    """Makes thumbnails as `data:` URIs in threads, up to a total size."""

    def __init__(self, limits: ImageLimits, pool: ThreadPoolExecutor, max_bytes: int) -> None:
        from idefics_cli.images.media import MediaLoader

        self._loader = MediaLoader(limits, offline=True)
        self._pool = pool
        self._left = max_bytes

    def submit(self, record: CaptionRecord) -> Future[str]:
        if is_uri(record.file_name) or record.error_kind in get_args(ImageErrorKind):
            return _done(_NOT_SHOWN)
        if self._left <= 0:
            return _done("")
        return self._pool.submit(self._make, record.file_name)

    def result(self, made: Future[str]) -> str:
        text = made.result()
        self._left -= len(text)
        return text

    def _make(self, name: str) -> str:
        from PIL import Image, features

        from idefics_cli.images.media import first_image

        attachment = Attachment(name)
        try:
            image = first_image(self._loader.open_media(attachment, draft_edge=_THUMBNAIL_EDGE))
        except (IdeficsError, OSError, MemoryError):
            return _NOT_SHOWN
        edge = (_THUMBNAIL_EDGE, _THUMBNAIL_EDGE)
        image.thumbnail(edge, Image.Resampling.HAMMING, reducing_gap=2.0)
        kind = "webp" if features.check("webp") else "jpeg"
        data = io.BytesIO()
        image.save(data, kind, quality=60, method=1)  # method 4 takes three times as long
        return f"data:image/{kind};base64,{base64.b64encode(data.getvalue()).decode()}"


def _done(text: str) -> Future[str]:
    future: Future[str] = Future()
    future.set_result(text)
    return future


def _page(title: str) -> tuple[bytes, bytes]:
    """Return the parts of the page before and after the rows."""
    page, style, script = (
        (_PARTS / name).read_text("utf-8") for name in ("page.html", "page.css", "page.js")
    )
    # With this policy, the browser fetches nothing from the network and runs only this script,
    # whatever a caption contains.
    policy = (
        f"default-src 'none'; img-src data: file: 'self'; style-src {_hash(style)};"
        f" script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    )
    parts = {"policy": policy, "title": html.escape(escaped(title)), "style": style}
    head, _, tail = page.partition("$rows")
    return (
        Template(head).substitute(parts).encode(),
        Template(tail).substitute(script=script).encode(),
    )


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _block(name: str, kind: str, text: str) -> bytes:
    return f'<script class="{name}" type="{kind}">{text}</script>\n'.encode()


def _json(value: object) -> str:
    r"""Return *value* as JSON for a script element; `<` is escaped, so that no text ends it."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    text = text.replace("<", r"\u003c")
    return text.encode(errors="backslashreplace").decode()


def _link(name: str, page: Path) -> str:
    """Return the URL of the picture *name*, relative to *page*; empty for stdin and the like."""
    if is_uri(name):
        return without_password(name, mark="") if is_address(name) else ""
    try:
        relative = os.path.relpath(name, page.parent)
    except ValueError:  # on another drive
        return Path(os.path.abspath(name)).as_uri()
    return quote(os.fsencode(relative.replace(os.sep, "/")))
