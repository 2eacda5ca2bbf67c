"""Draw the chat in README from a real one, in tmux, with the built-in model."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from rich.console import Console
from rich.text import Text

TARGET = Path(__file__).parent.parent / ".github" / "chat.svg"
COLUMNS, ROWS = 80, 60
LINES = (
    "@scene-004.png How many shapes are in the image?",
    "Where is the heart?",
    "@scene-001.png",
    "What color is the star in the second image?",
    "What color is the background of [1]?",
    "/images",
)
SOCKET = f"idefics-{os.getpid()}"


def main() -> None:
    """Run the chat, and write the picture of the screen."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "idefics_cli", "demo", f"{folder}/pictures", "--count", "6"],
            check=True,
            capture_output=True,
        )
        screen = _talk(Path(folder))
    console = Console(
        record=True, width=COLUMNS, file=io.StringIO(), force_terminal=True,
        color_system="truecolor",
    )  # fmt: skip
    console.print(Text.from_ansi(f"$ idefics chat -m demo\n{screen.rstrip()}"))
    svg = console.export_svg(title="idefics chat")
    # rich loads fonts from the network; the fonts of the reader are enough.
    TARGET.write_text(re.sub(r"@font-face \{.*?\}", "", svg, flags=re.DOTALL), encoding="utf-8")


def _talk(folder: Path) -> str:
    command = (
        f"cd '{folder}/pictures'; HOME='{folder}' COLORTERM=truecolor"
        f" exec '{sys.executable}' -m idefics_cli chat -m demo"
    )
    _tmux("new-session", "-d", "-s", "chat", "-x", str(COLUMNS), "-y", str(ROWS), command)
    try:
        _settle()
        for line in LINES:
            _tmux("send-keys", "-t", "chat", "-l", line)
            _tmux("send-keys", "-t", "chat", "Enter")
            _settle()
        return _tmux("capture-pane", "-e", "-p", "-t", "chat")
    finally:
        _tmux("kill-server")


def _settle() -> None:
    """Wait until the screen no longer changes."""
    former, stills = "", 0
    while stills < 8:
        time.sleep(0.5)
        screen = _tmux("capture-pane", "-p", "-t", "chat")
        stills = stills + 1 if screen == former and screen.strip() else 0
        former = screen


def _tmux(*arguments: str) -> str:
    done = subprocess.run(
        ["tmux", "-L", SOCKET, *arguments], check=True, capture_output=True, text=True
    )
    return done.stdout


if __name__ == "__main__":
    main()
