"""Kept image features: evicted by bytes, found by content or by file, and without pixels."""

from __future__ import annotations

import gc

import torch

from idefics_cli.engine.local.vision.features import FeatureCache
from idefics_cli.engine.local.vision.picture_store import PictureStore
from idefics_cli.models.families.picture import PictureTensors, PreparedPicture

# Three numbers of 32 bits.
PIXEL_BYTES = 12


def prepared(digest: bytes) -> PreparedPicture:
    return PreparedPicture(digest, (1, 1), ((1, 1),))


def with_pixels(digest: bytes) -> PictureTensors:
    return PictureTensors(prepared(digest), (torch.zeros(3, 1, 1),))


def found(store: PictureStore) -> str:
    """Return the digests, each a letter, of the pictures that *store* finds."""
    return "".join(name for name in "abcde" if store.find(name.encode()))


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


def test_pixels_stay_until_newer_ones_need_the_memory_and_then_the_oldest_go() -> None:
    store = PictureStore(FeatureCache(), max_bytes=2 * PIXEL_BYTES)
    for name in (b"a", b"b", b"c"):
        store.add(with_pixels(name))
    assert store.held_bytes == 3 * PIXEL_BYTES, "nothing goes while a request is prepared"
    store.shrink()
    assert store.held_bytes == 2 * PIXEL_BYTES
    assert found(store) == "bc"
    # What was just used stays.
    store.find(b"b")
    store.add(with_pixels(b"d"))
    store.shrink()
    assert found(store) == "bd"


def test_pixels_that_a_request_holds_are_found_and_do_not_count() -> None:
    store = PictureStore(FeatureCache(), max_bytes=0)
    waiting = with_pixels(b"a")
    store.add(waiting)
    store.shrink()
    assert (store.held_bytes, store.find(b"a")) == (0, waiting)
    del waiting
    gc.collect()
    assert store.find(b"a") is None


def test_pixels_go_when_the_features_are_kept() -> None:
    cache = FeatureCache(max_bytes=100)
    store = PictureStore(cache, max_bytes=1000)
    for name in (b"a", b"b"):
        store.add(with_pixels(name))
    cache.keep_features(prepared(b"a"), torch.ones(2, 3))
    # These are too large for the cache.
    cache.keep_features(prepared(b"b"), torch.ones(2, 300))
    store.drop_encoded([prepared(b"a"), prepared(b"b")])
    assert store.held_bytes == PIXEL_BYTES
    known = store.find(b"a")
    assert known is not None
    assert known.features is not None
    cache.clear()
    assert found(store) == "b"


def test_a_picture_without_its_tiles_is_found_by_the_split_picture() -> None:
    cache = FeatureCache()
    store = PictureStore(cache, max_bytes=1000)
    tiles = tuple(torch.full((3, 1, 1), float(number)) for number in range(3))
    split = PreparedPicture(b"a", (9, 9), ((1, 1),) * 3, (1, 2))
    whole = split.without_tiles()
    assert store.find_tensors(whole) is None
    store.add(PictureTensors(split, tiles))
    tensors = store.find_tensors(whole)
    assert tensors is not None
    assert (tensors.picture, tensors.tiles) == (whole, tiles[-1:])
    cache.keep_features(split, torch.arange(6.0).view(6, 1))
    tensors = store.find_tensors(whole)
    assert tensors is not None
    assert tensors.features is not None
    assert tensors.features.tolist() == [[4], [5]]


def test_a_picture_is_found_by_its_file_with_the_size_of_that_file() -> None:
    store = PictureStore(FeatureCache(), max_bytes=1000)
    # The pictures of two files differ in size only, and are scaled to the same pixels.
    small = prepared(b"a")
    large = PreparedPicture(b"a", (2, 2), small.tile_sizes)
    store.add(with_pixels(b"a"))
    store.add_file("small", small)
    store.add_file("large", large)
    assert store.find_file("small") == small
    assert store.find_file("large") == large
    assert store.find_file("other") is None


def test_the_oldest_files_are_forgotten() -> None:
    store = PictureStore(FeatureCache(), max_bytes=1000, max_files=2)
    store.add(with_pixels(b"a"))
    for name in ("one", "two", "one", "three"):
        store.add_file(name, prepared(b"a"))
    assert [store.find_file(name) == prepared(b"a") for name in ("one", "two", "three")] == [
        True,
        False,
        True,
    ]
