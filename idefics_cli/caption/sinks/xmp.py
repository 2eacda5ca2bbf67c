"""The format xmp: captions in XMP sidecars, merged with what other programs keep there."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from idefics_cli.caption.sinks.base import SidecarError, Target
from idefics_cli.caption.sinks.txt import TxtSink
from idefics_cli.caption.sinks.xmp_packet import (
    ALT_TEXT,
    DESCRIPTION,
    MOST_BYTES,
    Name,
    Packet,
    Text,
)
from idefics_cli.core.escapes import escaped
from idefics_cli.core.files import check_replaceable, read_regular_file, replacing
from idefics_cli.core.types import CaptionRecord

EXTENSION = ".xmp"
ALT_TEXT_QUESTION = "alt_text"
"""The question whose answer becomes the alternative text for people who cannot see the picture."""


class XmpSink(TxtSink):
    """Writes each caption as the description of an XMP sidecar; see `TxtSink`.

    A sidecar `a.jpg.xmp` of digiKam or darktable, or `a.xmp` of Lightroom, keeps all that it has. A
    description that a person wrote is never replaced: a digest of each text of this program stands
    beside it, by which the program knows its own texts.

    Args:
        target: Where the sink writes.
        folds_case: See `TxtSink`.
        now: Returns the time for xmp:MetadataDate.
    """

    run_name = "idefics-caption-xmp"
    has_one = "has a description"
    existing_hint = (
        "`--existing skip` and `overwrite` leave alone what a person wrote; `append` and `prepend` "
        "add to it"
    )

    def __init__(
        self,
        target: Target,
        *,
        folds_case: Callable[[str], bool] | None = None,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        named = target.full_names is not False
        super().__init__(
            replace(target, text_extension=EXTENSION, full_names=named), folds_case=folds_case
        )
        self._now = now

    def has_caption(self, path: str) -> bool:
        """Return whether the run leaves the texts in *path* alone; see `TxtSink.find_captions`."""
        try:
            packet = Packet(_read(Path(path)))
        except (OSError, ValueError):  # its picture fails when its caption is written
            return False
        return self.counts([packet.text(name) for name in self.names()])

    def counts(self, found: Sequence[Text]) -> bool:
        """Return whether the run leaves the texts *found* alone, or must not begin with them."""
        if self._target.existing == "overwrite":
            return any(text.text and not text.is_ours for text in found)
        return any(text.text for text in found)

    def store(self, record: CaptionRecord, path: Path) -> CaptionRecord | None:
        """Merge the texts of *record* into the sidecar *path*; see `TxtSink.store`."""
        shown, path = f"`{path}`", Path(os.path.realpath(path))  # a link stays a link
        before = os.stat(path) if path.exists() else None
        try:
            packet = Packet(_read(path))
        except ValueError as error:
            raise SidecarError(
                f"cannot add a caption to {shown}: {error}", hint="move this file away"
            ) from error
        texts = {
            name: self.merged(packet.text(name), text, shown)
            for name, text in self.texts(record).items()
        }
        data = packet.with_texts(texts, date=self.date())
        with replacing(path) as file:
            file.write(data)
            if before is not None and hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), before.st_mode & 0o777)
            check_replaceable(path, before)
        return None

    def merged(self, former: Text, text: str, name: str) -> Text:
        """Return what replaces the text *former* when *text* is added to it.

        Args:
            former: The text that is there.
            text: The new text.
            name: Where it is, for errors.

        Raises:
            SidecarError: If *former* is by a person, and must not be joined.
        """
        if not former.text or former.is_ours:
            return Text(text, is_ours=True)
        if self._target.existing in ("append", "prepend"):
            return Text(self.joined(text, former.text), is_ours=False)
        raise SidecarError(
            f"{name} has a description by a person, which stays",
            hint="`--existing append` adds the caption to it",
        )

    def date(self) -> str:
        """Return the time for xmp:MetadataDate."""
        return self._now().isoformat(timespec="seconds")

    def names(self) -> tuple[Name, ...]:
        """Return which properties the answers become."""
        columns = self._target.columns
        if ALT_TEXT_QUESTION not in columns:
            return (DESCRIPTION,)
        return (ALT_TEXT,) if len(columns) == 1 else (DESCRIPTION, ALT_TEXT)

    def texts(self, record: CaptionRecord) -> dict[Name, str]:
        """Return the text of each of `names`."""
        if ALT_TEXT_QUESTION not in self._target.columns:
            return {DESCRIPTION: self.text(record)}
        answers = dict(record.answers)
        alternative = escaped(answers.pop(ALT_TEXT_QUESTION))
        texts = {DESCRIPTION: escaped("\n".join(answers.values())), ALT_TEXT: alternative}
        return {name: texts[name] for name in self.names()}


def _read(path: Path) -> bytes:
    try:
        return read_regular_file(path, limit_bytes=MOST_BYTES)
    except FileNotFoundError:
        return b""
