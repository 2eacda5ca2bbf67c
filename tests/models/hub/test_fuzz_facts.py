"""Changed files of a model folder: every one gives facts and a plan, or an error of ours."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import pytest

from idefics_cli.core.errors import IdeficsError
from idefics_cli.models.hub.facts import find_facts
from idefics_cli.models.planning.plan import PlanChoices, make_plan
from tests.support import checkpoints, machines
from tests.support.json_values import places, replaced

Json = dict[str, object] | list[object] | str | int | float | bool | None
Step = str | int

_VALUES: tuple[Json, ...] = (
    None, True, False, 0, -1, 1, 1.5, 2**31, 10**30, 10**400, -(10**30), "", "x", [], {}, ["x"],
    [1], [[]], {"a": 1}, float("nan"), float("inf"), "\ud800", "\0", "x" * 5000,
)  # fmt: skip
_DEEP = 100_000
_NOT_JSON = (
    b"", b"\xff\xfe", b"\xef\xbb\xbf{}", b"[" * _DEEP, b'{"a":' * _DEEP, b"{" * 10, b"1" * 5000,
    b"-" * 10, b"{} {}", b'{"a": 1' + b"0" * 5000 + b"}", b"version https://git-lfs.github.com/",
)  # fmt: skip
_FILES = ("config.json", "preprocessor_config.json", "processor_config.json",
          "tokenizer_config.json", "generation_config.json")  # fmt: skip
# A sample, because all pairs of places and values take half a minute.
_CASES = 700


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files of a model, each of which a test may change and must restore."""
    content = checkpoints.files()
    for name in _FILES:
        content.setdefault(name, b'{"image_seq_len": 4, "image_processor": {"size": {}}}')
    return checkpoints.write(tmp_path_factory.mktemp("model"), content)


def ends_well(folder: Path, what: object) -> None:
    """Fail unless *folder* gives a plan or an error of ours; *what* is for the report."""
    try:
        make_plan(find_facts(str(folder), offline=True), PlanChoices(), machines.cpu(24))
    except IdeficsError:
        return
    except Exception as error:
        pytest.fail(f"{what!r:.200}: {error!r:.200}")


def changed_values() -> list[tuple[str, tuple[Step, ...], Json]]:
    content = checkpoints.files()
    cases = [
        (name, path, value)
        for name in _FILES
        for path in places(json.loads(content.get(name, b"{}")))
        for value in _VALUES
    ]
    return random.Random(13).sample(cases, min(_CASES, len(cases)))


def test_a_changed_value_is_planned_or_refused(folder: Path) -> None:
    for name, path, value in changed_values():
        before = (folder / name).read_bytes()
        content = replaced(json.loads(checkpoints.files().get(name, b"{}")), path, value)
        (folder / name).write_text(json.dumps(content))
        ends_well(folder, (name, path, value))
        (folder / name).write_bytes(before)


@pytest.mark.parametrize("name", [*_FILES, "model.safetensors.index.json", "chat_template.json"])
def test_a_file_that_is_not_json_is_refused(folder: Path, name: str) -> None:
    before = (folder / name).read_bytes() if (folder / name).exists() else None
    for content in _NOT_JSON:
        (folder / name).write_bytes(content)
        ends_well(folder, (name, content[:20]))
    if before is None:
        (folder / name).unlink()
    else:
        (folder / name).write_bytes(before)


_PARTS: tuple[Json, ...] = (
    {}, [], {"a": 5}, {"a": None}, {"a": ["x"]}, {"a": 5, "b": "x"}, {"a": "."}, {"a": ".."},
    {"a": ""}, {"a": "../../../../etc/passwd"}, {"a": "/dev/zero"}, {"a": "\0"}, {"a": "x" * 5000},
    {"a": "\ud800"}, {"a": "config.json"}, {"a": "sub/model.safetensors"},
)  # fmt: skip


@pytest.mark.parametrize("parts", _PARTS, ids=lambda parts: repr(parts)[:30])
def test_an_index_of_any_form_is_read_or_refused(folder: Path, parts: Json) -> None:
    index = folder / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": parts}))
    ends_well(folder, parts)
    index.unlink()


def _entry(**changes: object) -> dict[str, object]:
    return {"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4], **changes}}


_SHAPES: tuple[object, ...] = (None, ["x"], [2**62] * 9, [-1], [1.5], [[1]], [True], {})
_ENDS: tuple[object, ...] = (
    None, ["x", "y"], [0], [0, None], [0, 10**30], [0, [1]], [0, -4], [4, 0], [0, 4.5]
)  # fmt: skip
_HEADERS: tuple[object, ...] = (
    {}, [], {"a": {}}, {"a": None}, {"a": [1]}, {"__metadata__": 5},
    {"__metadata__": {"format": {}}},
    *(_entry(shape=shape) for shape in _SHAPES),
    *(_entry(data_offsets=ends) for ends in _ENDS),
    _entry(dtype=None), b"[" * _DEEP, b'{"a":' * _DEEP, b"1" * 5000, b"\xff\xff",
)  # fmt: skip


def test_a_header_of_any_form_is_read_or_refused(folder: Path) -> None:
    path = folder / "model.safetensors"
    before = path.read_bytes()
    for header in _HEADERS:
        content = header if isinstance(header, bytes) else json.dumps(header).encode()
        path.write_bytes(struct.pack("<Q", len(content)) + content + bytes(64))
        ends_well(folder, header)
    for start in (b"", bytes(7), struct.pack("<Q", 2**63), struct.pack("<Q", 99_999_999) + b"{}"):
        path.write_bytes(start)
        ends_well(folder, start)
    path.write_bytes(before)


def test_flipped_bits_are_read_or_refused(folder: Path) -> None:
    chance = random.Random(13)
    for name in ("config.json", "model.safetensors", "tokenizer_config.json"):
        before = (folder / name).read_bytes()
        for _ in range(100):
            data = bytearray(before)
            for _ in range(chance.randint(1, 4)):
                data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
            (folder / name).write_bytes(data)
            ends_well(folder, (name, bytes(data)[:50]))
        (folder / name).write_bytes(before)
