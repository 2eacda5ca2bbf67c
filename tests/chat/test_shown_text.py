"""What a chat writes to the terminal."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from rich.cells import cell_len

from idefics_cli.ui.chat.repl import Repl
from idefics_cli.ui.terminal.console import Console
from tests.support.chat import Lines, world
from tests.support.commands import Stream


def test_a_screen_reader_gets_whole_sentences(tmp_path: Path) -> None:
    class Pieces(Stream):
        def write(self, text: str) -> int:
            pieces.append(text)
            return len(text)

    pieces: list[str] = []
    here = world(tmp_path, "It is a cat. It sleeps now.\nYes")
    console = Console(Pieces(terminal=True), Stream(terminal=True), environ={}, accessible=True)
    Repl(here.dispatcher, console, Lines("What?")).run()
    assert pieces == ["It is a cat. ", "It sleeps now.\n", "Yes", "\n"]


def test_control_characters_of_an_answer_are_shown_and_not_obeyed(tmp_path: Path) -> None:
    out, _, _ = world(tmp_path, "a\x1b[2Jb [bold]c[/bold] \r\nd").talk("Hi")
    assert out == "a␛[2Jb [bold]c[/bold] \nd\n"


def test_control_characters_in_the_name_of_a_picture_are_not_obeyed(
    tmp_path: Path, pictures: Path
) -> None:
    Image.new("RGB", (4, 4)).save(pictures / "x\x1b[2J.png")
    _, err, _ = world(tmp_path).talk("/image x*.png")
    assert "\x1b" not in err
    assert "4x4" in err


@pytest.mark.parametrize(("environ", "is_drawn"), [({"NO_COLOR": ""}, True), ({}, False)])
def test_a_picture_is_drawn_where_colours_are(
    environ: dict[str, str], is_drawn: bool, tmp_path: Path, pictures: Path
) -> None:
    environ = {"COLORTERM": "truecolor", "TERM": "xterm", **environ}
    here = world(tmp_path)
    _, err, _ = here.talk("/image a.png", **environ)
    assert ("\x1b[38;2;255;0;0;48;2;255;0;0m▀" in err) == is_drawn
    _, err, _ = here.talk("/set preview=off", "/image b.png", **environ)
    assert "▀" not in err


@pytest.mark.parametrize(
    ("size", "shape"),
    [((224, 225), "square"), ((8, 8), "square"), ((8, 9), "portrait"), ((640, 480), "landscape")],
)
def test_a_picture_that_looks_square_is_called_so(
    tmp_path: Path, pictures: Path, size: tuple[int, int], shape: str
) -> None:
    Image.new("RGB", size).save(pictures / "x.png")
    assert f"x.png, {size[0]}x{size[1]} {shape}," in world(tmp_path).talk("/image x.png")[1]


def test_a_name_in_wide_characters_is_folded_once(tmp_path: Path, pictures: Path) -> None:
    Image.new("RGB", (8, 6)).save(pictures / "写真の名前と説明.png")
    err = world(tmp_path).talk("/image 写真の名前と説明.png", "/images", COLUMNS="40")[1]
    told = [line for line in err.splitlines() if "▀" not in line]
    assert len(told) == 6
    assert all(cell_len(line) <= 40 for line in told)
    # A continued line begins with a space.
    assert [line[0] for line in told] == ["[", " ", " "] * 2
