"""No module is longer than 400 lines, and no function longer than 40."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from tests.support.code import nodes

PACKAGE = Path(__file__).parents[2] / "idefics_cli"
MODULE_LINES = 400
FUNCTION_LINES = 40


def long_functions(source: str) -> Iterator[tuple[str, int]]:
    """Yield the name and the length of each function in *source* that is too long.

    Two kinds of declaration may be longer: a function with more lines of parameters than of
    anything else (the options of a command), and one whose body is a single statement (a table).
    """
    for node in nodes(source):
        if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        lines = last_line(node) - node.lineno + 1
        signature = node.body[0].lineno - node.lineno
        is_declaration = signature > lines / 2 or len(statements(node)) == 1
        if lines > FUNCTION_LINES and not is_declaration:
            yield node.name, lines


def last_line(node: ast.stmt) -> int:
    assert node.end_lineno is not None
    return node.end_lineno


def statements(function: ast.FunctionDef | ast.AsyncFunctionDef) -> list[ast.stmt]:
    """Return the body of *function* without its docstring."""
    return function.body[ast.get_docstring(function) is not None :]


def test_no_module_is_too_long() -> None:
    lengths = {
        path.relative_to(PACKAGE).as_posix(): len(path.read_text(encoding="utf-8").splitlines())
        for path in PACKAGE.rglob("*.py")
    }
    assert len(lengths) > 200
    assert {name: lines for name, lines in lengths.items() if lines > MODULE_LINES} == {}


def test_no_function_is_too_long() -> None:
    found = {
        f"{path.relative_to(PACKAGE).as_posix()} {name}": lines
        for path in PACKAGE.rglob("*.py")
        for name, lines in long_functions(path.read_text(encoding="utf-8"))
    }
    assert found == {}


def test_a_long_function_is_found_and_a_long_declaration_is_allowed() -> None:
    statement, parameter = "    call()\n", "    x{},\n"
    parameters = "".join(parameter.format(number) for number in range(30))
    assert list(long_functions("def f():\n" + 40 * statement)) == [("f", 41)]
    assert list(long_functions("def f():\n" + 39 * statement)) == []
    assert list(long_functions(f"def f(\n{parameters}):\n" + 20 * statement)) == []
    assert list(long_functions(f"def f(\n{parameters}):\n" + 40 * statement)) == [("f", 72)]
    table = "".join(f"        {number},\n" for number in range(50))
    assert list(long_functions(f"def f():\n    return [\n{table}    ]\n")) == []
