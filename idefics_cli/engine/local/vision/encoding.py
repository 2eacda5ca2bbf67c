"""The encoder of pictures: it computes the image features of each picture once."""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

from idefics_cli.engine.local.cancel import Flag
from idefics_cli.engine.local.vision.features import FeatureCache
from idefics_cli.engine.local.vision.tiles import ForwardCost, Group, Tile, group_tiles
from idefics_cli.models.families.base import Family
from idefics_cli.models.families.internals import attention_of
from idefics_cli.models.families.picture import (
    PictureTensors,
    PreparedPicture,
    apply_levels,
)
from idefics_cli.models.families.protocols import Model
from idefics_cli.models.families.vision_work import VisionWork
from idefics_cli.models.kernels import attention as cpu_attention
from idefics_cli.models.kernels.table import ATTENTION_KERNELS

# Maximum number of pixels in one forward. A forward cannot be interrupted, so the number is small
# on a CPU, which gains next to nothing from more: 8 pictures of 980x980 together take 0.93 of the
# time that they take one by one. A GPU needs many tiles at once.
_CPU_PIXELS, _GPU_PIXELS = 1_000_000, 16_000_000
# With these attentions, padded tiles with a mask get the same features as each tile alone. Flash
# attention is left out, because it was once wrong in the perceiver of Idefics2 (`flash_caution` in
# `families/spec.py`).
_MASKING = ("sdpa", "eager", *ATTENTION_KERNELS)

# A layer has an overhead for Python and for starting its kernels. This is the number of
# floating-point operations that take as long as the overhead. Measured on one core of a Xeon with
# AVX512 at 2.5 GHz: the overhead is 1.6 ms, and the core computes 47 GFLOP/s in float32. A faster
# core shortens the overhead and the arithmetic. More threads and native bfloat16 speed up only the
# arithmetic, so the number is multiplied by their speed-up.
_CPU_LAYER_OPERATIONS = 5e7
_NATIVE_BF16_SPEED = 4
# The same numbers for GPUs. They are estimated, not measured: 0.2 ms, at 100 TFLOP/s in 16 bit on a
# CUDA GPU, and at 10 TFLOP/s on Apple's GPUs.
_GPU_LAYER_OPERATIONS, _MPS_LAYER_OPERATIONS = 2e10, 2e9


