"""Text on standard input, with limits of size and time."""

from __future__ import annotations

import select
from typing import BinaryIO

from idefics_cli.core.errors import PromptError
from idefics_cli.core.units import counted
from idefics_cli.ui.terminal.console import Console

MAX_TEXT_BYTES = 4_000_000  # longer than the context of every model
NOTICE_SECONDS = 2.0
_CHUNK_BYTES = 65_536
_PICTURE_STARTS = (b"\xff\xd8\xff", b"\x89PNG", b"GIF8", b"RIFF", b"II*\0", b"MM\0*", b"BM")


def piped_text(
    stdin: BinaryIO | None,
    console: Console,
    *,
    silence_seconds: float | None,
    notice_seconds: float = NOTICE_SECONDS,
) -> str:
    """Return the text on stdin without the newline at its end; "" if there is no text.

    Args:
        stdin: Standard input; nothing is read if it is closed or a terminal.
        console: Shows a note if no data arrives for a while.
        silence_seconds: Longest wait for the first byte; None waits without limit.
        notice_seconds: Time until that note.

    Raises:
        PromptError: If no data arrives in time, or the text is too long or not UTF-8.
    """
    if stdin is None or stdin.closed or stdin.isatty():
        return ""
    if silence_seconds is not None:
        _await_first_byte(stdin, console, silence_seconds, min(notice_seconds, silence_seconds))
    return _decoded(_read(stdin))


def tell_if_silent(
    stdin: BinaryIO | None,
    console: Console,
    awaited: str,
    *,
    notice_seconds: float = NOTICE_SECONDS,
) -> None:
    """Wait a moment for data on stdin; if none arrives, show a note that names *awaited*."""
    if stdin is not None and not stdin.closed and not _is_readable(stdin, notice_seconds):
        console.note(f"waiting for {awaited} on stdin; Ctrl-D ends typed input")


def _await_first_byte(
    stdin: BinaryIO, console: Console, silence_seconds: float, notice_seconds: float
) -> None:
    # Silence can mean a slow writer, or a pipe that a parent process has left open. Without the
    # text of a slow writer, the model would answer another question, so silence is an error.
    if _is_readable(stdin, notice_seconds):
        return
    console.note("waiting for text on stdin; add `</dev/null` if there is none")
    if not _is_readable(stdin, silence_seconds - notice_seconds):
        raise PromptError(
            f"stdin is open, but no text came for {counted(float(silence_seconds), 'second')}",
            hint="add `</dev/null`, or wait longer with `--timeout-seconds`",
        )


def _is_readable(stdin: BinaryIO, seconds: float) -> bool:
    try:
        return bool(select.select([stdin], [], [], seconds)[0])
    except (OSError, ValueError):  # Windows can select only sockets; a stream in memory has no file
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
                hint="pipe a part of it; no model has such a long context",
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
