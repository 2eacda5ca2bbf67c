"""Marks of pictures in typed prompts, and ordinary texts that look like them."""

from __future__ import annotations

import pytest

from idefics_cli.models.families.picture_marks import place_pictures, read_marks, references


@pytest.mark.parametrize(
    ("text", "numbers"),
    [
        ("What is in [1]?", (1,)),
        ("[2] and [1], not [2]", (2, 1)),
        ("[12]", (12,)),
        ("[1]: the front, ([2])", (1, 2)),
        ("a[1] = b[0]", ()),
        ("x = [1] or x == [1]", ()),
        ('{"boxes": [1], "sizes":[2]}', ()),
        ("[[1], [2]]", ()),
        ("[1](http://x) and [1][2]", ()),
        ("[1]: https://x.org", ()),
        ("[0] [x] [] [1000] [1,2] [01]", ()),
        (r"\[1] and picture \[2]", ()),
        ("`[1]` and ``a `[2]` b`` but [3]", (3,)),
        ("```\nf([1])\n```\n[2]", (2,)),
        ("it`s [1]\nisn`t it", (1,)),
        ("an open ``` fence [1]", (1,)),
    ],
)
def test_a_number_in_brackets_names_a_picture(text: str, numbers: tuple[int, ...]) -> None:
    assert references(read_marks(text)) == numbers


def written(text: str, count: int) -> list[str | int]:
    placement = place_pictures(read_marks(text), range(1, count + 1))
    return [*placement.unnamed, *placement.in_words(placement.order)]


@pytest.mark.parametrize(
    ("text", "count", "parts"),
    [
        ("What?", 2, [1, 2, "What?"]),
        ("<image>a<image>b", 2, [1, "a", 2, "b"]),
        ("<IMAGE>", 1, [1, "<IMAGE>"]),
        ("[2] then [1]. Is [1] red?", 2, [2, " then ", 1, ". Is the second image red?"]),
        ("In the photo [1] and the photo [1]", 1, ["In the photo ", 1, " and the photo"]),
        (r"\<image> \[1] [1] \[x]", 1, [r"<image> [1] ", 1, r" \[x]"]),
        (r"\[1] in a text", 0, [r"\[1] in a text"]),
        (r"`\[1]` stays", 1, [1, r"`\[1]` stays"]),
    ],
)
def test_a_picture_stands_where_it_is_named(text: str, count: int, parts: list[str | int]) -> None:
    assert written(text, count) == parts
