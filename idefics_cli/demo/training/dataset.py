"""The pictures of the training, and batches of them.

The pictures are drawn once and stored in files, which are mapped into memory.
"""

from __future__ import annotations

import json
import multiprocessing
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from idefics_cli.demo.build import LONGEST_EDGE, PAD_ID, PATCH, SHORTEST_EDGE
from idefics_cli.demo.conversations import pair_conversation, single_conversation
from idefics_cli.demo.drawing import draw
from idefics_cli.demo.questions import Question
from idefics_cli.demo.scenes import BACKGROUNDS, Scene, Split, scene_for_split
from idefics_cli.demo.training.encoding import Encoder, LabelledAnswer, LabelledConversation
from idefics_cli.demo.training.truth import FACETS, GRID, patch_labels, slot_targets
from idefics_cli.demo.wordings import SMALL_TALK
from idefics_cli.training.labels import LabelledBatch, pad_batch

_FORMAT = 1
_CHUNK = 500
_BACKGROUND_INDEX = {name: i for i, name in enumerate(BACKGROUNDS)}


def resized(image: Image.Image) -> Image.Image:
    """Resize *image* to the same pixels as the image processor does, but faster."""
    width, height = image.size
    aspect = width / height
    if width >= height and width > LONGEST_EDGE:
        width, height = LONGEST_EDGE, int(LONGEST_EDGE / aspect)
    elif height > width and height > LONGEST_EDGE:
        width, height = int(LONGEST_EDGE * aspect), LONGEST_EDGE
    size = (max(width, SHORTEST_EDGE), max(height, SHORTEST_EDGE))
    return image.resize(size, Image.Resampling.BILINEAR)


def render_split(folder: Path, split: Split, count: int, *, processes: int = 1) -> None:
    """Draw the first *count* scenes of *split* into *folder*, unless it has them already.

    Each file is named after the split and holds an array with one entry for each picture:

    * `-pixels` (count, 112, 112, 3), uint8: the picture, resized as the processor resizes it;
    * `-sizes` (count, 2): its height and width;
    * `-labels`: what `truth.patch_labels` returns for it;
    * `-kinds` (count, 2): the index of its background, and whether it has text.

    The file `.json` is written last, so a split that has it is complete.
    """
    done = folder / f"{split}.json"
    description = {"format": _FORMAT, "count": count}
    if done.exists() and json.loads(done.read_text()) == description:
        return
    folder.mkdir(parents=True, exist_ok=True)
    done.unlink(missing_ok=True)
    _Files.create(folder, split, count)
    jobs = [(folder, split, i, min(count, i + _CHUNK)) for i in range(0, count, _CHUNK)]
    if processes == 1:
        for job in jobs:
            _render_chunk(job)
    else:
        with multiprocessing.get_context("spawn").Pool(processes) as pool:
            for _ in pool.imap_unordered(_render_chunk, jobs):
                pass
    done.write_text(json.dumps(description))


@dataclass(frozen=True, slots=True)
class _Files:
    """The memory maps of one split; see `render_split`."""

    pixels: NDArray[np.uint8]
    sizes: NDArray[np.int16]
    labels: NDArray[np.int8]
    kinds: NDArray[np.int8]

    @staticmethod
    def create(folder: Path, split: Split, count: int) -> None:
        shapes: dict[str, tuple[tuple[int, ...], type[np.generic]]] = {
            "pixels": ((count, LONGEST_EDGE, LONGEST_EDGE, 3), np.uint8),
            "sizes": ((count, 2), np.int16),
            "labels": ((count, GRID, GRID, len(FACETS)), np.int8),
            "kinds": ((count, 2), np.int8),
        }
        for name, (shape, dtype) in shapes.items():
            open_memmap(folder / f"{split}-{name}.npy", "w+", dtype, shape)

    @classmethod
    def open(cls, folder: Path, split: Split, *, writable: bool = False) -> _Files:
        names = ("pixels", "sizes", "labels", "kinds")
        mode = "r+" if writable else "r"
        return cls(*(open_memmap(folder / f"{split}-{name}.npy", mode) for name in names))


