"""The entries of a journal are kept in few bytes, and come back as they were."""

from __future__ import annotations

import pytest

from idefics_cli.caption.resume.entry import EntryTable, JournalEntry

DIGEST = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    "entry",
    [
        JournalEntry(0, False, DIGEST, "46829-1795964844148512909"),
        JournalEntry(2**62, True, None, None, 2**61),
        JournalEntry(1, False, "", ""),
        JournalEntry(1, True, DIGEST.upper(), "1-2#0123"),
        JournalEntry(1, False, "no digest", "\ud800 \0"),
        JournalEntry(1, False, DIGEST + " ", None),
        JournalEntry(1, False, "abc", "ü"),
    ],
)
def test_an_entry_comes_back_as_it_was(entry: JournalEntry) -> None:
    table = EntryTable()
    table["a.jpg"] = JournalEntry(5, False, None, None)
    table["a.jpg"] = entry
    assert table["a.jpg"] == entry
    assert dict(table) == {"a.jpg": entry}


def test_a_table_is_a_mapping_in_the_order_of_the_first_lines() -> None:
    table, entry = EntryTable(), JournalEntry(5, False, DIGEST, "1-2")
    assert not table
    for key in ("b", "a", "b"):
        table[key] = entry
    assert list(table) == ["b", "a"]
    assert table.keys() - {"b"} == {"a"}
    assert table.get("c") is None
    del table["b"]
    assert (len(table), "b" in table, "a" in table) == (1, False, True)
