"""Known pictures: preprocessed pictures by digest, so that none is preprocessed twice."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from threading import Lock
from typing import TypeAlias
from weakref import WeakValueDictionary

from idefics_cli.core.types import PictureDetail
from idefics_cli.engine.local.vision.features import FeatureCache
from idefics_cli.models.families.picture import PreparedPicture

# An entry takes some 300 bytes, and a captioning run may read millions of files.
_MAX_FILES = 10_000
_FileKey: TypeAlias = tuple[str, PictureDetail | None]


class KnownPictures:
    """Finds preprocessed pictures by the digest of their pixels or file. Safe in any thread.

    Args:
        features: Holds the features of encoded pictures.
        max_files: Maximum number of files that are remembered.
    """

    def __init__(self, features: FeatureCache, *, max_files: int = _MAX_FILES) -> None:
        self._features = features
        # Pictures whose request still waits. Another question about the same picture finds it here.
        self._waiting: WeakValueDictionary[bytes, PreparedPicture] = WeakValueDictionary()
        self._files: OrderedDict[_FileKey, tuple[bytes, tuple[int, int]]] = OrderedDict()
        self._max_files = max_files
        self._lock = Lock()

    def add(self, picture: PreparedPicture) -> None:
        """Add *picture* for as long as a request holds it."""
        if picture.tiles:
            self._waiting.setdefault(picture.digest, picture)

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

    def find(self, digest: bytes) -> PreparedPicture | None:
        """Return the picture with this digest of its pixels, with its features or its tiles.

        None if neither features nor tiles are in memory any more.
        """
        return self._features.find_picture(digest) or self._waiting.get(digest)

    def find_file(
        self, file_digest: str, detail: PictureDetail | None = None
    ) -> PreparedPicture | None:
        """Return the picture of a file by the digest of the file; see `find`."""
        found = self._files.get((file_digest, detail))
        if found is None or (picture := self.find(found[0])) is None:
            return None
        size = found[1]
        return picture if picture.size == size else replace(picture, size=size)
