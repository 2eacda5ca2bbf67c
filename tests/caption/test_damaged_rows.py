"""Outputs that something damaged, which a run reads before it continues them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.commands import Ran, World, run
from tests.support.fakes import FakeEngine

DAMAGES = [b"\0", b"[" * 100_000, b"{}", b"5", b'{"file_name": 5, "tokens": "x"}', b"\xff\t\xff"]


@pytest.fixture(autouse=True)
def photos(here: Path) -> None:
    Path("photos").mkdir()
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        Path("photos", name).write_text(name)


def caption(output: str, *arguments: str) -> Ran:
    world = World(FakeEngine(lambda request: "a cat"))
    return run("caption", "photos", "-o", output, *arguments, services=world.services)


@pytest.mark.parametrize("name", ["o.jsonl", "o.csv", "o.tsv"])
@pytest.mark.parametrize("damage", [*DAMAGES, b""])
def test_an_output_that_cannot_be_read_is_an_error_and_stays(name: str, damage: bytes) -> None:
    Path(name).write_bytes(damage + b"\n")
    if not damage:
        os.truncate(name, 400 * 10**9)
    before = (os.path.getsize(name), os.stat(name).st_mtime_ns)
    ran = caption(name, "--existing", "skip")
    assert (ran.code, ran.err.splitlines()[0].startswith("error: cannot continue")) in (
        (2, True), (0, False),
    )  # fmt: skip
    if ran.code:
        assert (os.path.getsize(name), os.stat(name).st_mtime_ns) == before


@pytest.mark.parametrize("damage", [damage for damage in DAMAGES if len(damage) < 100])
def test_damaged_rows_of_a_parquet_file_come_back_from_the_journal(damage: bytes) -> None:
    pyarrow = pytest.importorskip("pyarrow.parquet")
    assert caption("o.parquet").code == 0
    whole = pyarrow.read_table("o.parquet")
    # As if the run had been killed before it made the Parquet file.
    journal = Path("o.parquet.journal")
    lines = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(b"".join(line for line in lines if b'"closed"' not in line))
    Path("o.parquet").unlink()
    assert caption("o.parquet").code == 0
    assert pyarrow.read_table("o.parquet").drop_columns("seconds") == whole.drop_columns("seconds")

    journal.write_bytes(b"".join(line for line in lines if b'"closed"' not in line))
    rows = Path("o.parquet.rows.jsonl")
    # The journal is longer than the rows.
    rows.write_bytes((damage + b"\n").ljust(journal.stat().st_size, b" "))
    Path("o.parquet").unlink()
    ran = caption("o.parquet")
    assert ran.code == 1
    assert "hint: remove `o.parquet.rows.jsonl`; the same command makes it again" in ran.err
    rows.unlink()
    assert caption("o.parquet").code == 0
    assert len(pyarrow.read_table("o.parquet")) == 3
