"""Image features of training pictures: kept while nothing changes them, or with gradients."""

from __future__ import annotations

import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from idefics_cli.core.types import Attachment
from idefics_cli.models.families.base import Family
from idefics_cli.models.families.internals import attention_of
from idefics_cli.models.families.picture import PictureTensors, PreparedPicture, apply_levels
from idefics_cli.models.families.protocols import Model
from idefics_cli.training.examples import TrainingExample

if TYPE_CHECKING:
    from io import BufferedRandom

MEMORY_BYTES = 2 * 2**30
"""Largest size of all kept features in memory; further ones go to a file."""
# Largest number of pixels in one forward without gradients. A CPU gains nothing from more.
_PIXELS = {"cuda": 2**22}
_CPU_PIXELS = 2**18


class FeatureSource(Protocol):
    """Gives the image features of examples."""

    def features_of(self, examples: Sequence[TrainingExample]) -> list[list[Tensor]]:
        """Return the features (tokens, D) of each picture of each of *examples*."""
        ...


class KeptFeatures:
    """Features of pictures that training does not change. Each picture is encoded once.

    A picture is encoded alone, and its tiles in groups of a fixed size, so that its features do not
    depend on its batch: a run that goes on after a stop gets the same bits. The vision tower of
    *model* gets SDPA in place of eager attention: eager attention is only faster with gradients,
    and it keeps all scores in memory.

    Args:
        model: The model; the attention of its vision tower is changed.
        family: Its family.
        preprocess: Returns the tensors of a picture.
        folder: Folder for the file of what is too much for the memory.
        memory_bytes: Largest size of the features in memory.
        keeps: False encodes each picture anew whenever it is needed.
        most_pixels: Largest number of pixels in one forward of the vision tower; a tile may have
            more. None chooses by the device.
    """

    def __init__(
        self,
        model: Model,
        family: Family,
        preprocess: Callable[[Attachment], PictureTensors],
        *,
        folder: Path,
        memory_bytes: int = MEMORY_BYTES,
        keeps: bool = True,
        most_pixels: int | None = None,
    ) -> None:
        # The tower of IDEFICS-1 has no way to change its attention. Its pictures are small.
        tower = cast("nn.Module", model).get_submodule("model.vision_model")
        if isinstance(tower, PreTrainedModel) and attention_of(tower.config) == "eager":
            tower.set_attn_implementation("sdpa")
        usual = _PIXELS.get(model.device.type, _CPU_PIXELS)
        self._encoder = _TileEncoder(model, family, most_pixels=most_pixels or usual)
        self._preprocess = preprocess
        self._store = FeatureStore(folder, memory_bytes=memory_bytes) if keeps else None

    def features_of(self, examples: Sequence[TrainingExample]) -> list[list[Tensor]]:
        """See `FeatureSource`."""
        return [[self._features(*pair) for pair in _pairs(example)] for example in examples]

    def close(self) -> None:
        """Remove the file of the kept features."""
        if self._store is not None:
            self._store.close()

    def _features(self, attachment: Attachment, picture: PreparedPicture) -> Tensor:
        known = None if self._store is None else self._store.find(picture.digest)
        if known is not None:
            return known
        with torch.no_grad():
            (made,) = self._encoder.encode([self._preprocess(attachment)])
        if self._store is not None:
            self._store.keep(picture.digest, made)
        return made


class LearnedFeatures:
    """Features that training changes; they are computed with gradients at each call.

    Args:
        model: The model.
        family: Its family.
        preprocess: Returns the tensors of a picture.
    """

    def __init__(
        self, model: Model, family: Family, preprocess: Callable[[Attachment], PictureTensors]
    ) -> None:
        self._encoder = _TileEncoder(model, family)
        self._preprocess = preprocess

    def features_of(self, examples: Sequence[TrainingExample]) -> list[list[Tensor]]:
        """See `FeatureSource`. Tiles of one size go through the vision tower together."""
        rows = [list(example.sources) for example in examples]
        made = iter(self._encoder.encode([self._preprocess(each) for row in rows for each in row]))
        return [[next(made) for _ in row] for row in rows]


