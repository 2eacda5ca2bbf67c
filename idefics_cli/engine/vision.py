"""Pictures become features once: by shape without padding, and kept by content."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from threading import Lock

import torch
from torch import Tensor

from idefics_cli.engine.cancel import Flag
from idefics_cli.models.families.base import Family
from idefics_cli.models.library import Model
from idefics_cli.models.picture import Picture

# A picture of Idefics2-8b takes 0.5 MB in bfloat16, 2.6 MB split; one of Idefics3-8B up to 24 MB.
KEPT_BYTES = 256 * 2**20
# One forward of the encoder, which cannot be interrupted. A GPU wants many tiles at once; a CPU
# gains next to nothing (8 pictures of 980x980 by shape: 0.93 of the time of one by one).
_CPU_PIXELS, _GPU_PIXELS = 1_000_000, 16_000_000


class FeatureCache:
    """Features of pictures by digest; the least recently used go first. Safe in any thread.

    Args:
        max_bytes: Most that it holds; what is larger alone is not kept.
    """

    def __init__(self, max_bytes: int = KEPT_BYTES) -> None:
        self._max_bytes = max_bytes
        self._features: OrderedDict[bytes, tuple[Picture, Tensor]] = OrderedDict()
        self._held_bytes = 0
        self._lock = Lock()

    def __len__(self) -> int:
        return len(self._features)

    @property
    def held_bytes(self) -> int:
        """Bytes of all features that it holds, on whichever device."""
        return self._held_bytes

    def get(self, digest: bytes) -> Tensor | None:
        """Return the features (tokens, D) of a picture, if they are here."""
        found = self._find(digest)
        return None if found is None else found[1]

    def recall(self, digest: bytes) -> Picture | None:
        """Return a picture with its features and without pixels, if they are here."""
        found = self._find(digest)
        return None if found is None else replace(found[0], features=found[1])

    def put(self, picture: Picture, features: Tensor) -> None:
        """Keep the *features* (tokens, D) of *picture*; older ones may go."""
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
        """Forget everything."""
        with self._lock:
            self._features.clear()
            self._held_bytes = 0

    def _find(self, digest: bytes) -> tuple[Picture, Tensor] | None:
        with self._lock:
            if digest in self._features:
                self._features.move_to_end(digest)
            return self._features.get(digest)

    def _drop(self, digest: bytes) -> None:
        if (found := self._features.pop(digest, None)) is not None:
            self._held_bytes -= found[1].numel() * found[1].element_size()


@torch.inference_mode()
def encode_pictures(
    model: Model,
    family: Family,
    pictures: Sequence[Picture],
    cache: FeatureCache,
    *,
    cancel: Flag | None = None,
) -> dict[bytes, Tensor] | None:
    """Return the features (tokens, D) of *pictures* by digest, each computed at most once.

    Tiles of one size run together, whichever pictures they are of, and none is padded.

    Args:
        model: In eval mode.
        family: Of the model.
        pictures: In any order; equal ones count once.
        cache: Asked first, and given what is new.
        cancel: Looked at before each forward.

    Returns:
        None when cancelled; the pictures that were ready by then are in *cache*.
    """
    features: dict[bytes, Tensor] = {}
    missing: dict[bytes, Picture] = {}
    for picture in pictures:
        known = picture.features if picture.features is not None else cache.get(picture.digest)
        if known is None:
            missing[picture.digest] = picture
        else:
            features[picture.digest] = known
    seen: dict[tuple[bytes, int], Tensor] = {}
    for group in _groups(missing, _CPU_PIXELS if model.device.type == "cpu" else _GPU_PIXELS):
        if cancel is not None and cancel.is_set():
            return None
        tiles = _stacked([missing[digest].tiles[index] for digest, index in group], model.device)
        seen |= zip(group, family.see(model, tiles), strict=True)
        for digest in dict.fromkeys(digest for digest, _ in group):
            if (whole := _joined(missing[digest], seen)) is not None:
                cache.put(missing[digest], whole)
                features[digest] = whole
    return features


def _stacked(tiles: Sequence[Tensor], device: torch.device) -> Tensor:
    """Return *tiles* as one tensor on *device*, to which a CUDA GPU copies them by itself."""
    is_cuda = device.type == "cuda"
    # The memory that a copy still reads is not given out again (CUDA's host allocator).
    staging = tiles[0].new_empty((len(tiles), *tiles[0].shape), pin_memory=is_cuda)
    return torch.stack(list(tiles), out=staging).to(device, non_blocking=is_cuda)


def _groups(
    missing: Mapping[bytes, Picture], most_pixels: int
) -> Iterator[list[tuple[bytes, int]]]:
    """Yield tiles, by digest and index, that are of one size and few enough to run together."""
    by_size: dict[tuple[int, int], list[tuple[bytes, int]]] = {}
    for digest, picture in missing.items():
        for index, size in enumerate(picture.tile_sizes):
            by_size.setdefault(size, []).append((digest, index))
    for (height, width), tiles in by_size.items():
        count = max(1, most_pixels // (height * width))
        for start in range(0, len(tiles), count):
            yield tiles[start : start + count]


def _joined(picture: Picture, seen: dict[tuple[bytes, int], Tensor]) -> Tensor | None:
    """Return the features of a picture when all its tiles are *seen*, which forgets them."""
    keys = [(picture.digest, index) for index in range(len(picture.tile_sizes))]
    if not all(key in seen for key in keys):
        return None
    # A copy, because a part of a group's output would keep all of it in memory.
    return torch.cat([seen.pop(key) for key in keys])
