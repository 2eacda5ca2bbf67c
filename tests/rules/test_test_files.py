"""The rules of the tests themselves."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]
FILES = sorted(TESTS.rglob("*.py"))


def imported_tests(source: str) -> Iterator[str]:
    """Yield the test modules that *source* imports, or imports from."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if name.startswith("tests.") and any(p.startswith("test_") for p in name.split(".")):
                yield name


def test_no_file_imports_a_test_file() -> None:
    found = {path: list(imported_tests(path.read_text(encoding="utf-8"))) for path in FILES}
    assert {path: names for path, names in found.items() if names} == {}


@pytest.mark.parametrize(
    "source",
    [
        "from tests.bench.test_bench import Stand",
        "from tests.bench import test_bench",
        "def f():\n    import tests.bench.test_bench",
    ],
)
def test_an_import_of_a_test_file_is_seen(source: str) -> None:
    assert list(imported_tests(source))
