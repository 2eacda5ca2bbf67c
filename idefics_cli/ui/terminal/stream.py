"""An answer that is shown while the model generates it."""

from __future__ import annotations

from collections.abc import Iterator

from idefics_cli.core.types import TokenChunk
from idefics_cli.ui.terminal.console import Console


def show_stream(console: Console, chunks: Iterator[TokenChunk]) -> TokenChunk:
    """Write *chunks* to stdout as they arrive, then a newline; return the last chunk.

    A spinner is shown before the first text. After an error or Ctrl-C the text so far stays,
    and the next output starts on a new line.
    """
    last = TokenChunk("", 0)
    pending = ""
    is_begun = False
    try:
        with console.status("reading"):
            for last in chunks:
                if last.text:
                    break
        is_begun = True
        pending = _show(console, last.text)
        for last in chunks:
            pending = _show(console, pending + last.text)
    finally:
        if is_begun:
            console.data(pending + "\n")
    return last


def _show(console: Console, text: str) -> str:
    # A carriage return may be the first half of `CR LF`: wait for the next chunk.
    whole = text.removesuffix("\r")
    if whole:
        console.data(whole)
    return text[len(whole) :]
