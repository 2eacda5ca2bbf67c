"""Pictures in the terminal, drawn as graphics or with half blocks.

A half block is the character that fills the upper half of its cell. With one colour for the
character and one for the background, a cell shows two pixels.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, TextIO

from idefics_cli.ui.terminal.console import Console
from idefics_cli.ui.terminal.graphics import Graphics, can_draw, draw_graphics

if TYPE_CHECKING:
    from PIL.Image import Image

_UPPER_HALF = "\u2580"
_BETTER = "this terminal can show pictures sharply: pip install 'idefics-cli[preview]'"
_FEW_COLOURS = "GNU screen shows pictures with `term screen-256color` in ~/.screenrc"
MAX_COLUMNS, MAX_ROWS = 48, 12
# In a smaller space, a picture would be only a few spots of colour, so none is shown.
_LEAST_ROWS, _LEAST_COLUMNS = 4, 20
_SCREEN_SHARE = 4


class Previews:
    """Shows pictures on stderr, if that is a terminal with colours.

    A picture takes at most a quarter of the rows, and a small terminal shows none.

    If the terminal understands graphics but the package that draws them is missing, half blocks
    are drawn, and a note says so once. Another note says once how GNU screen gets more than 8
    colours.

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
        if draws_pictures(console) and not self._depth and is_gnu_screen(environ):
            self._advice = _FEW_COLOURS

    def show(self, picture: Image) -> None:
        """Show the RGB image *picture*, at most `MAX_ROWS` high, if the terminal can show it."""
        columns, rows = self._console.err_columns, self._console.err_rows // _SCREEN_SHARE
        if rows < _LEAST_ROWS or columns < _LEAST_COLUMNS:
            return
        if self._depth:
            self._console.err.write(self._drawn(picture, columns, min(rows, MAX_ROWS)))
            self._console.err.flush()
        if self._advice:
            self._console.note(self._advice)
            self._advice = ""

    def _drawn(self, picture: Image, columns: int, rows: int) -> str:
        if self._graphics is None:
            return draw_picture(picture, columns=columns, rows=rows, depth=self._depth)
        width, height = fitted(picture, columns=columns, rows=rows)
        return draw_graphics(
            picture, self._graphics, columns=width, rows=height // 2, terminal=self._console.err
        )


def draws_pictures(console: Console) -> bool:
    """Whether pictures are drawn: not in a pipe, on a dumb terminal or without colours."""
    return console.has_colors


def fitted(picture: Image, *, columns: int, rows: int) -> tuple[int, int]:
    """Return the width and the height of the drawing of *picture* in half blocks.

    The drawing keeps the shape of *picture*: a character is about twice as high as wide, so a half
    block is about square. It is at most *rows* characters high and narrower than a terminal of
    *columns* characters. Its height is even, because a character has two half blocks.
    """
    box = (min(MAX_COLUMNS, max(columns - 2, 1)), 2 * rows)
    scale = min(box[0] / picture.width, box[1] / picture.height)
    width = max(round(picture.width * scale), 1)
    return width, max(round(picture.height * scale / 2) * 2, 2)


def draw_picture(picture: Image, *, columns: int, rows: int, depth: int) -> str:
    """Return *picture* as lines of half blocks, each with a newline.

    Args:
        picture: RGB.
        columns: Width of the terminal; the drawing is at most `MAX_COLUMNS` wide.
        rows: Height of the drawing at most.
        depth: Number of colours as an exponent of 2: 24, or 8 for xterm's palette.
    """
    width, height = fitted(picture, columns=columns, rows=rows)
    small = picture.resize((width, height), reducing_gap=2.0)
    lines = []
    for y in range(0, height, 2):
        cells = "".join(_cell(small, x, y, depth) for x in range(width))
        lines.append(f"{cells}\x1b[0m\n")
    return "".join(lines)


def color_depth(out: TextIO, environ: dict[str, str] | None = None) -> int:
    """Return the number of colours of the terminal *out* as an exponent of 2; 0 for few."""
    from rich.console import Console

    if environ is not None and is_gnu_screen(environ):
        # Inside GNU screen, COLORTERM still describes the terminal in which screen runs. GNU
        # screen itself has true colour only from version 5 on.
        environ = {**environ, "COLORTERM": ""}
    system = Console(file=out, _environ=environ).color_system
    return {"truecolor": 24, "256": 8}.get(system or "", 0)


def is_gnu_screen(environ: Mapping[str, str]) -> bool:
    """Whether the terminal is GNU screen."""
    return "STY" in environ and "TMUX" not in environ


def _cell(picture: Image, x: int, y: int, depth: int) -> str:
    upper, lower = (_code(picture.getpixel((x, y + i)), depth) for i in (0, 1))
    return f"\x1b[38;{upper};48;{lower}m{_UPPER_HALF}"


def _code(pixel: object, depth: int) -> str:
    red, green, blue = pixel if isinstance(pixel, tuple) else (0, 0, 0)
    if depth == 24:
        return f"2;{red};{green};{blue}"
    # In xterm's palette, the colours of the 6x6x6 cube begin at number 16.
    return f"5;{16 + 36 * round(red / 51) + 6 * round(green / 51) + round(blue / 51)}"
