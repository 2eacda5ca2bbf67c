"""One line of the work list of a captioning run."""

from __future__ import annotations

from dataclasses import dataclass

from idefics_cli.core.types import Attachment


@dataclass(frozen=True, slots=True)
class CaptionItem:
    """One picture to caption.

    Attributes:
        key: POSIX path as the user reaches the picture, or its URL; the `file_name` of its record.
        attachment: Source from which the engine opens the picture.
        relative: POSIX path under the folder that the user named, for an output that keeps the
            tree. For a file that the user named, its bare name; empty for other sources.
        columns: Names and values of its row in a list, for the prompt.
    """

    key: str
    attachment: Attachment
    relative: str = ""
    columns: Columns = ()


Columns = tuple[tuple[str, str], ...]
