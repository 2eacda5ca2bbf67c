"""An answer of a chat, shown while the model writes it; Ctrl-C stops only this answer."""

from __future__ import annotations

import re
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from idefics_cli.chat.dialogue import Chat
from idefics_cli.chat.sampling_settings import SCHEMA_KEY
from idefics_cli.core.text import printable
from idefics_cli.core.types import Finish, Sampling
from idefics_cli.ui.chat.markdown import MarkdownStream
from idefics_cli.ui.terminal.console import Console, write
from idefics_cli.ui.terminal.stream import LineEnds

_SENTENCE = re.compile(r"[.!?:;]\s|\n")


def show_reply(console: Console, chat: Chat, sampling: Sampling | None) -> Finish:
    """Answer the pending question of *chat* on stdout; return how the answer ended.

    Ctrl-C stops the answer after the current token. A second Ctrl-C stops it at once.

    Raises:
        IdeficsError: What `Chat.reply` raises. The question is then removed from the chat.
    """
    cancel = threading.Event()
    page = _ReplyPage(console, chat)
    begin = "thinking" if chat.model.loading.is_ready else chat.model.loading.phase
    finish: Finish | None = None
    try:
        with stopping(cancel), console.status(begin) as progress:
            chunks = chat.reply(
                cancel=cancel, phase=lambda phase: progress(phase, None), sampling=sampling
            )
            first = next((chunk for chunk in chunks if chunk.text or chunk.finish), None)
        if first is not None:
            page.add(first.text)
            finish = first.finish
        with stopping(cancel):
            for chunk in chunks:
                page.add(chunk.text)
                finish = chunk.finish or finish
    except KeyboardInterrupt:
        finish = "cancelled"
    finally:
        page.end()
    return finish or "cancelled"


class _ReplyPage:
    """Writes the text of one answer to stdout."""

    def __init__(self, console: Console, chat: Chat) -> None:
        self._console = console
        self._line_ends = LineEnds()
        self._waiting = ""
        self._is_empty = True
        # Replies in JSON are shown plain, because Markdown would take away some of their
        # characters.
        is_plain = chat.display("plain") or SCHEMA_KEY in chat.conversation.settings
        is_rich = console.is_terminal and console.draws and not is_plain
        self._markdown = MarkdownStream(styled=is_rich and console.has_colors)

    def add(self, text: str) -> None:
        """Show more text."""
        text = self._safe(self._line_ends.feed(text))
        self._write(self._markdown.feed(text), is_last=False)

    def end(self) -> None:
        """Show the text that was held back, and end the line."""
        text = self._safe(self._line_ends.close())
        self._write(self._markdown.feed(text) + self._markdown.close())
        if not self._is_empty:
            write(self._console.out, "\n")

    def _safe(self, text: str) -> str:
        return printable(text) if self._console.is_terminal else text

    def _write(self, text: str, *, is_last: bool = True) -> None:
        if self._console.accessible:
            # A screen reader speaks each write separately, so whole sentences are written.
            self._waiting += text
            ends = [match.end() for match in _SENTENCE.finditer(self._waiting)]
            cut = len(self._waiting) if is_last else (ends or [0])[-1]
            text, self._waiting = self._waiting[:cut], self._waiting[cut:]
        if text:
            self._is_empty = False
            write(self._console.out, text)


@contextmanager
def stopping(cancel: threading.Event) -> Iterator[None]:
    """Let the first Ctrl-C set *cancel*, and each later one raise `KeyboardInterrupt`."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def on_signal(number: int, frame: FrameType | None) -> None:
        if cancel.is_set():
            raise KeyboardInterrupt
        cancel.set()

    former = signal.signal(signal.SIGINT, on_signal)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, former)