class PictureEncoder:
    """Encodes pictures with the vision encoder of one model.

    Args:
        model: In eval mode.
        family: The family of the model.
        features: The cache that is searched first, and that keeps new features; None makes an
            empty one.
        max_pixels: Maximum number of pixels of one forward; None chooses by device.
        cost: The cost of a forward; None estimates it by device and dtype.
    """

    def __init__(
        self,
        model: Model,
        family: Family,
        *,
        features: FeatureCache | None = None,
        max_pixels: int | None = None,
        cost: ForwardCost | None = None,
    ) -> None:
        self._model = model
        self._family = family
        self.features = FeatureCache() if features is None else features
        # Metal has no fused kernel for the heads of vision towers, and keeps the scores of all
        # tiles of a forward. With five tiles of Idefics2, they are more than a buffer may hold, and
        # Metal then ends the process (pytorch #149261).
        is_cuda = model.device.type == "cuda"
        self.max_pixels = max_pixels or (_GPU_PIXELS if is_cuda else _CPU_PIXELS)
        self._cost = cost
        # The last table that `apply_levels` got: on the CPU, and its copy on the device.
        self._levels: tuple[Tensor, Tensor] | None = None

    @torch.inference_mode()
    def encode(
        self, pictures: Sequence[PictureTensors], *, cancel: Flag | None = None
    ) -> dict[bytes, Tensor] | None:
        """Return the features (tokens, D) of *pictures* by digest, each computed at most once.

        Args:
            pictures: In any order; equal pictures count once.
            cancel: Checked before each forward.

        Returns:
            None when cancelled; the features of complete pictures are then in the cache.
        """
        pieces = self.encode_pieces(pictures)
        while cancel is None or not cancel.is_set():
            try:
                next(pieces)
            except StopIteration as end:
                features: dict[bytes, Tensor] = end.value
                return features
        return None

    def encode_pieces(
        self, pictures: Sequence[PictureTensors], others: Sequence[PictureTensors] = ()
    ) -> Generator[None, None, dict[bytes, Tensor]]:
        """Encode *pictures* as `encode` does, and pause before each forward.

        Tiles of different pictures run together, in the groups of `group_tiles`.

        Args:
            pictures: In any order; equal pictures count once.
            others: Pictures that will be needed soon. They are encoded with *pictures* if that
                costs less than a forward of their own.
        """
        features, missing = self._find_features(pictures)
        wanted = set(missing)
        if wanted and others:
            missing |= self._find_small(others)
        encoded: dict[Tile, Tensor] = {}
        for group in self.groups(each.picture for each in missing.values()):
            if wanted.isdisjoint(digest for digest, _ in group.tiles):
                continue
            yield
            pixels = self._stack(group, missing)
            sizes = group.sizes if group.has_padding else None
            outputs = self._family.encode_tiles(self._model, pixels, sizes)
            encoded |= zip(group.tiles, outputs, strict=True)
            for digest in dict.fromkeys(digest for digest, _ in group.tiles):
                picture = missing[digest].picture
                if (whole := _joined(picture, encoded)) is not None:
                    self.features.keep_features(picture, whole)
                    features[digest] = whole
        return features

    def groups(self, pictures: Iterable[PreparedPicture]) -> Iterator[Group]:
        """Yield the tiles of *pictures* in groups, one for each forward."""
        return group_tiles(
            {
                (picture.digest, index): size
                for picture in pictures
                for index, size in enumerate(picture.tile_sizes)
            },
            max_pixels=self.max_pixels,
            work=self._work,
            cost=self._forward_cost(),
        )

    @property
    def _work(self) -> VisionWork | None:
        """The arithmetic of the encoder; None if it cannot take padded tiles."""
        attention = attention_of(self._model.config.vision_config)
        return self._family.vision_work if attention in _MASKING else None

    def _forward_cost(self) -> ForwardCost:
        attention = attention_of(self._model.config.vision_config)
        # The cost is not estimated in `__init__`, which may run in another thread: each thread has
        # its own number of torch threads.
        return self._cost or _estimated_cost(
            self._model.device, is_native_bf16=attention == cpu_attention.TILED.name
        )

    def _find_small(self, pictures: Sequence[PictureTensors]) -> dict[bytes, PictureTensors]:
        """Return those of *pictures* that are not known and cost less than the overhead."""
        work, cost = self._work, self._forward_cost()
        if work is None:
            return {}
        least = work.layers * cost.layer_operations
        _, missing = self._find_features(pictures)
        return {
            digest: each
            for digest, each in missing.items()
            # The tiles of a split picture could be in several groups, of which some do not run.
            if len(each.tiles) == 1 and work.operations(*each.picture.tile_sizes[0]) < least
        }

    def _stack(self, group: Group, pictures: Mapping[bytes, PictureTensors]) -> Tensor:
        """Return the tiles of *group* as one tensor on the device, normalized, padded with zeros.

        Bytes go to the device as they are, a quarter of the memory, and become numbers there.
        """
        device = self._model.device
        channels = pictures[group.tiles[0][0]].tiles[0].shape[0]
        shape = (len(group.tiles), channels, group.height, group.width)
        make = torch.zeros if group.has_padding else torch.empty
        stacked = make(shape, dtype=torch.float32, device=device)
        for whole, (digest, index) in zip(stacked, group.tiles, strict=True):
            picture = pictures[digest]
            tile = _on_device(picture.tiles[index], device)
            target = whole[:, : tile.shape[1], : tile.shape[2]]
            if picture.levels is None:
                target.copy_(tile)
            else:
                apply_levels(self._levels_on_device(picture.levels), tile, target)
        return stacked

    def _levels_on_device(self, levels: Tensor) -> Tensor:
        """Return *levels* on the device; the last ones are kept, because a family has one table."""
        if self._levels is None or self._levels[0] is not levels:
            self._levels = levels, levels.to(self._model.device)
        return self._levels[1]

    def _find_features(
        self, pictures: Sequence[PictureTensors]
    ) -> tuple[dict[bytes, Tensor], dict[bytes, PictureTensors]]:
        """Return the known features by digest, and the pictures whose features are not known."""
        features: dict[bytes, Tensor] = {}
        missing: dict[bytes, PictureTensors] = {}
        for tensors in pictures:
            digest, known = tensors.picture.digest, tensors.features
            if known is None:
                known = self.features.find_features(digest)
            if known is None:
                missing[digest] = tensors
            else:
                features[digest] = known
        return features, missing


def _estimated_cost(device: torch.device, *, is_native_bf16: bool) -> ForwardCost:
    """Return an estimate of the cost of a forward in this thread, on *device*."""
    if device.type != "cpu":
        is_mps = device.type == "mps"
        operations = _MPS_LAYER_OPERATIONS if is_mps else _GPU_LAYER_OPERATIONS
        return ForwardCost(operations, overlaps=True)
    speed = torch.get_num_threads() * (_NATIVE_BF16_SPEED if is_native_bf16 else 1)
    return ForwardCost(_CPU_LAYER_OPERATIONS * speed)


def _on_device(tile: Tensor, device: torch.device) -> Tensor:
    """Return *tile* on *device*; the copy to a CUDA GPU does not block the host."""
    if device.type != "cuda":
        return tile.to(device)
    # The pinned copy may be dropped while the GPU still reads it: CUDA's host allocator does not
    # reuse its memory before the copy to the GPU has ended.
    return tile.pin_memory().to(device, non_blocking=True)


def _joined(picture: PreparedPicture, encoded: dict[Tile, Tensor]) -> Tensor | None:
    """Remove the tiles of *picture* from *encoded* and return them joined; None if one is missing.

    The result is a copy, because a view would keep the output of the whole group in memory.
    """
    keys = [(picture.digest, index) for index in range(len(picture.tile_sizes))]
    if not all(key in encoded for key in keys):
        return None
    return torch.cat([encoded.pop(key) for key in keys])
