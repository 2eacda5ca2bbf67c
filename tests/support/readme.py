"""The commands of README, as a reader would copy them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_BLOCK = re.compile(
    r"^(?:(?: {4}[^\n]*)?\n)+|^```(?:bash|console|powershell)?\n.*?^```$", re.M | re.S
)
# Two commands have a marker before them: `.ci/run` runs them as they are.
_MARKED = re.compile(r"^<!-- \w+ -->\n```bash\n.*?^```$", re.M | re.S)
_PROGRAM = re.compile(r"(?:\$ )?(idefics|echo|printf|curl|cat|find|ls|pip|python|python3|git)\b")


@dataclass(frozen=True, slots=True)
class Example:
    """A command of README, and what README says that it prints.

    Attributes:
        command: One line or several, for a shell.
        output: Lines on stdout; None where README shows none.
    """

    command: str
    output: str | None = None

    def __str__(self) -> str:
        return self.command[:60]


def examples() -> list[Example]:
    """Return every command in the code blocks of README, in order."""
    text = _MARKED.sub("", (ROOT / "README.md").read_text(encoding="utf-8"))
    return [example for block in _BLOCK.finditer(text) for example in _commands(block.group())]


def _commands(block: str) -> Iterator[Example]:
    lines = [line.removeprefix("    ") for line in block.splitlines() if "```" not in line]
    command: list[str] = []
    output: list[str] = []
    shows_output = False
    for line in lines:
        if command and (command[-1].endswith("\\") or line.startswith("  ")) and not output:
            command.append(line)
        elif _PROGRAM.match(line):
            if command:
                yield _example(command, output if shows_output else None)
            shows_output = line.startswith("$ ")
            command, output = [line.removeprefix("$ ")], []
        elif command and shows_output:
            output.append(line)
    if command:
        yield _example(command, output if shows_output else None)


def _example(command: list[str], output: list[str] | None) -> Example:
    return Example("\n".join(command), None if output is None else "\n".join(output).rstrip())
