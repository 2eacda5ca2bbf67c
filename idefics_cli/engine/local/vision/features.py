"""Image features kept between requests, by the content of the picture."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import replace
from threading import Lock

from torch import Tensor

from idefics_cli.models.families.picture import PreparedPicture

# A picture of Idefics2-8b takes 0.5 MB in bfloat16, 2.6 MB split; one of Idefics3-8B up to 24 MB.
KEPT_BYTES = 256 * 2**20


class FeatureCache:
    """Features of pictures by digest; the least recently used go first. Safe in any thread.

    Args:
        max_bytes: Maximum number of bytes of features; larger features are not kept.
    """

    def __init__(self, max_bytes: int = KEPT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._features: OrderedDict[bytes, tuple[PreparedPicture, Tensor]] = OrderedDict()
        self._held_bytes = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._features)

    def __contains__(self, digest: bytes) -> bool:
        return digest in self._features

    def find_features(self, digest: bytes) -> Tensor | None:
        """Return the features (tokens, D) of a picture, if they are kept."""
        found = self._find(digest)
        return None if found is None else found[1]

    def find_picture(self, digest: bytes) -> PreparedPicture | None:
        """Return a picture with its features and without pixels, if they are kept."""
        found = self._find(digest)
        return None if found is None else replace(found[0], features=found[1])

    def keep_features(self, picture: PreparedPicture, features: Tensor) -> None:
        """Keep the *features* (tokens, D) of *picture*; older ones may be dropped."""
        size = features.numel() * features.element_size()
        if size > self._max_bytes:
            return
        # Without the pixels, which are far larger.
        bare = replace(picture, tiles=(), features=None)
        with self._lock:
            self._drop(picture.digest)
            self._features[picture.digest] = bare, features
            self._held_bytes += size
            while self._held_bytes > self._max_bytes:
                self._drop(next(iter(self._features)))

    def clear(self) -> None:
        """Drop all features."""
        with self._lock:
            self._features.clear()
            self._held_bytes = 0

    def _find(self, digest: bytes) -> tuple[PreparedPicture, Tensor] | None:
        with self._lock:
            if digest in self._features:
                self._features.move_to_end(digest)
            return self._features.get(digest)

    def _drop(self, digest: bytes) -> None:
        if (found := self._features.pop(digest, None)) is not None:
            self._held_bytes -= found[1].numel() * found[1].element_size()
