"""The feature cache: it keeps image features between requests, by the digest of the picture."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

from torch import Tensor

from idefics_cli.models.families.picture import PictureTensors, PreparedPicture

# The cache has room for ten pictures of Idefics3-8B, whose features in bfloat16 take up to 24 MB
# each. The features of a picture of Idefics2-8b take 0.5 MB, or 2.6 MB if it is split.
KEPT_BYTES = 256 * 2**20


class FeatureCache:
    """Features of pictures by digest. The least recently used are dropped. Safe in any thread.

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

    def find_picture(self, digest: bytes) -> PictureTensors | None:
        """Return a picture with its features but without pixels, if the features are kept."""
        found = self._find(digest)
        return None if found is None else PictureTensors(found[0], features=found[1])

    def keep_features(self, picture: PreparedPicture, features: Tensor) -> None:
        """Keep the *features* (tokens, D) of *picture*; older ones may be dropped."""
        size = features.numel() * features.element_size()
        if size > self._max_bytes:
            return
        with self._lock:
            self._drop(picture.digest)
            self._features[picture.digest] = picture, features
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
