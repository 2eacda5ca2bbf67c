"""Examples for few-shot prompts: the options `--example` and `--examples`."""

from __future__ import annotations

import base64
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from idefics_cli.cli.invocation import Invocation
from idefics_cli.cli.model_choice import image_limits
from idefics_cli.core.errors import InputError, PromptError, UsageError
from idefics_cli.core.sources import (
    STDIN,
    is_address,
    is_clipboard,
    is_uri,
    source_of,
    too_many_bytes,
)
from idefics_cli.core.types import Attachment
from idefics_cli.core.units import counted

_FORM = "`--example photo.jpg='A red kite.'`"
_LIST_FORM = 'each line is like `{"image": "a.jpg", "text": "A red kite."}`'
_TEXTS = ("text", "caption")
# A row of a list: the source of the picture, its text, and the other columns of the row.
_Row = tuple[str, str, tuple[tuple[str, str], ...]]


@dataclass(frozen=True, slots=True)
class Example:
    """A picture with the answer that the model should give.

    Attributes:
        source: The picture as the user named it.
        picture: The bytes of the picture as a `data:` URI, so that they are read once, and cannot
            change during a run.
        text: The answer.
        columns: Names and values of its row in a list.
    """

    source: str
    picture: Attachment
    text: str
    columns: tuple[tuple[str, str], ...] = ()


def read_examples(
    invocation: Invocation, given: Sequence[str], lists: Sequence[str]
) -> tuple[Example, ...]:
    """Return the examples of the command line, then those of *lists*, with opened pictures.

    Args:
        invocation: The call, with its settings.
        given: Texts of the form `PICTURE=TEXT`.
        lists: Paths of JSON lines or tables with a picture and its text in each row.

    Raises:
        InputError: If a list is missing or cannot be read.
        UsageError: If an example is wrong.
        ImageError: If a picture cannot be opened.
    """
    if not given and not lists:
        return ()
    from idefics_cli.images.loader import ImageLoader
    from idefics_cli.images.sources import ImageSources

    settings = invocation.settings
    limits = image_limits(settings)
    sources = ImageSources(limits, offline=settings.offline, stdin=None)
    loader = ImageLoader(limits)
    examples = []
    rows = [*map(_split, given), *(row for path in lists for row in _rows(invocation, path))]
    for source, text, columns in rows:
        if not text.strip():
            raise UsageError(f"the example `{source}` has no text", hint=_FORM)
        _check_text(text)
        if source == STDIN or is_clipboard(source):
            raise UsageError(f"an example cannot be `{source}`", hint="name a file or a URL")
        with sources.open(source) as stream:
            data = stream.read(limits.max_bytes + 1)
        if len(data) > limits.max_bytes:
            raise too_many_bytes(source, limits)
        loader.open_stream(io.BytesIO(data), source, draft_edge=1).close()
        examples.append(Example(source, _attachment(data), text, columns))
    return tuple(examples)


def _attachment(data: bytes) -> Attachment:
    uri = "data:application/octet-stream;base64," + base64.b64encode(data).decode("ascii")
    return Attachment(uri, hashlib.sha256(data).hexdigest())


def _check_text(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise PromptError("the text of an example is not valid UTF-8 text") from None


def _split(example: str) -> _Row:
    """Split `PICTURE=TEXT` at the first `=` that follows the name of a file; both may have more."""
    places = [place for place, letter in enumerate(example) if letter == "="]
    if not places:
        raise UsageError(f"`--example` needs a picture and a text, not `{example}`", hint=_FORM)
    source, text = example[: places[0]], example[places[0] + 1 :]
    if is_address(example):
        if "?" in source:
            raise UsageError(
                f"it is not clear where the address ends in `{example}`",
                hint="put it into a list: `--examples FILE.jsonl`",
            )
        return source, text, ()
    for place in places:
        if "\0" not in example[:place] and os.path.isfile(example[:place]):
            return example[:place], example[place + 1 :], ()
    return source, text, ()


def _rows(invocation: Invocation, path: str) -> Iterator[_Row]:
    from idefics_cli.caption.inputs.discover import base_folder, place_of
    from idefics_cli.caption.inputs.lists import read_list, where

    if not os.path.isfile(os.path.expanduser(path)):
        raise InputError(f"no such list of examples: `{path}`", hint=_LIST_FORM)
    found = read_list(path)
    base = base_folder(found)
    # `idefics caption` also writes rows of pictures that it could not caption. These are no
    # examples.
    rows = [entry for entry in found.entries if ("status", "error") not in entry.columns]
    if not rows:
        raise InputError(f"the list `{path}` has no examples", hint=_LIST_FORM)
    if failures := len(found.entries) - len(rows):
        invocation.console.note(f"left out {counted(failures, 'failed row')} of `{path}`")
    for entry in rows:
        columns = dict(entry.columns)
        name = next((name for name in _TEXTS if columns.get(name)), None)
        if name is None:
            raise UsageError(
                f"{where(path, entry.line)}: the example has no text",
                hint=_LIST_FORM,
            )
        source = entry.path
        if not is_uri(source):
            source = source_of(place_of(source, base, found)[1])
        yield source, columns[name], entry.columns
