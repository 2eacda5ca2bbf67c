"""An answer that is shown while it is written."""

from __future__ import annotations

from collections.abc import Iterator

from idefics_cli.core.types import TokenChunk
from idefics_cli.ui.terminal.console import Console


def show_stream(console: Console, chunks: Iterator[TokenChunk]) -> TokenChunk:
    """Write *chunks* to stdout as they come, then a newline; return the last.

    Until the first text comes there is a spinner. When the stream ends by an error or by
    Ctrl-C, what was shown stays, and what follows starts on a line of its own.
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
    # A carriage return may be the first half of a line end, whose second is yet to come.
    whole = text.removesuffix("\r")
    if whole:
        console.data(whole)
    return text[len(whole) :]
