"""Every `type: ignore` and `noqa` names its code, and its reason on the same line."""

from __future__ import annotations

import io
import re
import tokenize
from collections.abc import Iterator
from pathlib import Path

import pytest

TOP = Path(__file__).parents[2]
FILES = sorted(
    path for folder in ("idefics_cli", "tests", ".ci") for path in (TOP / folder).rglob("*.py")
)
IGNORE = re.compile(r"#\s*(?:type:\s*ignore|noqa)\b(\[[\w, -]+\]|:\s*[A-Z]+\d+(?:,\s*[A-Z]+\d+)*)?")


def unexplained(source: str) -> Iterator[str]:
    """Yield the comments of *source* that ignore a check without its code or without a reason."""
    if not IGNORE.search(source):  # most files, whose tokens would take seconds
        return
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT and (match := IGNORE.match(token.string)):
            reason = IGNORE.sub("", token.string).strip("# ()")
            if match[1] is None or not reason:
                yield token.string


def test_every_ignore_has_a_code_and_a_reason() -> None:
    assert len(FILES) > 400
    found = {
        path.relative_to(TOP).as_posix(): comments
        for path in FILES
        if (comments := list(unexplained(path.read_text(encoding="utf-8"))))
    }
    assert found == {}


@pytest.mark.parametrize(
    ("comment", "is_explained"),
    [
        ("# type: ignore", False),
        ("# type: ignore  # it is so", False),
        ("# type: ignore[arg-type]", False),
        ("# type: ignore[arg-type]  # a fake", True),
        ("# noqa: E402", False),
        ("# noqa: E402, F401 (after the skip)", True),
        ("# a comment", True),
    ],
)
def test_an_ignore_without_a_code_or_a_reason_is_found(comment: str, is_explained: bool) -> None:
    assert list(unexplained(f"x = 1  {comment}\n")) == ([] if is_explained else [comment])
