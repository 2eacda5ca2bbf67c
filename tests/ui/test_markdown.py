"""Markdown on a terminal: nothing is lost or changed, however the text is cut into pieces."""

from __future__ import annotations

import random
import re

import pytest

from idefics_cli.ui.chat.markdown import MarkdownStream

SGR = re.compile(r"\x1b\[[\d;]*m")
TEXT = """# A *title*

Some **bold words** and `code` with [brackets], <b>HTML</b> &amp; a [link](https://x.org/a_b_c).
1) first
   3. third  two blanks
> quoted
```python
x = 2 * 3  # **not bold**

```
2 * 3 * 4 is 24, snake_case_name, a**b, dangling ** and `one
\ttab 漢字かな交じり文 Zürich naïve """


def shown(text: str, *, styled: bool = True, sizes: int = 0) -> str:
    """Return the output of `MarkdownStream` for *text* in pieces, whose sizes follow a seed."""
    stream = MarkdownStream(styled=styled)
    rng, out = random.Random(sizes), ""
    while text:
        count = rng.randint(1, 7) if sizes else len(text)
        out += stream.feed(text[:count])
        text = text[count:]
    return out + stream.close()


def test_however_a_text_is_cut_it_is_shown_the_same() -> None:
    assert {shown(TEXT, sizes=seed) for seed in range(1, 40)} == {shown(TEXT)}


def test_without_its_colours_a_styled_text_is_the_text() -> None:
    styled = shown(TEXT)
    assert SGR.sub("", styled) == TEXT
    assert styled != TEXT


def test_wide_characters_are_shown_as_they_come() -> None:
    stream = MarkdownStream(styled=False)
    assert stream.feed("漢字") == "漢字"


def test_without_style_a_text_is_itself() -> None:
    assert shown(TEXT, styled=False) == TEXT


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("**bold** x", "\x1b[1mbold\x1b[0m"),
        ("*so* x", "\x1b[3mso\x1b[0m"),
        ("`code` x", "\x1b[35mcode\x1b[0m"),
        ("## Head", "\x1b[1;4mHead\x1b[0m"),
        ("```\nx **y**\n```", "\x1b[35m**y**\x1b[0m"),
    ],
)
def test_marks_are_coloured(text: str, code: str) -> None:
    assert code in shown(text)


@pytest.mark.parametrize("text", ["2 * 3 = 6", "a_b_c", "x**2 is", "plain. [bold]x[/bold]", "5*3"])
def test_what_is_no_markdown_is_left_plain(text: str) -> None:
    assert shown(text) == text
