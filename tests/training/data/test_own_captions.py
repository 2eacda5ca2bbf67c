"""What `idefics caption` writes is training data, without any editing."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

import pytest

from idefics_cli.core.errors import ImageError
from idefics_cli.core.types import GenerationRequest
from tests.support.commands import Ran, World, run
from tests.support.fakes import FakeEngine
from tests.support.training_data import read, read_all

HAS_PYARROW = importlib.util.find_spec("pyarrow") is not None
PARQUET = pytest.param(
    "parquet", marks=pytest.mark.skipif(not HAS_PYARROW, reason="pyarrow is not installed")
)
BAD = ImageError("cannot read it: it is cut off", kind="truncated")
# A data set of Hugging Face takes the first four, so `metadata.jsonl` has rows about these only.
PLAIN = ("a.jpg", "sub/b, c.png", 'd "e";.png', "~f.jpg")
NAMES = (*PLAIN, "sub/new\nline\\.png", "\u202eevil.jpg", os.fsdecode(b"caf\xe9.jpg"))

pytestmark = pytest.mark.skipif(os.name == "nt", reason="such names are not allowed here")


@pytest.fixture(autouse=True)
def photos(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with files that the fake model takes for pictures."""
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        Path("photos", name).parent.mkdir(parents=True, exist_ok=True)
        Path("photos", name).write_bytes(os.fsencode(name))
    return tmp_path / "photos"


def describe(request: GenerationRequest) -> str:
    name = request.attachments[0].source.encode("ascii", "backslashreplace").decode()
    return f'{len(name)} "characters", in\t{name}'.replace("\n", " ")


def caption(*arguments: str, bad: str | None = None) -> Ran:
    world = World(FakeEngine(describe, image_errors={bad: BAD} if bad else {}))
    return run("caption", "photos", "-r", "--batch-size", "1", *arguments, services=world.services)


def answers(data: str) -> dict[str, str]:
    """Return the answer about each picture, by the path that the fake model saw."""
    found = {}
    for row in read(Path(data)):
        (picture,) = row.messages[0].attachments
        assert os.path.isfile(picture.source)
        found[os.path.normpath(picture.source)] = row.messages[-1].text
    return found


def wanted(names: tuple[str, ...] = NAMES) -> dict[str, str]:
    return {
        path: f'{len(name)} "characters", in\t{name}'.replace("\n", " ")
        for path in (os.path.join("photos", *name.split("/")) for name in names)
        for name in [path.encode("ascii", "backslashreplace").decode()]
    }


@pytest.mark.parametrize("kind", ["jsonl", "csv", PARQUET])
@pytest.mark.parametrize("output", ["captions", "out/captions"])
def test_rows_read_back(kind: str, output: str) -> None:
    Path("out").mkdir()
    assert caption("-o", f"{output}.{kind}").code == 0

    assert answers(f"{output}.{kind}") == wanted()


@pytest.mark.parametrize("kind", ["jsonl", "csv", PARQUET])
def test_metadata_read_back_by_the_folder(kind: str, photos: Path) -> None:
    for name in set(NAMES) - set(PLAIN):
        (photos / name).unlink()
    assert caption("-o", f"photos/metadata.{kind}").code == 0

    assert answers("photos") == answers(f"photos/metadata.{kind}") == wanted(PLAIN)


@pytest.mark.parametrize("arguments", [(), ("--full-names",)])
def test_text_files_read_back(arguments: tuple[str, ...]) -> None:
    assert caption("-f", "txt", *arguments).code == 0

    assert answers("photos") == wanted()


@pytest.mark.parametrize("kind", ["jsonl", "csv", PARQUET])
def test_pictures_that_failed_are_left_out_and_counted(kind: str) -> None:
    assert caption("-o", f"captions.{kind}", bad="photos/a.jpg").code == 3

    rows, left_out = read_all(Path(f"captions.{kind}"))
    assert [each.reason for each in left_out] == ["failed caption"]
    assert len(rows) == len(NAMES) - 1


@pytest.mark.parametrize("kind", ["jsonl", PARQUET])
def test_of_several_samples_one_or_all_are_learned(kind: str) -> None:
    data = f"captions.{kind}"
    code = caption("-o", data, "--samples", "2", "--temperature", "0.5").code
    assert code == 0

    rows, left_out = read_all(Path(data))
    assert len(rows) == len(NAMES)
    assert [each.reason for each in left_out] == ["further line"] * len(NAMES)
