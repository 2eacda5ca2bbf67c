"""Degenerate replies: empty replies, and replies that repeat themselves."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

from idefics_cli.engine.schema.form import parse_reply, texts_in

# `_WORD` matches a word. In scripts without spaces, each character counts as a word.
_UNSPACED = "\u3040-\u30ff\u3400-\u9fff\uac00-\ud7af"
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+")
_SENTENCE = re.compile(r"[.!?\u3002\uff01\uff1f\n]+")
_NUMBER = re.compile(r"\d+")
# `_STUTTER` finds a unit of up to 8 characters that repeats without spaces, as in "hahaha…".
_STUTTER = re.compile(r"(?P<unit>\S{1,8}?)(?P=unit){9,}")
_SHORTEST_STUTTER = 24

# The key is the number of words of a phrase. The value says how often in a row a caption may
# contain such a phrase. The limits allow what good captions contain: "very, very, very", or four
# cats listed one by one.
_MOST_REPEATS = {1: 7, 2: 4, 3: 3, 4: 3}
_MOST_REPEATS_OF_LONGER = 2
_LONGEST_CIRCLE = 60
# A caption may have at most this many list items that differ only in their number.
_MOST_NUMBERED = 9
_MOST_EQUAL_SENTENCES = 2
_CIRCLES = "goes in circles"


def degeneracy(text: str) -> str | None:
    """Return why *text* cannot be a caption; None if it can.

    Returns:
        "is empty" if the text has neither a letter nor a digit; "goes in circles" if it repeats a
        character, a word, a phrase, a line or a sentence more often than descriptions do.
    """
    if not any(character.isalnum() for character in text):
        return "is empty"
    if _stutters(text) or _circles(text) or _repeats_sentences(text) or _is_monotonous(text):
        return _CIRCLES
    return None


def formed_degeneracy(text: str) -> str | None:
    """Return why a reply with a form cannot be a caption: a text in its JSON goes in circles.

    The JSON text itself may repeat names, and a pattern says itself what may repeat. None also for
    a reply that was cut.
    """
    try:
        texts = [*texts_in(parse_reply(text))]
    except ValueError:
        return None
    reasons = map(degeneracy, texts)
    return next((reason for reason in reasons if reason == _CIRCLES), None)


def _stutters(text: str) -> bool:
    if max(map(len, text.split()), default=0) < _SHORTEST_STUTTER:
        return False  # a quick test: a stutter has no spaces
    for match in _STUTTER.finditer(text):
        # A repeated unit with letters is a stutter from 24 characters on. Without letters the limit
        # is 80 characters, so that a drawn line or a row of zeros is allowed.
        least = _SHORTEST_STUTTER if any(character.isalpha() for character in match["unit"]) else 80
        if len(match[0]) >= least:
            return True
    return False


def _circles(text: str) -> bool:
    words = _WORD.findall(text.casefold())
    numbered = _WORD.findall(_NUMBER.sub("0", text.casefold()))
    # A quick test: without a frequent word, no phrase can repeat too often.
    if max(Counter(numbered).values(), default=0) <= _MOST_REPEATS_OF_LONGER:
        return False
    has_numbers = numbered != words
    for size in range(1, min(_LONGEST_CIRCLE, len(words) // 2) + 1):
        most = _MOST_REPEATS.get(size, _MOST_REPEATS_OF_LONGER)
        if _repeats(words, size) > most:
            return True
        if has_numbers and _repeats(numbered, size) > max(most, _MOST_NUMBERED):
            return True
    return False


def _repeats(words: Sequence[str], size: int) -> int:
    """Return the largest number of times that a phrase of *size* words occurs in a row."""
    longest = length = 0
    for index in range(size, len(words)):
        length = length + 1 if words[index] == words[index - size] else 0
        longest = max(longest, length)
    return longest // size + 1


def _repeats_sentences(text: str) -> bool:
    sentences = (" ".join(_WORD.findall(s.casefold())) for s in _SENTENCE.split(text))
    counts = Counter(sentence for sentence in sentences if sentence.count(" ") >= 3)
    return any(count > _MOST_EQUAL_SENTENCES for count in counts.values())


def _is_monotonous(text: str) -> bool:
    words = _WORD.findall(text.casefold())
    triples = Counter(zip(words, words[1:], words[2:], strict=False))
    # In real descriptions, more than 0.8 of all groups of three words are distinct. A share below
    # 0.3 means that the text is a loop with variations.
    return len(words) >= 50 and len(triples) < 0.3 * (len(words) - 2)
