"""Completion of the line that the user types."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.chat import ChatWorld, world


def words(here: ChatWorld, line: str) -> list[str]:
    return [candidate.text for candidate in here.dispatcher.complete(line)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("/im", ["/image", "/images"]),
        ("/image a", ["a.png"]),
        ("/image m", ["my\\ dog.png"]),
        ("look at @b", ["@b.png"]),
        ("/set temp", ["temperature="]),
        ("/set top_p=1 see", ["seed="]),
        ("/set pl", ["plain=on", "plain=off"]),
        ("/set preview=of", ["preview=off"]),
        ("/model dem", ["demo"]),
        ("/export ht", ["html"]),
        ("/help dr", ["drop"]),
        ("hello", []),
        ("/undo ", []),
    ],
)
def test_completion(line: str, expected: list[str], tmp_path: Path, pictures: Path) -> None:
    assert words(world(tmp_path), line) == expected


def test_base_models_are_not_offered(tmp_path: Path) -> None:
    names = words(world(tmp_path), "/model ")
    assert "demo" in names
    assert "idefics2-8b-base" not in names


def test_names_of_saved_chats_are_completed(tmp_path: Path) -> None:
    here = world(tmp_path, "One.")
    here.talk("/save trip", "a")
    assert words(here, "/load t") == ["trip"]


def test_a_loop_of_links_hides_no_other_picture(tmp_path: Path, pictures: Path) -> None:
    (pictures / "loop").symlink_to("loop")
    (pictures / "loop.png").symlink_to("loop.png")

    assert "a.png" in words(world(tmp_path), "/image ")
    assert words(world(tmp_path), "/image l") == ["loop.png"]
