"""Answers of a terminal that arrive late: never typed into the line."""

from __future__ import annotations

import pytest

from idefics_cli.ui.terminal.answers import AnswerFilter, is_cut_off, remove_answers
from tests.support.keyboard import ENTER, keyboard

ANSWERS = [
    "\x1b[?1;2c",
    "\x1b[?62;4;6c",
    "\x1b[>41;380;0c",
    "\x1b_Gi=31;OK\x1b\\",
    "\x1b_Gi=31;ENOTSUPPORTED:no\x1b\\",
    "\x1b]11;rgb:ffff/ffff/ffff\x07",
    "\x1bP>|XTerm(390)\x1b\\",
]
KEYS = [
    "a",
    "\x1b[A",
    "\x1bOA",
    "\x1b\r",
    "\r",
    "\x18\x05",
    "\x1b[200~x\x1b[201~",
    "é",
    "\x1b[1;5D",
]


@pytest.mark.parametrize("answer", ANSWERS)
def test_an_answer_in_any_pieces_is_removed_and_keys_stay(answer: str) -> None:
    text = f"What{answer} is{answer}?"
    for cut in range(len(text) + 1):
        for other in range(cut, len(text) + 1):
            pieces = AnswerFilter()
            parts = (text[:cut], text[cut:other], text[other:])
            assert "".join(map(pieces.feed, parts)) + pieces.flush() == "What is?"


@pytest.mark.parametrize("key", KEYS)
def test_keys_pass_at_once_and_the_escape_key_after_a_while(key: str) -> None:
    keys = AnswerFilter()
    assert keys.feed(key) == key
    assert keys.feed("\x1b") == ""
    assert keys.flush() == "\x1b"


def test_an_answer_is_still_removed_after_a_pause() -> None:
    pieces = AnswerFilter()
    assert pieces.feed("\x1b[?1") + pieces.flush() + pieces.feed(";2cHi") == "Hi"


@pytest.mark.parametrize("answer", ANSWERS)
def test_a_late_answer_is_not_typed_into_the_line(answer: str) -> None:
    with keyboard() as (keys, lines):
        keys.send_text(f"Wh{answer}at{ENTER}")
        assert lines.read("> ") == "What"


@pytest.mark.parametrize("answer", ANSWERS)
def test_the_text_typed_during_the_query_has_no_part_of_the_answer(answer: str) -> None:
    for end in range(1, len(answer)):
        assert is_cut_off(f"Hi{answer[:end]}"), end
        assert remove_answers(f"Hi{answer[:end]}") == "Hi"
    assert remove_answers(f"Hi{answer} there") == "Hi there"
    assert not is_cut_off(f"Hi{answer}")
