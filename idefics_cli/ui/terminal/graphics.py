"""Pictures as pixels, on terminals that have kitty's, iTerm2's or DEC's sixel graphics."""

from __future__ import annotations

import base64
import contextlib
import io
import os
import re
import select
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Literal, TextIO

if TYPE_CHECKING:
    from PIL.Image import Image

Graphics = Literal["kitty", "iterm2", "sixel"]
# Does it take a picture of one pixel, and what is it? Every terminal answers the second question,
# so its answer ends the wait for the first. Sources: the graphics protocol of kitty, "Querying
# support"; XTerm control sequences, "Send Device Attributes", where 4 is sixel.
_QUESTION = "\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\\x1b[c"
_KITTY = re.compile(r"\x1b_Gi=31;([^\x1b]*)\x1b\\")
_ATTRIBUTES = re.compile(r"\x1b\[\?([\d;]*)c")
_KEY_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O.)?|[\x00-\x08\x0e-\x1f\x7f]")
_PATIENCE_SECONDS = 0.5
_SIXEL = "4"


@dataclass(frozen=True, slots=True)
class TerminalReply:
    """What a terminal said of itself.

    Attributes:
        graphics: The best that it has; None when it has none, or does not say.
        typed: What was typed meanwhile.
    """

    graphics: Graphics | None = None
    typed: str = ""


def ask_terminal(
    terminal: TextIO, environ: Mapping[str, str], *, patience: float = _PATIENCE_SECONDS
) -> TerminalReply:
    """Ask *terminal*, whose keyboard is stdin, for the graphics that it has.

    Args:
        terminal: Where the pictures go.
        environ: For what iTerm2 and tmux say of themselves.
        patience: How long to wait for an answer, in seconds.
    """
    multiplexed = "TMUX" in environ or environ.get("TERM", "").startswith("screen")
    if not multiplexed and "iTerm" in environ.get("TERM_PROGRAM", environ.get("LC_TERMINAL", "")):
        return TerminalReply("iterm2")
    if environ.get("TERM") == "linux":  # the console of Linux shows the question
        return TerminalReply()
    said = _ask(terminal, patience)
    attributes, kitty = _ATTRIBUTES.search(said), _KITTY.search(said)
    typed = _KEY_SEQUENCE.sub("", _ATTRIBUTES.sub("", _KITTY.sub("", said)))
    # Terminals with both (WezTerm, Konsole) lack the placeholders that our way to kitty uses.
    if attributes and _SIXEL in attributes[1].split(";"):
        return TerminalReply("sixel", typed)
    return TerminalReply("kitty" if kitty and kitty[1] == "OK" else None, typed)


def _ask(terminal: TextIO, patience: float) -> str:
    """Return all that comes from the keyboard until the terminal has answered."""
    try:
        import termios
        import tty
    except ImportError:  # Windows
        return ""
    try:
        keyboard = sys.stdin.fileno()
        former = termios.tcgetattr(keyboard)
    except (OSError, ValueError, AttributeError, termios.error):  # no keyboard there
        return ""
    said, until = "", time.monotonic() + patience
    try:
        tty.setcbreak(keyboard, termios.TCSANOW)
        terminal.write(_QUESTION)
        terminal.flush()
        while not _ATTRIBUTES.search(said):
            left = until - time.monotonic()
            if left <= 0 or not select.select([keyboard], [], [], left)[0]:
                break
            said += os.read(keyboard, 1024).decode(errors="replace")
    finally:
        termios.tcsetattr(keyboard, termios.TCSANOW, former)
    return said


def can_draw(graphics: Graphics) -> bool:
    """Tell whether what draws for *graphics* is installed."""
    # iTerm2 takes a file as it is, and we write that ourselves.
    return graphics == "iterm2" or find_spec("textual_image") is not None


def draw_graphics(
    picture: Image, graphics: Graphics, *, columns: int, rows: int, terminal: TextIO
) -> str:
    """Return what makes a terminal show *picture* in a box of *columns* by *rows* characters.

    The cursor is then at the start of the line below.

    Args:
        picture: RGB.
        graphics: What the terminal understands, and `can_draw` allows.
        columns: At most as wide as the terminal.
        rows: As *columns*.
        terminal: Where it goes; it is asked for the size of a character, in pixels.
    """
    if graphics == "iterm2":
        return _iterm2(picture, columns, rows)
    from rich.console import Console

    with _captured(terminal) as page:
        from textual_image.renderable import SixelImage, TGPImage

        kind = SixelImage if graphics == "sixel" else TGPImage
        # Always in true colour: for kitty, the colour is the number of the picture.
        console = Console(
            file=page, force_terminal=True, color_system="truecolor", width=columns, height=rows
        )
        console.print(kind(picture, width=columns, height=rows), end="")
    return page.getvalue()


def _iterm2(picture: Image, columns: int, rows: int) -> str:
    """Return the escape sequence of iTerm2's inline images protocol (OSC 1337, File)."""
    file = io.BytesIO()
    picture.save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode("ascii")
    size = f"size={len(file.getvalue())};width={columns};height={rows}"
    return f"\x1b]1337;File=inline=1;{size};preserveAspectRatio=0:{data}\x07\n"


class _PixelPage(io.StringIO):
    """Takes what is written for *terminal*, and answers for it how large it is."""

    def __init__(self, terminal: TextIO) -> None:
        super().__init__()
        self._terminal = terminal
        self._tells_pixels = _tells_pixels(terminal)

    def isatty(self) -> bool:
        return self._tells_pixels

    def fileno(self) -> int:
        return self._terminal.fileno()


def _tells_pixels(terminal: TextIO) -> bool:
    try:
        import array
        import fcntl
        import termios

        size = array.array("H", [0, 0, 0, 0])  # rows, columns, width and height in pixels
        fcntl.ioctl(terminal.fileno(), termios.TIOCGWINSZ, size)
    except (ImportError, OSError, ValueError):
        return False
    return all(size)


@contextlib.contextmanager
def _captured(terminal: TextIO) -> Iterator[_PixelPage]:
    """Keep textual-image away from stdout, which may be a file, and from the keyboard.

    Version 0.12 asks the terminal when it is imported, and again if that does not tell its
    pixels, eats keys meanwhile, and sends pictures for kitty: all by way of `sys.__stdout__`.
    """
    page, streams = _PixelPage(terminal), vars(sys)
    former = streams["__stdout__"]
    try:
        if "textual_image.renderable" not in sys.modules:
            streams["__stdout__"] = None
            import textual_image.renderable  # noqa: F401 (imported while there is no terminal)
        streams["__stdout__"] = page
        yield page
    finally:
        streams["__stdout__"] = former
