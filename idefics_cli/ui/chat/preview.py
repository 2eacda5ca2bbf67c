"""Pictures in the terminal: as graphics, or as characters of two pixels each."""

from __future__ import annotations

from typing import TYPE_CHECKING, TextIO

from idefics_cli.ui.terminal.console import Console
from idefics_cli.ui.terminal.graphics import Graphics, can_draw, draw_graphics

if TYPE_CHECKING:
    from PIL.Image import Image

_UPPER_HALF = "\u2580"
_BETTER = "this terminal can show pictures sharply: pip install 'idefics-cli[preview]'"
MAX_COLUMNS, MAX_ROWS = 48, 12


class Previews:
    """Shows pictures on stderr, if that is a terminal with colours.

    If only the package for its graphics is missing, half blocks are drawn, and a note says so once.

    Args:
        console: The terminal.
        graphics: The graphics that the terminal understands; None draws half blocks.
    """

    def __init__(self, console: Console, *, graphics: Graphics | None = None) -> None:
        self._console = console
        is_missing = graphics is not None and not can_draw(graphics)
        self._graphics = None if is_missing else graphics
        self._advice = _BETTER if is_missing else ""
        environ = dict(console.environ)
        self._depth = color_depth(console.err, environ) if draws_pictures(console) else 0

    def show(self, picture: Image) -> None:
        """Show *picture*, which is RGB, at most `MAX_ROWS` high, if the terminal can show it."""
        if not self._depth:
            return
        columns = self._console.err_columns
        self._console.err.write(self._drawn(picture, columns))
        self._console.err.flush()
        if self._advice:
            self._console.note(self._advice)
            self._advice = ""

    def _drawn(self, picture: Image, columns: int) -> str:
        if self._graphics is None:
            return draw_picture(picture, columns=columns, depth=self._depth)
        width, height = fitted(picture, columns=columns)
        return draw_graphics(
            picture, self._graphics, columns=width, rows=height // 2, terminal=self._console.err
        )


def draws_pictures(console: Console) -> bool:
    """Whether pictures are drawn: not in pipes, on dumb terminals or without colours."""
    return console.has_colors


def fitted(picture: Image, *, columns: int) -> tuple[int, int]:
    """Return the width and the height of *picture* in half blocks; the height is even.

    A character is about twice as high as wide, so a half block is about square.
    """
    box = (min(MAX_COLUMNS, max(columns - 2, 1)), 2 * MAX_ROWS)
    scale = min(box[0] / picture.width, box[1] / picture.height)
    width = max(round(picture.width * scale), 1)
    return width, max(round(picture.height * scale / 2) * 2, 2)


def draw_picture(picture: Image, *, columns: int, depth: int) -> str:
    """Return *picture* as lines of half blocks, each with a newline.

    Args:
        picture: RGB.
        columns: Width of the terminal; the drawing is at most `MAX_COLUMNS` wide.
        depth: Number of colours as an exponent of 2: 24, or 8 for xterm's palette.
    """
    width, height = fitted(picture, columns=columns)
    small = picture.resize((width, height), reducing_gap=2.0)
    lines = []
    for y in range(0, height, 2):
        cells = "".join(_cell(small, x, y, depth) for x in range(width))
        lines.append(f"{cells}\x1b[0m\n")
    return "".join(lines)


def color_depth(out: TextIO, environ: dict[str, str] | None = None) -> int:
    """Return the number of colours of the terminal *out* as an exponent of 2; 0 for none."""
    from rich.console import Console

    system = Console(file=out, _environ=environ).color_system
    return {"truecolor": 24, "256": 8}.get(system or "", 0)


def _cell(picture: Image, x: int, y: int, depth: int) -> str:
    upper, lower = (_code(picture.getpixel((x, y + i)), depth) for i in (0, 1))
    return f"\x1b[38;{upper};48;{lower}m{_UPPER_HALF}"


def _code(pixel: object, depth: int) -> str:
    red, green, blue = pixel if isinstance(pixel, tuple) else (0, 0, 0)
    if depth == 24:
        return f"2;{red};{green};{blue}"
    # The 6x6x6 cube of xterm's palette starts at 16.
    return f"5;{16 + 36 * round(red / 51) + 6 * round(green / 51) + round(blue / 51)}"
