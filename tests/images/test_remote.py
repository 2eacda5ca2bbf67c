"""Pictures in object stores: bounded reads, errors that pass, and credentials that stay secret."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest

from idefics_cli.core.errors import ImageError
from idefics_cli.core.types import Attachment, ImageLimits
from idefics_cli.images.loader import ImageLoader
from idefics_cli.images.remote import list_remote, read_remote
from tests.support.sources import PICTURE, is_the_picture, load, load_error
from tests.support.stores import SlowDownError, Store


@pytest.fixture(autouse=True)
def pictures(store: type[Store]) -> None:
    for name in ("b/p/a.png", "b/p/sub/c.png", "b/p/notes.txt", "b/z.png"):
        store().pipe_file(f"/{name}", PICTURE)


class Raising:
    """A function that raises an error."""

    def __init__(self, error: Exception) -> None:
        self._error = error

    def __call__(self, *arguments: object, **options: object) -> None:
        raise self._error


def urls(url: str, *, recursive: bool = False) -> list[str]:
    return sorted(f.url for f in list_remote(url, ImageLimits(), recursive=recursive))


def error_of(url: str, **limits: Any) -> ImageError:
    error = load_error(url, **limits)
    for text in (str(error), str(error.hint)):
        assert "hunter2" not in text
    return error


def test_a_picture_of_a_store_is_opened_like_any_other(store: type[Store]) -> None:
    assert is_the_picture(load("s3://b/p/a.png"))
    assert is_the_picture(load("SFTP://me:hunter2@b/p/a.png"))
    assert store.reads == [(0, 100_000_001)] * 2


def test_listings_give_addresses_that_can_be_read() -> None:
    assert urls("s3://b/p") == urls("s3://b/p/") == ["s3://b/p/a.png", "s3://b/p/notes.txt"]
    assert urls("s3://b", recursive=True) == [
        *("s3://b/p/a.png", "s3://b/p/notes.txt", "s3://b/p/sub/c.png", "s3://b/z.png"),
    ]
    assert urls("s3://b/*.png") == ["s3://b/z.png"]
    assert urls("s3://b/p/**/*.png") == ["s3://b/p/a.png", "s3://b/p/sub/c.png"]
    assert urls("s3://b/z.png") == ["s3://b/z.png"]
    with pytest.raises(ImageError, match="no such file: `s3://b/missing`"):
        urls("s3://b/missing")
    (found,) = list_remote("s3://b/p/a.png", ImageLimits(), recursive=False)
    assert (found.relative, str(found.stamp).partition("-")[0]) == ("a.png", str(len(PICTURE)))


def test_errors_that_may_pass_are_tried_again_and_others_are_not(store: type[Store]) -> None:
    waits: list[float] = []
    for error in (SlowDownError(503), OSError("reset"), TimeoutError(), ConnectionError()):
        store.errors += [error] * 4
        assert read_remote("s3://b/z.png", ImageLimits(), wait=waits.append) == PICTURE
    assert len(waits) == 16
    assert all(waits[first + 3] > waits[first] * 2 for first in range(0, 16, 4))

    store.errors += [SlowDownError(503)] * 5
    assert str(error_of("s3://b/z.png")) == "cannot fetch `s3://b/z.png`: status 503, 5 times"
    store.errors[:] = [SlowDownError(403)] * 2
    assert str(error_of("s3://b/z.png")) == "cannot fetch `s3://b/z.png`: access is denied"
    assert len(store.errors) == 1
    store.errors[:] = [PermissionError("hunter2")]
    assert error_of("s3://b/z.png").hint == "check the credentials of this store"
    store.errors.clear()
    missing = error_of("sftp://me:hunter2@b/missing.png")
    assert (str(missing), missing.kind) == ("no such file: `sftp://…@b/missing.png`", "missing")


def test_limits_hold_and_no_store_is_asked_unless_it_may_be(store: type[Store]) -> None:
    assert error_of("s3://b/z.png", max_bytes=100).kind == "too_large"
    assert store.reads == [(0, 101)]
    error = error_of("s3://b/z.png", sources=frozenset({"data", "web"}))
    assert str(error) == "pictures from this kind of source are not accepted"
    with pytest.raises(ImageError, match="--offline is set"):
        ImageLoader(ImageLimits(), offline=True).open(Attachment("s3://b/z.png"))
    assert len(store.reads) == 1


def test_a_missing_package_names_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("fsspec.core.url_to_fs", Raising(ImportError("Install s3fs to access S3")))
    error = error_of("s3://b/z.png")

    assert str(error) == "cannot read `s3://b/z.png`: s3fs is not installed"
    assert error.hint == "pip install 'idefics-cli[s3]'"


def test_a_store_that_hangs_is_given_up(
    store: type[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    from threading import Event

    release = Event()
    monkeypatch.setattr(store, "cat_file", lambda self, path, **more: release.wait(10))
    error = error_of("s3://b/z.png", download_seconds=0.05)
    release.set()

    assert str(error) == "cannot fetch `s3://b/z.png`: took longer than 0.05 seconds"


def test_reads_at_the_same_time_have_connections_of_their_own(
    store: type[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "sftp://me@b/p/a.png"
    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(store, "meeting", Barrier(2))
        assert all(is_the_picture(each) for each in pool.map(load, [url, url]))
    load(url)
    first, second, third = map(id, store.readers)
    assert first != second
    assert third in (first, second)


def test_after_a_lost_connection_all_are_new(
    store: type[Store], monkeypatch: pytest.MonkeyPatch
) -> None:
    url = "sftp://me@b/p/a.png"
    with monkeypatch.context() as patch, ThreadPoolExecutor(2) as pool:
        patch.setattr(store, "meeting", Barrier(2))
        assert all(is_the_picture(each) for each in pool.map(load, [url, url]))
    store.errors.append(OSError("Socket is closed"))
    assert read_remote(url, ImageLimits(), wait=lambda seconds: None) == PICTURE
    first, second, third = map(id, store.readers)
    assert third not in (first, second)


def test_a_password_that_is_wrong_is_not_tried_again(store: type[Store]) -> None:
    class AuthenticationException(Exception):
        pass

    store.errors.append(AuthenticationException())
    error = error_of("sftp://me:hunter2@b/p/a.png")
    assert str(error).endswith("access is denied")
    assert not store.errors
