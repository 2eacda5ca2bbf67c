"""The picture store: the tensors of prepared pictures by digest, within a limit of memory."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import replace
from threading import Lock
from typing import TypeAlias
from weakref import WeakValueDictionary

from idefics_cli.core.types import PictureDetail
from idefics_cli.engine.local.vision.features import FeatureCache
from idefics_cli.hardware.system import read_memory
from idefics_cli.models.families.picture import PictureTensors, PreparedPicture

# Maximum number of file entries: at 300 bytes each they take 3 MB. Without a limit, a captioning
# run of millions of files would fill the memory.
_MAX_FILES = 10_000
_FileKey: TypeAlias = tuple[str, PictureDetail | None]
# By default, pixels take at most 2 GiB, and at most an eighth of the free RAM. A split picture of
# Idefics2 has 58 MB, and a captioning run opens up to 1.3 GB ahead.
_MOST_BYTES, _FREE_SHARE = 2 * 2**30, 8


class PictureStore:
    """Holds the tensors of prepared pictures, so that callers hold none. Safe in any thread.

    A picture has its pixels here until its features exist, or until newer pictures need the memory.
    A request that was submitted holds the tensors of its pictures itself, and the store finds them
    there too.

    Args:
        features: Holds the features of encoded pictures.
        max_bytes: Maximum number of bytes of pixels after `shrink`; None chooses by the free RAM.
        max_files: Maximum number of files that are remembered.
    """

    def __init__(
        self, features: FeatureCache, *, max_bytes: int | None = None, max_files: int = _MAX_FILES
    ) -> None:
        self._features = features
        free = read_memory()[1]
        self._max_bytes = min(_MOST_BYTES, free // _FREE_SHARE) if max_bytes is None else max_bytes
        # The least recently used picture comes first.
        self._held: OrderedDict[bytes, PictureTensors] = OrderedDict()
        self._held_bytes = 0
        # All tensors with pixels that anybody holds. The store finds a picture here that it has
        # dropped itself but that a request still holds.
        self._living: WeakValueDictionary[bytes, PictureTensors] = WeakValueDictionary()
        self._files: OrderedDict[_FileKey, tuple[bytes, tuple[int, int]]] = OrderedDict()
        self._max_files = max_files
        self._lock = Lock()

    @property
    def held_bytes(self) -> int:
        """Number of bytes of all pixels."""
        with self._lock:
            return self._held_bytes

    def add(self, tensors: PictureTensors) -> None:
        """Hold the pixels of *tensors*, if it has any."""
        if not tensors.tiles:
            return
        digest = tensors.picture.digest
        with self._lock:
            self._drop(digest)
            held = self._held[digest] = self._living.setdefault(digest, tensors)
            self._held_bytes += held.nbytes

    def shrink(self) -> None:
        """Drop the least recently used pixels until the rest is within the limit.

        `add` drops nothing, so that the pictures of one request do not push each other out before
        the request starts.
        """
        with self._lock:
            while self._held_bytes > self._max_bytes:
                self._drop(next(iter(self._held)))

    def drop_encoded(self, pictures: Iterable[PreparedPicture]) -> None:
        """Drop the pixels of those *pictures* whose features are kept."""
        for picture in pictures:
            if picture.digest in self._features:
                with self._lock:
                    self._drop(picture.digest)

    def add_file(
        self, file_digest: str, picture: PreparedPicture, detail: PictureDetail | None = None
    ) -> None:
        """Let `find_file` find *picture* by the SHA-256 of its file, and by its detail."""
        key = file_digest, detail
        with self._lock:
            self._files[key] = picture.digest, picture.size
            self._files.move_to_end(key)
            if len(self._files) > self._max_files:
                self._files.popitem(last=False)

    def find(self, digest: bytes) -> PictureTensors | None:
        """Return the tensors of a picture by the digest of its pixels; None if they are gone."""
        if (known := self._features.find_picture(digest)) is not None:
            return known
        with self._lock:
            if digest in self._held:
                self._held.move_to_end(digest)
            return self._living.get(digest)

    def find_tensors(self, picture: PreparedPicture) -> PictureTensors | None:
        """Return the tensors of *picture*, made from those of the split picture if need be."""
        if (found := self.find(picture.digest)) is not None or picture.split_digest is None:
            return found
        split = self.find(picture.split_digest)
        return None if split is None else split.without_tiles()

    def find_file(
        self, file_digest: str, detail: PictureDetail | None = None
    ) -> PreparedPicture | None:
        """Return the picture of a file by the digest of the file, if its tensors are in memory."""
        found = self._files.get((file_digest, detail))
        if found is None or (tensors := self.find(found[0])) is None:
            return None
        picture, size = tensors.picture, found[1]
        return picture if picture.size == size else replace(picture, size=size)

    def _drop(self, digest: bytes) -> None:
        dropped = self._held.pop(digest, None)
        if dropped is not None:
            self._held_bytes -= dropped.nbytes
