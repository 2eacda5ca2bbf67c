"""The output of a command: data to stdout and messages to stderr.

Control characters that come from outside, for example in file names, never reach a terminal.
"""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Timer
from typing import BinaryIO, TextIO

from idefics_cli.core.errors import IdeficsError
from idefics_cli.core.text import SURROGATE, one_line, printable
from idefics_cli.core.types import Progress
from idefics_cli.ui.terminal.fold import fold
from idefics_cli.ui.terminal.keyboard import echoing_keyboard


def to_json(value: object) -> str:
    r"""Return *value* as one line of JSON.

    A file name that is not UTF-8 contains lone surrogates in Python. They are written as `\uXXXX`.
    """
    text = json.dumps(value, ensure_ascii=False)
    return SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


@dataclass(frozen=True, slots=True)
class Console:
    """The two streams of a command.

    Attributes:
        out: stdout, for data only.
        err: stderr, for notes, warnings, errors and progress.
        quiet: Whether only errors are shown.
        environ: The environment, for `NO_COLOR`, `TERM` and `COLUMNS`.
        accessible: Whether progress is reported in plain lines, for screen readers, and not drawn.
        slow_seconds: Time before `status` shows anything.
    """

    out: TextIO
    err: TextIO
    quiet: bool = False
    environ: Mapping[str, str] = field(default_factory=dict)
    accessible: bool = False
    slow_seconds: float = 1.0

    @property
    def is_terminal(self) -> bool:
        """Whether stdout is a terminal."""
        return self.out.isatty()

    @property
    def is_pipe(self) -> bool:
        """Whether stdout is a pipe to another program."""
        try:
            return stat.S_ISFIFO(os.fstat(self.out.fileno()).st_mode)
        except (OSError, ValueError):  # a stream in memory
            return False

    def data(self, text: str) -> None:
        """Write *text* to stdout.

        A file or pipe gets the text unchanged, with the bytes of file names that are not UTF-8. A
        terminal gets it without control characters; see `printable`.

        Raises:
            BrokenPipeError: If the reader has closed the pipe.
            IdeficsError: If the write fails, for example on a full disk.
        """
        try:
            write(self.out, printable(text) if self.is_terminal else text)
        except BrokenPipeError:
            raise
        except OSError as error:
            raise IdeficsError(f"cannot write the output: {error.strerror or error}") from error

    def line(self, text: str) -> None:
        """Write *text* and a newline to stdout; see `data`."""
        self.data(text + "\n")

    def report(self, text: str) -> None:
        """Write lines for people to stdout, folded to the width of the terminal."""
        lines = text.split("\n")
        if self.is_terminal:
            lines = [part for line in lines for part in fold(printable(line), self.out_columns)]
        self.line("\n".join(lines))

    def json(self, value: object) -> None:
        """Write *value* to stdout as one line of JSON."""
        self.line(to_json(value))

    def tell(self, text: str) -> None:
        """Write *text* to stderr without a label, unless quiet."""
        if not self.quiet:
            write(self.err, self._folded(printable(text)) + "\n")

    def note(self, text: str) -> None:
        """Write a note to stderr, unless quiet."""
        if not self.quiet:
            self._message("note", text)

    def warn(self, text: str) -> None:
        """Write a warning to stderr, unless quiet."""
        if not self.quiet:
            self._message("warning", text)

    def error(self, error: IdeficsError) -> None:
        """Write the message and the hint of *error* to stderr, each on a line."""
        self._message("error", str(error))
        if error.hint:
            self._message("hint", error.hint)

    def ask(self, question: str, keyboard: BinaryIO) -> bool:
        """Ask *question* on stderr and return the answer; Enter is yes, the end of input is no."""
        while True:
            write(self.err, f"{printable(question)} [Y/n] ")
            try:
                with echoing_keyboard():
                    line = keyboard.readline()
            except KeyboardInterrupt:
                write(self.err, "\n")
                raise
            answer = line.decode(errors="replace").strip().lower()
            if not line:
                write(self.err, "\n")
            if answer in {"", "y", "yes"}:
                return bool(line)
            if answer in {"n", "no"}:
                return False
            self.tell("y or Enter is yes, n is no")

    @contextmanager
    def status(self, text: str) -> Iterator[Progress]:
        """Show *text* with a spinner if the `with` block takes longer than `slow_seconds`.

        The spinner is shown on a terminal only, and not if the console is quiet.

        The block gets a function for its progress, which any thread may call. Its arguments are
        the name of a phase, which replaces *text*, and the completed share of that phase.
        """
        if self.quiet or not self.err.isatty():
            yield _ignore
            return
        if not self.draws:
            with self._announced(text) as announce:
                yield announce
            return
        from rich.console import Console as RichConsole
        from rich.text import Text

        status = RichConsole(file=self.err).status(Text(one_line(text)))

        def update(phase: str, share: float | None) -> None:
            tail = "" if share is None else f" {share:.0%}"
            status.update(Text(one_line(phase + tail)))

        timer = Timer(self.slow_seconds, status.start)
        timer.daemon = True
        timer.start()
        try:
            yield update
        finally:
            timer.cancel()
            timer.join()
            status.stop()

    @property
    def draws(self) -> bool:
        """Whether stderr is a terminal that shows colours, and on which lines may be redrawn."""
        dumb = self.environ.get("TERM") == "dumb"
        return self.err.isatty() and not dumb and not self.accessible

    @property
    def has_colors(self) -> bool:
        """Whether messages on stderr are coloured."""
        return self.draws and not self.environ.get("NO_COLOR")

    @property
    def out_columns(self) -> int:
        """Width of the terminal on stdout, in characters."""
        return terminal_columns(self.out, self.environ)

    @property
    def err_columns(self) -> int:
        """Width of the terminal on stderr, in characters."""
        return terminal_columns(self.err, self.environ)

    @property
    def err_rows(self) -> int:
        """Height of the terminal on stderr, in lines; 24 if it reports none."""
        try:
            return os.get_terminal_size(self.err.fileno()).lines or 24
        except (OSError, ValueError):
            return 24

    @contextmanager
    def _announced(self, text: str) -> Iterator[Progress]:
        """Write *text* as a note if the `with` block takes longer than `slow_seconds`."""
        timer = Timer(self.slow_seconds, self.note, (text,))
        timer.daemon = True
        timer.start()
        try:
            yield _ignore
        finally:
            timer.cancel()
            timer.join()

    def _message(self, label: str, text: str) -> None:
        text = self._folded(f"{label}: {one_line(text)}", indent=2).removeprefix(f"{label}:")
        write(self.err, f"{self._styled(label)}{text}\n")

    def _folded(self, text: str, *, indent: int = 0) -> str:
        if not self.err.isatty():
            return text
        width = self.err_columns
        return "\n".join(p for line in text.split("\n") for p in fold(line, width, indent=indent))

    def _styled(self, label: str) -> str:
        if not self.has_colors:
            return f"{label}:"
        return f"\x1b[{_STYLES[label]}m{label}:\x1b[0m"


