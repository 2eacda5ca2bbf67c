"""A prompt that leaves no copies behind when the terminal gets narrower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prompt_toolkit.application import Application
    from prompt_toolkit.layout.screen import Screen

# GNU screen, the console of Linux and st cut their lines; xterm does, which sets a variable.
_CUTTING_TERMS = ("screen", "linux", "st-")


def wraps_anew(environ: Mapping[str, str]) -> bool:
    """Whether the terminal wraps its lines anew at another width, as most do, or cuts them."""
    if "TMUX" in environ:
        return True
    return "XTERM_VERSION" not in environ and not environ.get("TERM", "").startswith(_CUTTING_TERMS)


# Any: the type of what the application returns, which does not matter here.
def erase_wrapped_rows(application: Application[Any]) -> None:
    """Let *application* erase also the rows that a narrower terminal has added to it.

    prompt-toolkit 3.0 goes up as many rows as it has drawn, and leaves the others on the screen
    (its issue 1933).
    """
    renderer, output = application.renderer, application.output
    erase = renderer.erase

    def erase_all(leave_alternate_screen: bool = True) -> None:
        screen = renderer.last_rendered_screen
        if screen is not None:
            cursor = screen.get_cursor_position(application.layout.current_window)
            added = _added_rows(screen, cursor.x, cursor.y, output.get_size().columns)
            if added:
                output.cursor_up(added)
        erase(leave_alternate_screen)

    renderer.erase = erase_all  # type: ignore[method-assign]  # it has no setting for this


def _added_rows(screen: Screen, x: int, y: int, columns: int) -> int:
    """Return how many rows at *columns* stand between the begin of *screen* and its cursor.

    Those that were drawn do not count.
    """
    rows = (screen.data_buffer[row] for row in range(y))
    widths = (max((i + 1 for i, c in row.items() if c.char.strip()), default=1) for row in rows)
    return sum((width - 1) // columns for width in widths) + x // columns
