"""Python source, parsed once for all tests that read it."""

from __future__ import annotations

import ast
from functools import cache


@cache
def nodes(source: str) -> tuple[ast.AST, ...]:
    """Return the nodes of *source* as `ast.walk` yields them; the first is the module."""
    return tuple(ast.walk(ast.parse(source)))
