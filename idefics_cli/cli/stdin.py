"""Text on standard input, read within bounds of size and time."""

from __future__ import annotations

import select
from typing import BinaryIO

from idefics_cli.core.errors import PromptError
from idefics_cli.ui.terminal.console import Console

MAX_TEXT_BYTES = 4_000_000  # beyond the context of every model
NOTICE_SECONDS = 2.0
_CHUNK_BYTES = 65_536
_PICTURE_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"II*\0", b"MM\0*", b"BM")


def piped_text(stdin: BinaryIO | None, console: Console, *, silence_seconds: float | None) -> str:
    """Return the text that is piped in, without the newline that ends it; "" if there is none.

    Args:
        stdin: Standard input; nothing is read when it is closed or a terminal.
        console: Told when nothing comes for a while.
        silence_seconds: The longest wait for the first byte; None waits for ever.

    Raises:
        PromptError: If it is silent for too long, too large, or no UTF-8 text.
    """
    if stdin is None or stdin.closed or stdin.isatty():
        return ""
    if silence_seconds is not None:
        _await_first_byte(stdin, console, silence_seconds)
    return _decoded(_read(stdin))


def tell_if_silent(stdin: BinaryIO | None, console: Console, awaited: str) -> None:
    """Wait a moment for something on stdin, and if nothing comes tell what is *awaited*."""
    if stdin is not None and not stdin.closed and not _is_readable(stdin, NOTICE_SECONDS):
        console.note(f"waiting for {awaited} on stdin; Ctrl-D ends it where it is typed")


def _await_first_byte(stdin: BinaryIO, console: Console, silence_seconds: float) -> None:
    # A pipe that a parent left open and never writes to looks just like a slow writer.
    # Going on without its text could answer the wrong question, so silence ends in an error.
    notice = min(NOTICE_SECONDS, silence_seconds)
    if _is_readable(stdin, notice):
        return
    console.note("waiting for the text on stdin; `</dev/null` if there is none")
    if not _is_readable(stdin, silence_seconds - notice):
        raise PromptError(
            f"stdin is open, and nothing came for {silence_seconds:g} seconds",
            hint="run with `</dev/null`, or wait longer with `--timeout-seconds`",
        )


def _is_readable(stdin: BinaryIO, seconds: float) -> bool:
    try:
        return bool(select.select([stdin], [], [], seconds)[0])
    except (OSError, ValueError):  # Windows selects sockets only; in memory there is no file
        return True


def _read(stdin: BinaryIO) -> bytes:
    data = bytearray()
    while chunk := stdin.read(_CHUNK_BYTES):
        if not data:
            _reject_binary(chunk)
        data += chunk
        if len(data) > MAX_TEXT_BYTES:
            raise PromptError(
                f"the text on stdin is longer than {MAX_TEXT_BYTES:,} bytes",
                hint="no model reads that much; pipe a part of it",
            )
    return bytes(data)


def _reject_binary(head: bytes) -> None:
    if head.startswith(_PICTURE_STARTS) or b"\0" in head:
        raise PromptError(
            "stdin holds binary data, not text", hint="`-i -` takes a picture from stdin"
        )


def _decoded(data: bytes) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise PromptError(
            f"the text on stdin is not UTF-8 (byte {error.start + 1})",
            hint="convert it, for example with `iconv -t utf-8`; `-i -` takes a picture",
        ) from None
    return text.removesuffix("\n").removesuffix("\r")