def terminal_columns(stream: TextIO, environ: Mapping[str, str]) -> int:
    """Return `COLUMNS` if it is set, else the width that the terminal reports, else 80."""
    try:
        return max(10, int(environ["COLUMNS"]))
    except (KeyError, ValueError):
        pass
    try:
        return os.get_terminal_size(stream.fileno()).columns or 80
    except (OSError, ValueError):
        return 80


def _ignore(phase: str, share: float | None) -> None:
    """Ignore the progress."""


# These colours are legible on a white and on a black background; yellow and cyan are not.
_STYLES = {"error": "1;31", "warning": "1;35", "hint": "1", "note": "2"}


def write(stream: TextIO, text: str) -> None:
    """Write and flush *text*, with escapes for characters that the encoding of *stream* lacks."""
    try:
        stream.write(text)
    except UnicodeEncodeError:
        encoding = stream.encoding or "utf-8"
        buffer = getattr(stream, "buffer", None)
        if buffer is None:
            stream.write(text.encode(encoding, "backslashreplace").decode(encoding))
        else:
            stream.flush()
            buffer.write(_encoded(text, encoding))
    stream.flush()


def _encoded(text: str, encoding: str) -> bytes:
    try:
        return text.encode(encoding, "surrogateescape")
    except UnicodeEncodeError:
        return text.encode(encoding, "backslashreplace")
