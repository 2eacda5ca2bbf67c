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


def shown(text: str, *, width: int | None = None, styled: bool = True, sizes: int = 0) -> str:
    """Return the output of `MarkdownStream` for *text* in pieces, whose sizes follow a seed."""
    stream = MarkdownStream(width=width, styled=styled)
    rng, out = random.Random(sizes), ""
    while text:
        count = rng.randint(1, 7) if sizes else len(text)
        out += stream.feed(text[:count])
        text = text[count:]
    return out + stream.close()


@pytest.mark.parametrize("width", [None, 40, 20])
def test_however_a_text_is_cut_it_is_shown_the_same(width: int | None) -> None:
    whole = shown(TEXT, width=width)
    assert {shown(TEXT, width=width, sizes=seed) for seed in range(1, 40)} == {whole}


def test_without_its_colours_a_styled_text_is_the_text() -> None:
    styled = shown(TEXT)
    assert SGR.sub("", styled) == TEXT
    assert styled != TEXT


@pytest.mark.parametrize("width", [20, 40, 80])
def test_breaking_lines_only_puts_newlines_for_blanks_and_keeps_the_width(width: int) -> None:
    text = "the quick brown fox jumps over the lazy dog and " * 5
    broken = shown(text, width=width, styled=False)
    assert broken.replace("\n", " ") == text
    assert max(map(len, broken.split("\n"))) <= width + 1  # the space that ends the text
    assert broken.count("\n") >= len(text) // width - 1


def test_blanks_that_mean_something_are_never_given_up_for_a_break() -> None:
    text = "one two  three   four  "
    assert shown(text, width=8, styled=False) == "one two  three   four  "


def test_code_is_never_broken() -> None:
    code = "```\n" + "word " * 30 + "\n```\n"
    assert shown(code, width=20, styled=False) == code
    assert SGR.sub("", shown(code, width=20)) == code


def test_wide_characters_are_shown_as_they_come() -> None:
    stream = MarkdownStream(width=None, styled=False)
    assert stream.feed("漢字") == "漢字"


def test_without_style_and_width_a_text_is_itself() -> None:
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
