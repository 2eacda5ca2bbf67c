"""Regular expressions: each takes time in proportion to the text, whatever the text is."""

from __future__ import annotations

import ast
import importlib
import re
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import idefics_cli
from tests.support.code import nodes

_ROOT = Path(idefics_cli.__file__).parent
_METHODS = ("search", "match", "fullmatch", "sub", "findall", "finditer", "split")

# Strings that are repeated to make long texts. The literals of a pattern are added to them.
_ATOMS = (" ", "a", "A", "1", ".", "\\", "'", "<", "<!-- a -->", "<!a>", "\n", "_", "[", "-", "é")
_ENDS = ("", "\0")
_LONGEST = 12_000
# A linear pattern needs about 1 ms for the longest text, a quadratic one 0.3 s and more.
_MOST_SECONDS = 0.1


@dataclass(frozen=True)
class Use:
    """A pattern and a method that the package calls on it."""

    name: str
    pattern: re.Pattern[str] | re.Pattern[bytes]
    method: str

    def run(self, text: str) -> None:
        data = text.encode("latin-1") if isinstance(self.pattern.pattern, bytes) else text
        empty = b"" if isinstance(data, bytes) else ""
        arguments = (empty, data) if self.method == "sub" else (data,)
        result = getattr(self.pattern, self.method)(*arguments)
        if self.method == "finditer":
            list(result)


def _uses() -> Iterator[Use]:
    sources = {path: path.read_text("utf-8") for path in sorted(_ROOT.rglob("*.py"))}
    called = _called_methods(sources.values())
    for path, source in sources.items():
        module = path.relative_to(_ROOT.parent).with_suffix("").as_posix()
        if "re.compile" in source:
            for name, value in vars(importlib.import_module(module.replace("/", "."))).items():
                patterns = [value] if isinstance(value, re.Pattern) else _in_rows(value)
                for pattern, method in product(patterns, sorted(called.get(name, ["match"]))):
                    yield Use(f"{module}:{name}", pattern, method)
        yield from _inline(module, source)


def _called_methods(sources: Iterable[str]) -> Mapping[str, set[str]]:
    """Return the methods of patterns that *sources* call on each name, in one search for all."""
    call = re.compile(rf"\b(\w+)(?=\.({'|'.join(_METHODS)})\b)")
    called: dict[str, set[str]] = defaultdict(set)
    for source in sources:
        for name, method in call.findall(source):
            called[name].add(method)
    return called


def _in_rows(value: object) -> list[re.Pattern[bytes]]:
    if not isinstance(value, tuple):
        return []
    rows = [row for row in value if isinstance(row, tuple) and row]
    return [row[0] for row in rows if isinstance(row[0], re.Pattern)]


def _inline(module: str, source: str) -> Iterator[Use]:
    for node in nodes(source):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and isinstance(node.func.value, ast.Name)
            and node.func.value.id == "re"
            and node.func.attr in _METHODS
            and (pattern := _literal(node.args[0])) is not None
        ):
            yield Use(f"{module}:{node.lineno}", re.compile(pattern), node.func.attr)


def _literal(node: ast.expr) -> str | None:
    if isinstance(node, ast.Constant):
        return str(node.value)
    if not isinstance(node, ast.JoinedStr):
        return None
    parts = (str(p.value) if isinstance(p, ast.Constant) else "a" for p in node.values)
    return "".join(parts)


def _atoms(pattern: str | bytes) -> list[str]:
    text = pattern.decode("latin-1") if isinstance(pattern, bytes) else pattern
    words = re.findall(r"[A-Za-z]{2,}|[^\w\s]", text)
    one_byte = [word for word in words if word.isascii()]
    return [*dict.fromkeys((*_ATOMS, *one_byte, *(f"{word} " for word in one_byte)))]


def _texts(pattern: str | bytes) -> Iterator[Iterator[str]]:
    """Yield families of texts that grow slowly, so that an exponential pattern shows early."""
    atoms = _atoms(pattern)
    pumps = [*atoms, *(a + b for a, b in product(_ATOMS[:8], _ATOMS[:8]) if a != b)]
    for pump in pumps:
        yield _growing(pump)


def _growing(pump: str) -> Iterator[str]:
    count = 4.0
    while count * len(pump) <= _LONGEST:
        for end in _ENDS:
            yield pump * int(count) + end
        count *= 1.5 if count < 40 else 12


def _seconds(use: Use, text: str) -> float:
    start = time.thread_time()
    use.run(text)
    return time.thread_time() - start


def test_each_pattern_needs_time_in_proportion_to_the_text() -> None:
    uses = [*_uses()]
    assert len(uses) > 100
    for use in uses:
        for family in _texts(use.pattern.pattern):
            for text in family:
                seconds = _seconds(use, text)
                if seconds >= _MOST_SECONDS:  # a disturbed machine, unless it happens each time
                    seconds = min(_seconds(use, text) for _ in range(5))
                assert seconds < _MOST_SECONDS, (
                    f"{use.name}: {seconds:.1f} s for {text[:40]!r} x {len(text)}"
                )
