"""Pictures become features once: with as little padding as pays, and kept by content."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from threading import Lock

import torch
from torch import Tensor

from idefics_cli.engine.local.cancel import Flag
from idefics_cli.engine.local.vision import tiles
from idefics_cli.models.families.base import Family
from idefics_cli.models.families.internals import attention_of
from idefics_cli.models.families.picture import PreparedPicture
from idefics_cli.models.families.protocols import Model
from idefics_cli.models.kernels import attention as cpu_attention
from idefics_cli.models.kernels.table import ATTENTION_KERNELS

# A picture of Idefics2-8b takes 0.5 MB in bfloat16, 2.6 MB split; one of Idefics3-8B up to 24 MB.
KEPT_BYTES = 256 * 2**20
# With these a mask of padding gives what the tiles give alone. Flash attention in Idefics2's
# perceiver once went wrong (see `attention.caution`), and is not asked to.
_MASKING = ("sdpa", "eager", *ATTENTION_KERNELS)

# Floating-point operations in the time that a layer takes however little it computes: Python,
# and starting kernels. 1.6 ms and 47 GFLOP/s in float32 on one core of a Xeon with AVX512 at
# 2.5 GHz; a faster core is faster at both. Threads and native bfloat16 speed up only one.
_CPU_LAYER_OPERATIONS = 5e7
_NATIVE_BF16_SPEED = 4
# Guesses, not measured: 0.2 ms, and 100 TFLOP/s in 16 bit; Apple's 10.
_GPU_LAYER_OPERATIONS, _MPS_LAYER_OPERATIONS = 2e10, 2e9


class FeatureCache:
    """Features of pictures by digest; the least recently used go first. Safe in any thread.

    Args:
        max_bytes: Most that it holds; what is larger alone is not kept.
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

    @property
    def held_bytes(self) -> int:
        """Bytes of all features that it holds, on whichever device."""
        return self._held_bytes

    def get(self, digest: bytes) -> Tensor | None:
        """Return the features (tokens, D) of a picture, if they are here."""
        found = self._find(digest)
        return None if found is None else found[1]

    def recall(self, digest: bytes) -> PreparedPicture | None:
        """Return a picture with its features and without pixels, if they are here."""
        found = self._find(digest)
        return None if found is None else replace(found[0], features=found[1])

    def put(self, picture: PreparedPicture, features: Tensor) -> None:
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

    def _find(self, digest: bytes) -> tuple[PreparedPicture, Tensor] | None:
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
    pictures: Sequence[PreparedPicture],
    cache: FeatureCache,
    *,
    cancel: Flag | None = None,
) -> dict[bytes, Tensor] | None:
    """Return the features (tokens, D) of *pictures* by digest, each computed at most once.

    Tiles run together, whichever pictures they are of, as `tiles.groups` has it.

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
    missing: dict[bytes, PreparedPicture] = {}
    for picture in pictures:
        known = picture.features if picture.features is not None else cache.get(picture.digest)
        if known is None:
            missing[picture.digest] = picture
        else:
            features[picture.digest] = known
    seen: dict[tiles.Tile, Tensor] = {}
    for group in _groups(model, family, missing.values()):
        if cancel is not None and cancel.is_set():
            return None
        pixels = _stacked(group, missing, model.device)
        sizes = group.sizes if group.pads else None
        seen |= zip(group.tiles, family.encode_tiles(model, pixels, sizes), strict=True)
        for digest in dict.fromkeys(digest for digest, _ in group.tiles):
            if (whole := _joined(missing[digest], seen)) is not None:
                cache.put(missing[digest], whole)
                features[digest] = whole
    return features


def _groups(
    model: Model, family: Family, missing: Iterable[PreparedPicture]
) -> Iterator[tiles.Group]:
    """Yield what runs together of the tiles of *missing*."""
    attention = attention_of(model.config.vision_config)
    return tiles.groups(
        {
            (picture.digest, index): size
            for picture in missing
            for index, size in enumerate(picture.tile_sizes)
        },
        most_pixels=tiles.CPU_PIXELS if model.device.type == "cpu" else tiles.GPU_PIXELS,
        work=family.vision_work if attention in _MASKING else None,
        call=_call(model.device, is_native_bf16=attention == cpu_attention.TILED.name),
    )


def _call(device: torch.device, *, is_native_bf16: bool) -> tiles.Call:
    """Return what a forward costs on *device*, in this thread."""
    if device.type != "cpu":
        is_mps = device.type == "mps"
        operations = _MPS_LAYER_OPERATIONS if is_mps else _GPU_LAYER_OPERATIONS
        return tiles.Call(operations, overlaps=True)
    speed = torch.get_num_threads() * (_NATIVE_BF16_SPEED if is_native_bf16 else 1)
    return tiles.Call(_CPU_LAYER_OPERATIONS * speed)


def _stacked(
    group: tiles.Group, pictures: Mapping[bytes, PreparedPicture], device: torch.device
) -> Tensor:
    """Return the tiles of *group* as one tensor on *device*, filled up with zeros.

    A CUDA GPU copies them by itself.
    """
    is_cuda = device.type == "cuda"
    first = pictures[group.tiles[0][0]].tiles[0]
    shape = (len(group.tiles), first.shape[0], group.height, group.width)
    # The memory that a copy still reads is not given out again (CUDA's host allocator).
    staging = first.new_empty(shape, pin_memory=is_cuda)
    if group.pads:
        staging.zero_()
    for place, (digest, index) in zip(staging, group.tiles, strict=True):
        tile = pictures[digest].tiles[index]
        place[:, : tile.shape[1], : tile.shape[2]] = tile
    return staging.to(device, non_blocking=is_cuda)


def _joined(picture: PreparedPicture, seen: dict[tiles.Tile, Tensor]) -> Tensor | None:
    """Return the features of a picture when all its tiles are *seen*, which forgets them."""
    keys = [(picture.digest, index) for index in range(len(picture.tile_sizes))]
    if not all(key in seen for key in keys):
        return None
    # A copy, because a part of a group's output would keep all of it in memory.
    return torch.cat([seen.pop(key) for key in keys])
