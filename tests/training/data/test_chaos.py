"""Whatever a file holds: it gives rows, or an error that names it; nothing else."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path

import pytest

from idefics_cli.core.errors import InputError, UsageError
from idefics_cli.training.data.options import ReadOptions
from idefics_cli.training.data.read import read_rows
from tests.support.training_data import PROMPT, SHAPES

_ODD: tuple[object, ...] = (
    *(None, True, 0, 2.5, "", "x", "<image>", "\ud800", "\0", [], {}, [None], [[]]),
    *({"url": None}, {"bytes": None, "path": None}, "-", "clipboard:", "data:", "http://[::1"),
    *("~", "//", "/dev/zero", {"role": "user", "content": "x"}, {"type": "image"}, 10**400),
)
_NAMES = ("images", "image", "system", "tools", "weight", "messages", "conversations", "caption")
_BYTES = (b'"', b"\0", b"\xff", b"{", b"[", b"]", b"\n", b",", b"\xef\xbb\xbf", b"\r", b"\\u0000")
_ROUNDS = 40


def odd_value(value: object, rng: random.Random) -> object:
    """Return *value* with other values in some places."""
    if rng.random() < 0.08:
        return rng.choice(_ODD)
    if isinstance(value, list):
        return [odd_value(each, rng) for each in value]
    if not isinstance(value, dict):
        return value
    changed = {name: odd_value(each, rng) for name, each in value.items() if rng.random() > 0.03}
    if rng.random() < 0.1:
        changed[rng.choice(_NAMES)] = rng.choice(_ODD)
    return changed


def odd_bytes(content: bytes, rng: random.Random) -> bytes:
    """Return *content* with some bytes changed, removed or added."""
    found = bytearray(content)
    for _ in range(rng.choice((1, 1, 3, 20))):
        at = rng.randrange(len(found) + 1)
        end = at + rng.choice((0, 1, 1, 20, len(found)))
        found[at:end] = rng.choice(_BYTES)
    return bytes(found)


def changed(content: bytes, extension: str, rng: random.Random) -> bytes:
    if extension not in (".json", ".jsonl") or rng.random() < 0.3:
        return odd_bytes(content, rng)
    lines = [content] if extension == ".json" else content.splitlines()
    return b"\n".join(json.dumps(odd_value(json.loads(line), rng)).encode() for line in lines)


@pytest.mark.parametrize("shape", SHAPES)
def test_odd_data_gives_rows_or_an_error_that_names_it(shape: str, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    rng = random.Random(shape)
    data = SHAPES[shape](tmp_path / "data")
    folder = data if data.is_dir() else data.parent
    files = sorted(f for f in folder.iterdir() if f.is_file() and f.suffix != ".png")
    for _ in range(_ROUNDS):
        file = rng.choice(files)
        before = file.read_bytes()
        file.write_bytes(changed(before, file.suffix, rng))
        options = ReadOptions(
            rng.choice((PROMPT, "", "In <image>:", "[1] and [2]")),
            mode=rng.choice(("chat", "chat", "complete")),
            lines=rng.choice(("first", "all", "random")),
            learn=rng.choice(("all", "last")),
        )
        try:
            names = [result.key for result in read_rows(data, options)]
        except (InputError, UsageError) as error:
            names = [str(error)]
        assert all(str(tmp_path) in name for name in names)
        file.write_bytes(before)
    shutil.rmtree(folder)