class FeatureStore:
    """Tensors by digest, in memory up to a bound, then in a file that has no name.

    Args:
        folder: Folder of the file.
        memory_bytes: Largest size in memory.
    """

    def __init__(self, folder: Path, *, memory_bytes: int) -> None:
        self._folder, self._room = folder, memory_bytes
        self._tensors: dict[bytes, Tensor] = {}
        self._places: dict[bytes, tuple[int, Tensor]] = {}
        self._file: BufferedRandom | None = None
        self._end = 0

    def find(self, digest: bytes) -> Tensor | None:
        """Return the tensor of *digest*, on the CPU or where it was made; None if unknown."""
        if (kept := self._tensors.get(digest)) is not None:
            return kept
        if (place := self._places.get(digest)) is None or self._file is None:
            return None
        offset, like = place
        data = bytearray(_size(like))
        self._file.seek(offset)
        if self._file.readinto(data) != len(data):
            raise OSError("the file of image features is shorter than expected")
        return torch.frombuffer(data, dtype=like.dtype).view(like.shape)

    def keep(self, digest: bytes, tensor: Tensor) -> None:
        """Keep *tensor*.

        Raises:
            OSError: If it does not fit on the disk.
        """
        tensor = tensor.detach().to("cpu", copy=True)
        if tensor.nbytes <= self._room:
            self._room -= tensor.nbytes
            self._tensors[digest] = tensor
            return
        if self._file is None:
            # The system removes the file when the process ends, even if it is killed.
            self._file = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115 (see `close`)
        self._file.seek(self._end)
        self._file.write(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes())
        self._places[digest] = self._end, torch.empty_like(tensor, device="meta")
        self._end += tensor.nbytes

    def close(self) -> None:
        """Free the memory and the file; idempotent."""
        self._tensors.clear()
        self._places.clear()
        if self._file is not None:
            self._file.close()
            self._file = None


class _TileEncoder:
    def __init__(self, model: Model, family: Family, *, most_pixels: int | None = None) -> None:
        self._model, self._family = model, family
        self._most_pixels = most_pixels

    def encode(self, pictures: Sequence[PictureTensors]) -> list[Tensor]:
        """Return the features (tokens, D) of each of *pictures*."""
        places: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
        for number, tensors in enumerate(pictures):
            for index, size in enumerate(tensors.picture.tile_sizes):
                places[size].append((number, index))
        encoded: dict[tuple[int, int], Tensor] = {}
        for group in self._groups(places):
            tiles = torch.stack([self._pixels(pictures[number], at) for number, at in group])
            outputs = self._family.encode_tiles(self._model, tiles)
            encoded |= zip(group, outputs, strict=True)
        return [
            torch.cat([encoded[number, at] for at in range(len(each.picture.tile_sizes))])
            for number, each in enumerate(pictures)
        ]

    def _groups(
        self, places: Mapping[tuple[int, int], list[tuple[int, int]]]
    ) -> Iterator[list[tuple[int, int]]]:
        """Yield the tiles of each forward: they have one size."""
        for (height, width), found in places.items():
            pixels = height * width
            most = max(1, self._most_pixels // pixels) if self._most_pixels else len(found)
            for start in range(0, len(found), most):
                yield found[start : start + most]

    def _pixels(self, tensors: PictureTensors, index: int) -> Tensor:
        device, tile = self._model.device, tensors.tiles[index]
        if tensors.levels is None:
            return tile.to(device)
        target = torch.empty(tile.shape, dtype=torch.float32, device=device)
        apply_levels(tensors.levels.to(device), tile.to(device), target)
        return target


def _pairs(example: TrainingExample) -> Iterable[tuple[Attachment, PreparedPicture]]:
    return zip(example.sources, example.pictures, strict=True)


def _size(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()
