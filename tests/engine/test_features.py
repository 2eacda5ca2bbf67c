"""Kept image features: evicted by bytes, found by content or by file, and without pixels."""

from __future__ import annotations

import gc

import torch

from idefics_cli.engine.local.vision.features import FeatureCache
from idefics_cli.engine.local.vision.known_pictures import KnownPictures
from idefics_cli.models.families.picture import PreparedPicture


def prepared(digest: bytes) -> PreparedPicture:
    return PreparedPicture(digest, (1, 1), ((1, 1),), tiles=(torch.zeros(3, 1, 1),))


def kept(cache: FeatureCache) -> str:
    """Return the digests, each a letter, of the pictures whose features *cache* holds."""
    return "".join(name for name in "abcde" if name.encode() in cache)


def test_the_least_recently_used_features_go_when_there_are_too_many_bytes() -> None:
    cache = FeatureCache(max_bytes=100)
    for name in (b"a", b"b"):
        cache.keep_features(prepared(name), torch.zeros(10))
    assert cache.find_features(b"a") is not None
    cache.keep_features(prepared(b"c"), torch.zeros(10))
    assert kept(cache) == "ac"
    # Features of the same picture replace the old ones: 60 bytes are held, and 40 more fit.
    cache.keep_features(prepared(b"a"), torch.zeros(5))
    cache.keep_features(prepared(b"d"), torch.zeros(10))
    assert kept(cache) == "acd"
    cache.keep_features(prepared(b"e"), torch.zeros(1))
    assert kept(cache) == "ade"
    cache.keep_features(prepared(b"b"), torch.zeros(1000))
    assert kept(cache) == "ade"
    cache.clear()
    assert (kept(cache), len(cache)) == ("", 0)


def test_a_kept_picture_does_not_keep_its_pixels() -> None:
    cache = FeatureCache()
    cache.keep_features(prepared(b"a"), torch.ones(2, 3))
    known = cache.find_picture(b"a")
    assert known is not None
    assert known.tiles == ()
    assert known.features is not None
    assert known.features.tolist() == [[1, 1, 1], [1, 1, 1]]
    assert cache.find_picture(b"b") is None


def test_a_picture_is_known_while_a_request_holds_it_and_then_by_its_features() -> None:
    cache = FeatureCache()
    pictures = KnownPictures(cache)
    waiting = prepared(b"a")
    pictures.add(waiting)
    assert pictures.find(b"a") is waiting
    cache.keep_features(waiting, torch.ones(2, 3))
    del waiting
    gc.collect()
    known = pictures.find(b"a")
    assert known is not None
    assert known.features is not None
    cache.clear()
    assert pictures.find(b"a") is None


def test_a_picture_is_found_by_its_file_with_the_size_of_that_file() -> None:
    pictures = KnownPictures(FeatureCache())
    # The pictures of two files differ in size only, and are scaled to the same pixels.
    small = prepared(b"a")
    large = PreparedPicture(b"a", (2, 2), small.tile_sizes, tiles=small.tiles)
    pictures.add(small)
    pictures.add_file("small", small)
    pictures.add_file("large", large)
    assert pictures.find_file("small") is small
    found = pictures.find_file("large")
    assert found is not None
    assert (found.size, found.tiles) == ((2, 2), small.tiles)
    assert pictures.find_file("other") is None


def test_the_oldest_files_are_forgotten() -> None:
    pictures = KnownPictures(FeatureCache(), max_files=2)
    waiting = prepared(b"a")
    pictures.add(waiting)
    for name in ("one", "two", "one", "three"):
        pictures.add_file(name, waiting)
    assert [pictures.find_file(name) is waiting for name in ("one", "two", "three")] == [
        True,
        False,
        True,
    ]
