"""The formats of captions are named in `caption/sinks` and nowhere else."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from idefics_cli.caption.sinks import SINKS, find_format
from tests.support.code import nodes

PACKAGE = Path(__file__).parents[2] / "idefics_cli"
# Rooms whose own files have the extension of a format: lists of pictures, the sidecars that a
# prompt quotes, metadata of pictures, requests and their answers, the journals of chats, the files
# of checkpoints.
OTHER_FILES = (
    *(
        "caption/sinks/",
        "caption/inputs/",
        "caption/requests/",
        "chat/",
        "completion/",
        "demo/",
        "bench/",
        # A benchmark measures one format.
        "cli/commands/bench/",
    ),
    *("images/failures.py", "images/metadata.py", "models/", "training/"),
)


def named_formats(source: str) -> Iterator[str]:
    """Yield each text in *source* that is the name or the extension of a format."""
    name = re.compile(rf"\.?({'|'.join(SINKS)})")
    for node in nodes(source):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from [node.value] if name.fullmatch(node.value) else []


def test_no_format_is_named_outside_its_module_and_the_table() -> None:
    found = {
        path.relative_to(PACKAGE).as_posix(): texts
        for path in PACKAGE.rglob("*.py")
        if not path.relative_to(PACKAGE).as_posix().startswith(OTHER_FILES)
        and (texts := list(named_formats(path.read_text(encoding="utf-8"))))
    }
    assert found == {}


def test_a_format_that_is_named_is_found() -> None:
    found = named_formats('''"""txt files"""\nif output == "txt":\n    path = f"{x}.parquet"\n''')
    assert list(found) == ["txt", ".parquet"]
    assert list(named_formats('help = "a.txt is a file", "context"')) == []


def test_each_extension_means_one_format() -> None:
    extensions = [extension for row in SINKS.values() for extension in row.extensions]
    assert len(extensions) == len(set(extensions))
    for name, row in SINKS.items():
        assert all(find_format(Path(f"a{extension}")) == name for extension in row.extensions)
        assert all(find_format(Path(f"a{e.upper()}")) == name for e in row.extensions)
