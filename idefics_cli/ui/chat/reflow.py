"""A fix for prompt-toolkit, whose prompt leaves copies when the terminal gets narrower."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prompt_toolkit.application import Application
    from prompt_toolkit.layout.screen import Screen

# GNU screen, the console of Linux and st cut long lines instead of wrapping them again. xterm cuts
# them too, and is recognised by its variable XTERM_VERSION.
_CUTTING_TERMS = ("screen", "linux", "st-")


def wraps_anew(environ: Mapping[str, str]) -> bool:
    """Whether the terminal wraps long lines again when it gets narrower; others cut them."""
    if "TMUX" in environ:
        return True
    return "XTERM_VERSION" not in environ and not environ.get("TERM", "").startswith(_CUTTING_TERMS)


# Any: the type of what the application returns, which does not matter here.
def erase_wrapped_rows(application: Application[Any]) -> None:
    """Change *application* so that it also erases rows that wrapping has added to its prompt.

    A terminal that gets narrower wraps the drawn rows, so the prompt takes more rows than before.
    prompt-toolkit 3.0 goes up as many rows as it has drawn, and leaves the rows above them on the
    screen (its issue 1933).
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
    """Return how many rows a terminal of width *columns* adds to *screen* above its cursor.

    Args:
        screen: The rows as they were drawn.
        x: Column of the cursor on *screen*.
        y: Row of the cursor on *screen*.
        columns: The new width of the terminal.
    """
    rows = (screen.data_buffer[row] for row in range(y))
    widths = (max((i + 1 for i, c in row.items() if c.char.strip()), default=1) for row in rows)
    return sum((width - 1) // columns for width in widths) + x // columns
