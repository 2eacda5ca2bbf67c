"""Tests for memory in huge pages."""

from __future__ import annotations

import mmap
import re
from pathlib import Path

import pytest

from idefics_cli.models.kernels.huge_pages import LEAST_BYTES, empty_bytes

SETTING = Path("/sys/kernel/mm/transparent_hugepage/enabled")
needs_huge_pages = pytest.mark.skipif(
    not SETTING.exists() or "[never]" in SETTING.read_text(), reason="the system has no huge pages"
)


def flags_at(address: int) -> list[str]:
    """Return the flags of the mapping of this process that holds *address*."""
    flags: list[str] = []
    holds = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        if found := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line):
            holds = int(found[1], 16) <= address < int(found[2], 16)
        elif holds and line.startswith("VmFlags:"):
            flags = line.split()[1:]
    return flags


@needs_huge_pages
def test_large_weights_ask_for_huge_pages_and_small_ones_do_not() -> None:
    large = empty_bytes(2, LEAST_BYTES // 2)
    assert large.shape == (2, LEAST_BYTES // 2)
    assert "hg" in flags_at(large.data_ptr() + LEAST_BYTES // 2)
    # Pages that processes share get no huge pages.
    assert "sh" not in flags_at(large.data_ptr())
    assert "hg" not in flags_at(empty_bytes(LEAST_BYTES - 1).data_ptr())


def test_the_memory_lives_as_long_as_a_view_of_it() -> None:
    view = empty_bytes(LEAST_BYTES).fill_(7)[-5:]
    assert view.tolist() == [7] * 5


def test_without_huge_pages_the_memory_is_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(mmap, "MADV_HUGEPAGE", raising=False)
    assert empty_bytes(LEAST_BYTES, 1).fill_(3)[-1].item() == 3


def test_a_refusal_of_the_system_gives_plain_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **named: object) -> None:
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(mmap, "mmap", refuse)
    assert empty_bytes(1, LEAST_BYTES).fill_(4)[0, -1].item() == 4
