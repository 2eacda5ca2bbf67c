"""One line of the work list of a captioning run."""

from __future__ import annotations

from dataclasses import dataclass

from idefics_cli.core.types import Attachment


@dataclass(frozen=True, slots=True)
class CaptionItem:
    """One picture to caption.

    Attributes:
        key: Its POSIX path as the user reaches it, or its URL: the `file_name` of its record.
        attachment: Where the engine finds it.
        relative: Its POSIX path under the folder that was named, for an output that keeps the
            tree; the bare name of a file that was named itself, empty for what is no file.
        columns: Names and values that its row in a list gave, for the prompt.
    """

    key: str
    attachment: Attachment
    relative: str = ""
    columns: Columns = ()


Columns = tuple[tuple[str, str], ...]
