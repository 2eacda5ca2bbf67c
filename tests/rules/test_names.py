"""One meaning, one name: the names of definitions, as tests."""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from tests.support.code import nodes

PACKAGE = Path(__file__).parents[2] / "idefics_cli"


def repeated_classes(sources: Iterable[tuple[str, str]]) -> dict[str, list[str]]:
    """Return the class names that occur more than once, with their modules."""
    places: defaultdict[str, list[str]] = defaultdict(list)
    for place, source in sources:
        for node in nodes(source):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(place)
    return {name: found for name, found in places.items() if len(found) > 1}


def test_no_two_classes_have_one_name() -> None:
    files = sorted(PACKAGE.rglob("*.py"))
    assert len(files) > 200
    assert not repeated_classes(
        (path.relative_to(PACKAGE).as_posix(), path.read_text(encoding="utf-8")) for path in files
    )


def test_two_classes_of_one_name_are_seen() -> None:
    sources = [
        ("a.py", "class A: pass"),
        ("b.py", "def f():\n    class A: pass"),
        ("c.py", "A = 1"),
    ]
    assert repeated_classes(sources) == {"A": ["a.py", "b.py"]}
