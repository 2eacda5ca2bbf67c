"""The pictures of a row: how it names them, and where they stand in its texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from idefics_cli.core.conversation.marks import PICTURE_MARK, fill_marks
from idefics_cli.core.errors import PromptError
from idefics_cli.core.json_objects import JsonObject, checked_text, kind_of
from idefics_cli.core.sources import STDIN, has_scheme, is_clipboard, is_uri
from idefics_cli.core.types import Attachment, Message, Part, PictureDetail
from idefics_cli.core.units import counted

Resolve = Callable[[str], str]
"""Returns the path that a row gives, from the current folder."""

PATH_COLUMNS = (
    *("file_name", "path", "image", "file", "filename", "file_path", "filepath", "image_path"),
    *("image_url", "url"),
)
"""Columns that may name the picture of a row. If a row has several, the first of these counts."""

COLUMNS = ("images", *PATH_COLUMNS, "videos", "video")
"""Columns that may name the pictures or videos of a row; `images` counts first, then `image`."""

_AS_LOADED, _SMALL = PictureDetail(), PictureDetail(splitting=False)
PICTURE_KEYS = ("url", "path", "image", "image_url", "video", "video_url")
"""Keys of an object that may name a picture or a video."""


@dataclass(slots=True)
class RowPictures:
    """Collects the pictures of one row.

    Args:
        resolve: Makes the paths of pictures relative to the current folder.

    Attributes:
        names: Source -> path as the row gives it, for each picture that is a local file.
    """

    resolve: Resolve
    names: dict[str, str] = field(default_factory=dict)

    def of_columns(self, row: JsonObject, column: str | None = None) -> tuple[Attachment, ...]:
        """Return the pictures that the columns of *row* name.

        Args:
            row: Names and values.
            column: The column that names them; None takes the first of `COLUMNS`.

        Raises:
            PromptError: If a value does not name a picture.
        """
        if column is not None:
            return self._of_column(row, column) if row.get(column) is not None else ()
        given = [name for name in ("images", "image") if row.get(name) is not None]
        if len(given) > 1:
            raise PromptError("both `images` and `image` are given", hint="keep one of them")
        name = given[0] if given else next((n for n in COLUMNS if row.get(n) is not None), None)
        return () if name is None else self._of_column(row, name)

    def picture(self, value: object, name: str) -> Attachment:
        """Return the picture that *value* names: a path, an address, or an object with one.

        Args:
            value: A value of a row.
            name: Its name in messages.

        Raises:
            PromptError: If *value* does not name a picture.
        """
        detail: object = None
        if isinstance(value, dict):
            keys = [key for key in PICTURE_KEYS if value.get(key) is not None]
            if len(keys) != 1:
                raise PromptError(f"`{name}` does not name a picture", hint='{"url": "a.jpg"}')
            detail, name, value = value.get("detail"), f"{name}.{keys[0]}", value[keys[0]]
            if isinstance(value, dict):
                return self.picture(value, name)
        if not isinstance(value, str):
            raise PromptError(f"`{name}` does not name a picture: it is {kind_of(value)}")
        if not value.strip():
            raise PromptError(f"`{name}` is empty")
        if value == STDIN or is_clipboard(value):
            raise PromptError(
                f"`{name}` is `{value}`, and a row names files, addresses and `data:` URIs"
            )
        if detail not in (None, "auto", "low", "high", "original"):
            raise PromptError(f"the `detail` of a picture must be auto, low or high, in `{name}`")
        return Attachment(self._source(value), detail=_SMALL if detail == "low" else _AS_LOADED)

    def _of_column(self, row: JsonObject, name: str) -> tuple[Attachment, ...]:
        value = row[name]
        values = value if isinstance(value, list) else [value]
        several = isinstance(value, list)
        return tuple(
            self.picture(one, f"{name}[{at}]" if several else name) for at, one in enumerate(values)
        )

    def _source(self, value: str) -> str:
        if is_uri(value) or has_scheme(value):
            return value
        source = self.resolve(value)
        self.names[source] = value
        return source


def placed(
    messages: Sequence[Message], pictures: Sequence[Attachment], *, drops_breaks: bool = False
) -> tuple[Message, ...]:
    """Return *messages* with *pictures* in place of `<image>`, in order.

    Without any `<image>`, the pictures come first in the first user message.

    Args:
        messages: A conversation.
        pictures: The pictures that do not stand in it yet.
        drops_breaks: Whether the line break between `<image>` and a text belongs to the mark, as
            in the data of LLaVA.

    Raises:
        PromptError: If there are more or fewer `<image>` than *pictures*.
    """
    marks = sum(message.text.count(PICTURE_MARK) for message in messages)
    if marks != len(pictures) and (marks or not pictures):
        count = counted(len(pictures), "picture")
        raise PromptError(
            f"the text has {marks} `{PICTURE_MARK}`, and the columns of the row have {count}",
            hint=f"write `{PICTURE_MARK}` once for each picture of `images`, or nowhere",
        )
    if not marks:
        return _first(messages, pictures) if pictures else tuple(messages)
    left = list(pictures)
    return tuple(_filled(message, left, drops_breaks=drops_breaks) for message in messages)


def _first(messages: Sequence[Message], pictures: Sequence[Attachment]) -> tuple[Message, ...]:
    at = next((i for i, m in enumerate(messages) if m.role == "user"), None)
    if at is None:
        raise PromptError("no user message could hold the pictures")
    user = Message("user", (*pictures, *messages[at].parts))
    return (*messages[:at], user, *messages[at + 1 :])


def _filled(message: Message, left: list[Attachment], *, drops_breaks: bool) -> Message:
    parts: list[Part] = []
    for part in message.parts:
        if not isinstance(part, str) or not (count := part.count(PICTURE_MARK)):
            parts.append(part)
            continue
        if message.role != "user":
            raise PromptError(f"`{PICTURE_MARK}` in a message of the {message.role}")
        if drops_breaks:
            part = part.replace(f"{PICTURE_MARK}\n", PICTURE_MARK)
            part = part.replace(f"\n{PICTURE_MARK}", PICTURE_MARK)
        parts += fill_marks(part, left[:count])
        del left[:count]
    return Message(message.role, tuple(parts))


def text_of(row: JsonObject, names: Sequence[str]) -> str:
    """Return the text in the first of the columns *names* that *row* has.

    Raises:
        PromptError: If it has none, or the text is empty.
    """
    name = next((name for name in names if row.get(name) is not None), None)
    if name is None:
        raise PromptError(
            "no prompt", hint=f"a row has `{names[0]}`, `messages` or `conversations`"
        )
    text = checked_text(row[name], name)
    if not text.strip():
        raise PromptError(f"`{name}` is empty")
    return text
