"""Pictures in terminals with the graphics protocol of kitty or iTerm2, or with sixel."""

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

from idefics_cli.ui.terminal.answers import is_cut_off, remove_answers

if TYPE_CHECKING:
    from PIL.Image import Image

Graphics = Literal["kitty", "iterm2", "sixel"]
# Two queries. The first asks for kitty graphics, with a picture of one pixel. The second asks for
# the device attributes, of which attribute 4 means sixel. Every terminal answers the second query,
# so its answer ends the wait. Sources: the graphics protocol of kitty, "Querying support"; XTerm
# control sequences, "Send Device Attributes".
_QUERY = "\x1b_Gi=31,s=1,v=1,a=q,t=d,f=24;AAAA\x1b\\\x1b[c"
_KITTY = re.compile(r"\x1b_Gi=31;([^\x1b]*)\x1b\\")
_ATTRIBUTES = re.compile(r"\x1b\[\?([\d;]*)c")
_KEY_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O.)?|[\x00-\x08\x0e-\x1f\x7f]")
_TIMEOUT_SECONDS = 0.5
_SIXEL = "4"


@dataclass(frozen=True, slots=True)
class TerminalReply:
    """The answer of a terminal to `ask_terminal`.

    Attributes:
        graphics: The best graphics of the terminal; None if it has none or gave no answer.
        typed: Text that the user typed while the query ran.
    """

    graphics: Graphics | None = None
    typed: str = ""


def ask_terminal(
    terminal: TextIO, environ: Mapping[str, str], *, timeout_seconds: float = _TIMEOUT_SECONDS
) -> TerminalReply:
    """Ask *terminal*, whose keyboard is stdin, for its graphics.

    Args:
        terminal: The terminal for the pictures.
        environ: The environment, for the variables of iTerm2 and tmux.
        timeout_seconds: Longest wait for an answer.
    """
    multiplexed = "TMUX" in environ or environ.get("TERM", "").startswith("screen")
    if not multiplexed and "iTerm" in environ.get("TERM_PROGRAM", environ.get("LC_TERMINAL", "")):
        return TerminalReply("iterm2")
    if environ.get("TERM") == "linux":  # the console of Linux displays the query as text
        return TerminalReply()
    said = _query(terminal, timeout_seconds)
    attributes, kitty = _ATTRIBUTES.search(said), _KITTY.search(said)
    typed = _KEY_SEQUENCE.sub("", remove_answers(said))
    # Sixel comes first. WezTerm and Konsole have both, but they lack the Unicode placeholders of
    # kitty's protocol, with which textual-image shows a picture.
    if attributes and _SIXEL in attributes[1].split(";"):
        return TerminalReply("sixel", typed)
    return TerminalReply("kitty" if kitty and kitty[1] == "OK" else None, typed)


def _query(terminal: TextIO, timeout_seconds: float) -> str:
    """Return the input from the keyboard up to the answer of the terminal."""
    try:
        import termios
        import tty
    except ImportError:  # Windows
        return ""
    try:
        keyboard = sys.stdin.fileno()
        former = termios.tcgetattr(keyboard)
    except (OSError, ValueError, AttributeError, termios.error):  # stdin is not a terminal
        return ""
    said, begun = "", time.monotonic()
    try:
        tty.setcbreak(keyboard, termios.TCSANOW)
        terminal.write(_QUERY)
        terminal.flush()
        while not _ATTRIBUTES.search(said):
            # If an answer has begun, the time limit is doubled, so that its rest can arrive.
            patience = timeout_seconds * (1 + is_cut_off(said))
            left = begun + patience - time.monotonic()
            if left <= 0 or not select.select([keyboard], [], [], left)[0]:
                break
            said += os.read(keyboard, 1024).decode(errors="replace")
    finally:
        termios.tcsetattr(keyboard, termios.TCSANOW, former)
    return said


def can_draw(graphics: Graphics) -> bool:
    """Whether the package that draws *graphics* is installed."""
    # The protocol of iTerm2 sends the file itself, so it needs no package.
    return graphics == "iterm2" or find_spec("textual_image") is not None


def draw_graphics(
    picture: Image, graphics: Graphics, *, columns: int, rows: int, terminal: TextIO
) -> str:
    """Return the escape sequences that show *picture* in a box of *columns* by *rows* characters.

    After these sequences, the cursor is at the start of the line below the box.

    Args:
        picture: An RGB image.
        graphics: Graphics of the terminal, for which `can_draw` is True.
        columns: Width of the box, at most the width of the terminal.
        rows: Height of the box.
        terminal: The terminal that will show the picture. It is asked for the size of a character
            in pixels.
    """
    if graphics == "iterm2":
        return _iterm2(picture, columns, rows)
    from rich.console import Console

    with _captured(terminal) as page:
        from textual_image.renderable import SixelImage, TGPImage

        kind = SixelImage if graphics == "sixel" else TGPImage
        # Kitty's protocol encodes the number of the picture as a colour, so the console always
        # writes true colour.
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
    """A stream in memory that reports the size of *terminal* as its own."""

    def __init__(self, terminal: TextIO) -> None:
        super().__init__()
        self._terminal = terminal
        self._has_pixel_size = _has_pixel_size(terminal)

    def isatty(self) -> bool:
        return self._has_pixel_size

    def fileno(self) -> int:
        return self._terminal.fileno()


def _has_pixel_size(terminal: TextIO) -> bool:
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
    """Replace `sys.__stdout__` by a stream in memory for textual-image, and yield that stream.

    textual-image 0.12 has no parameter for the terminal and always uses `sys.__stdout__`. At import
    it sends a query there, whose answer it reads together with keys of the user. Later it asks
    `sys.__stdout__` for the size of a character, and sends pictures to kitty there. But the stdout
    of this program may be a file, and the pictures belong on *terminal*.
    """
    page, streams = _PixelPage(terminal), vars(sys)
    former = streams["__stdout__"]
    try:
        if "textual_image.renderable" not in sys.modules:
            streams["__stdout__"] = None
            import textual_image.renderable  # noqa: F401 (imported without a terminal)
        streams["__stdout__"] = page
        yield page
    finally:
        streams["__stdout__"] = former
