"""One line of the work list of a captioning run."""

from __future__ import annotations

from dataclasses import dataclass, field

from idefics_cli.core.types import Attachment


@dataclass(frozen=True, slots=True)
class CaptionItem:
    """One picture to caption.

    Attributes:
        key: POSIX path by which the user named the picture, or its URL. It becomes the `file_name`
            of the record.
        attachment: Source from which the engine opens the picture.
        tail: The path `relative`, or its length if *key* ends with it. A text of its own for each
            of millions of pictures would take much memory.
        columns: Names and values of the picture's row in a list, for the prompt.
        order: Pictures are listed by this number, and those with equal numbers by `sort_key` of
            their absolute path. The number of a picture does not depend on other files of a folder.
        span: Offset and size of a picture in a tar archive, if the lister knows them.
        version: Changes with the content of a picture that is not a file; None if not known.
    """

    key: str
    attachment: Attachment
    tail: str | int = ""
    columns: Columns = ()
    order: int = field(default=0, compare=False)
    span: tuple[int, int] | None = field(default=None, compare=False)
    version: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        tail = self.tail
        if isinstance(tail, str) and self.key.endswith(tail):
            object.__setattr__(self, "tail", len(tail))

    @property
    def relative(self) -> str:
        """POSIX path under the folder that the user named, for an output that keeps the tree.

        For a file that the user named, its name without a folder; empty for other sources.
        """
        tail = self.tail
        return tail if isinstance(tail, str) else self.key[len(self.key) - tail :]

    def __reduce__(self) -> tuple[object, ...]:
        # Millions of pictures go to workers. The way of dataclasses takes three times as long.
        names = (self.key, self.attachment, self.tail, self.columns, self.order, self.span)
        return CaptionItem, (*names, self.version)


Columns = tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class ItemWords:
    """The words by which messages name the items of a run, and what is done with them.

    Attributes:
        one: An item.
        do: What the run does with an item.
        done: What an item is afterwards.
        result: What an item gets.
    """

    one: str = "picture"
    do: str = "caption"
    done: str = "captioned"
    result: str = "caption"

    @property
    def many(self) -> str:
        """Several items."""
        return f"{self.one}s"