def _render_chunk(job: tuple[Path, Split, int, int]) -> None:
    folder, split, start, stop = job
    files = _Files.open(folder, split, writable=True)
    for index in range(start, stop):
        scene = scene_for_split(split, index)
        drawing = draw(scene, jpeg=True)
        pixels = np.asarray(resized(drawing.image))
        height, width = pixels.shape[:2]
        files.pixels[index, :height, :width] = pixels
        files.sizes[index] = height, width
        files.labels[index] = patch_labels(scene, drawing, width=width, height=height)
        files.kinds[index] = _BACKGROUND_INDEX[scene.background], scene.lettering is not None


class Pictures:
    """The rendered pictures of one split.

    Args:
        folder: Folder that `render_split` wrote.
        split: Split of the pictures.
    """

    def __init__(self, folder: Path, split: Split) -> None:
        self._files = _Files.open(folder, split)
        self._split: Split = split
        backgrounds, is_text = np.array(self._files.kinds).T
        self.text = np.flatnonzero(is_text).tolist()
        """Indices of the pictures with digits or words."""
        self._backgrounds = backgrounds
        self._by_background = [
            np.flatnonzero(backgrounds == index).tolist() for index in range(len(BACKGROUNDS))
        ]

    def __len__(self) -> int:
        return len(self._files.sizes)

    def scene(self, index: int) -> Scene:
        """Return the scene of picture *index*."""
        return scene_for_split(self._split, index)

    def partner(self, index: int, rng: random.Random) -> int:
        """Return a picture to show together with picture *index*.

        In 35 % of the calls it is drawn from the pictures that have the same background.
        """
        if rng.random() < 0.35:
            same: list[int] = self._by_background[self._backgrounds[index]]
            return rng.choice(same)
        return rng.randrange(len(self))

    def pixels(self, groups: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
        """Return the pictures of each conversation, padded as the image processor pads.

        Args:
            groups: The pictures of each of B conversations. A conversation has 0 to N pictures.

        Returns:
            `pixel_values` (B, N, 3, H, W), float32 from -1 to 1, or zeros where a conversation has
            fewer than N pictures; and `pixel_attention_mask` (B, N, H, W), int64.
        """
        flat = [index for group in groups for index in group]
        height, width = self._files.sizes[flat].max(0).tolist()
        most = max(len(group) for group in groups)
        values = torch.zeros(len(groups), most, 3, height, width)
        mask = torch.zeros(len(groups), most, height, width, dtype=torch.long)
        for row, group in enumerate(groups):
            for column, index in enumerate(group):
                h, w = self._files.sizes[index].tolist()
                pixels = torch.from_numpy(np.array(self._files.pixels[index, :h, :w]))
                values[row, column, :, :h, :w] = pixels.permute(2, 0, 1) / 127.5 - 1
                mask[row, column, :h, :w] = 1
        return values, mask

    def targets(self, flat: Sequence[int], *, rows: int, columns: int) -> tuple[Tensor, Tensor]:
        """Return the targets of the auxiliary losses for the pictures *flat*; see `truth.py`.

        Returns:
            The classes of the patches (len(flat), *rows* x *columns*, facets), int64 and -1 outside
            a picture; and the targets of the image tokens (len(flat), latents, classes), float32.
        """
        labels = np.array(self._files.labels[list(flat)])
        slots = np.stack([slot_targets(each) for each in labels])
        patches = labels[:, :rows, :columns].reshape(len(flat), -1, len(FACETS))
        return torch.from_numpy(patches.astype(np.int64)), torch.from_numpy(slots)


@dataclass(frozen=True, slots=True)
class Batch:
    """B conversations, which together have F pictures.

    Attributes:
        tokens: The token ids and labels of the conversations, padded.
        answers: The positions of the answers in each conversation.
        pixel_values: Pictures (B, N, 3, H, W); see `Pictures.pixels`.
        pixel_mask: Mask of the pictures (B, N, H, W).
        patches: Targets of the patches (F, patches, facets).
        slots: Targets of the image tokens (F, latents, classes).
    """

    tokens: LabelledBatch
    answers: tuple[tuple[LabelledAnswer, ...], ...]
    pixel_values: Tensor
    pixel_mask: Tensor
    patches: Tensor
    slots: Tensor


class BatchSource:
    """An endless source of shuffled conversations, for one process of the training.

    The process takes every *processes*-th picture, and begins with picture *rank*.

    Args:
        pictures: Pictures of the training split.
        encoder: Turns conversations into token ids.
        seed: Seed of every choice.
        rank: Number of this process, from 0 on.
        processes: Number of processes.
    """

    two_pictures = 0.15
    no_picture = 0.015
    images_last = 0.15
    extra_text = 0.3

    def __init__(
        self,
        pictures: Pictures,
        encoder: Encoder,
        *,
        seed: int,
        rank: int = 0,
        processes: int = 1,
    ) -> None:
        self._pictures = pictures
        self._encoder = encoder
        self._rng = random.Random(f"{seed}-{rank}")
        self._order = self._shuffled(range(rank, len(pictures), processes))
        # A small data set can have fewer pictures with text than there are processes. A process
        # without such a picture takes those of all processes.
        own_text = pictures.text[rank::processes] or pictures.text
        self._text_order = self._shuffled(own_text or range(len(pictures)))

    def next_batch(self, size: int, *, is_vision_only: bool = False) -> Batch:
        """Return the next *size* conversations.

        With *is_vision_only*, each conversation has one picture and one question, and a larger
        share of the pictures has text.
        """
        conversations, groups = [], []
        for index in range(size):
            # The first conversation always has a picture, so that no batch is without one.
            can_be_text = index > 0 and not is_vision_only
            conversation, group = self._draw(is_vision_only, can_be_text=can_be_text)
            conversations.append(conversation)
            groups.append(group)
        return make_batch(self._pictures, self._encoder, conversations, groups)

    def _draw(
        self, is_vision_only: bool, *, can_be_text: bool
    ) -> tuple[LabelledConversation, list[int]]:
        rng = self._rng
        if is_vision_only:
            order = self._text_order if rng.random() < self.extra_text else self._order
            return self._single(next(order), turns=1)
        if can_be_text and rng.random() < self.no_picture:
            message, answer = rng.choice(SMALL_TALK)
            return self._loosened([Question("small_talk", message, answer)], 0), []
        index = next(self._order)
        if rng.random() >= self.two_pictures:
            return self._single(index, turns=5)
        group = [index, self._pictures.partner(index, rng)]
        rng.shuffle(group)
        first, second = (self._pictures.scene(each) for each in group)
        return self._loosened(pair_conversation((first, second), rng), 2), group

    def _single(self, index: int, *, turns: int) -> tuple[LabelledConversation, list[int]]:
        turns_ = single_conversation(self._pictures.scene(index), self._rng, turns=turns)
        return self._loosened(turns_, 1), [index]

    def _loosened(self, turns: Sequence[Question], images: int) -> LabelledConversation:
        """Return a conversation whose questions lack some final marks and capitals.

        Users type in this way.
        """
        loose = tuple(
            Question(turn.task, loosened(turn.question, self._rng), turn.answer) for turn in turns
        )
        return LabelledConversation(loose, images, self._rng.random() < self.images_last)

    def _shuffled(self, indices: Sequence[int]) -> Iterator[int]:
        order = list(indices)
        while True:
            self._rng.shuffle(order)
            yield from order


def make_batch(
    pictures: Pictures,
    encoder: Encoder,
    conversations: Sequence[LabelledConversation],
    groups: Sequence[Sequence[int]],
) -> Batch:
    """Return *conversations* about the pictures in *groups* as tensors."""
    encoded = [encoder.encode(conversation) for conversation in conversations]
    tokens = pad_batch([each.tokens for each in encoded], pad_id=PAD_ID)
    answers = tuple(each.answers for each in encoded)
    values, mask = pictures.pixels(groups)
    rows, columns = values.shape[-2] // PATCH, values.shape[-1] // PATCH
    flat = [index for group in groups for index in group]
    patches, slots = pictures.targets(flat, rows=rows, columns=columns)
    return Batch(tokens, answers, values, mask, patches, slots)


def loosened(question: str, rng: random.Random) -> str:
    """Return *question*, sometimes without its final mark or its capital letter."""
    if rng.random() < 0.12:
        question = question[:-1]
    if rng.random() < 0.08:
        question = question[0].lower() + question[1:]
    return question
