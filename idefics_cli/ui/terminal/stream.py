"""Output of an answer while the model generates it."""

from __future__ import annotations

from collections.abc import Iterator

from idefics_cli.core.types import TokenChunk
from idefics_cli.ui.terminal.console import Console


class LineEnds:
    """Keeps a carriage return and its newline together in text that arrives in pieces.

    A carriage return at the end of a piece is held back, because its newline may follow.
    """

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str) -> str:
        """Add *text*, and return the text that can be shown."""
        text = self._held + text
        shown = text.removesuffix("\r")
        self._held = text[len(shown) :]
        return shown

    def close(self) -> str:
        """Return what is held back."""
        held, self._held = self._held, ""
        return held


def show_stream(console: Console, chunks: Iterator[TokenChunk]) -> TokenChunk:
    """Write *chunks* to stdout as they arrive, then a newline; return the last chunk.

    A spinner is shown until the first text arrives. After an error or Ctrl-C, the text written so
    far stays, and the next output starts on a new line.
    """
    last = TokenChunk("", 0)
    line_ends = LineEnds()
    is_begun = False
    try:
        with console.status("reading"):
            for last in chunks:
                if last.text:
                    break
        is_begun = True
        console.data(line_ends.feed(last.text))
        for last in chunks:
            console.data(line_ends.feed(last.text))
    finally:
        if is_begun:
            console.data(line_ends.close() + "\n")
    return last
