"""A line of the work list: what it costs, and its path in an output that keeps the tree."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest

from idefics_cli.caption.item import CaptionItem
from idefics_cli.core.types import Attachment


@pytest.mark.parametrize(
    ("key", "relative"),
    [
        ("photos/sub/a.jpg", "sub/a.jpg"),
        ("a.jpg", "a.jpg"),
        ("./data:a.jpg", "data:a.jpg"),
        ("photos/../a.jpg", "a/b.jpg"),
        ("https://example.com/a.jpg", ""),
    ],
)
def test_the_path_below_the_folder_is_given_back_also_from_a_copy(key: str, relative: str) -> None:
    item = CaptionItem(key, Attachment(key), relative, order=3)
    assert item.relative == relative
    assert replace(item, order=4).relative == relative
    copy = pickle.loads(pickle.dumps(item))
    assert (copy, copy.relative, copy.order) == (item, relative, 3)


def test_a_path_that_ends_the_name_takes_no_memory_of_its_own() -> None:
    item = CaptionItem("photos/sub/a.jpg", Attachment("a"), "sub/a.jpg")
    assert item.tail == len("sub/a.jpg")
