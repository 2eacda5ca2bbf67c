"""Videos as SmolVLM2 takes them: which frames, at which size, and the text around them.

All of it equals transformers 5.24 (processing_smolvlm.py and video_processing_smolvlm.py), whose
video processor itself needs torchvision and num2words.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from idefics_cli.images.video import Frame, Video, VideoFacts
from idefics_cli.models.families.picture import Moments, PictureTensors

# A longer video loses its first and its last second, which often show titles.
_SKIPPED_SECONDS = 1
_MOST_PIXELS = 4096
_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen",
    "nineteen",
)  # fmt: skip
_TENS = ("twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
FILTERS = {0: "nearest-exact", 1: "lanczos", 2: "bilinear", 3: "bicubic"}
"""The filters of torch by their numbers in Pillow."""
MOST_FRAMES = 999
"""The largest number of frames that `spell_number` can spell."""


@dataclass(frozen=True, slots=True)
class VideoSettings:
    """The settings of a video processor; the defaults are those of transformers.

    Attributes:
        max_frames: Most frames of a video that the model sees.
        frames_per_second: How many it sees of a second, as long as *max_frames* suffices.
        longest_edge: Length in pixels to which the longer side of a frame is scaled first.
        frame_edge: Edge in pixels of the square to which it is scaled then.
        resample: Pillow's number of the filter.
        do_resize: Whether frames are scaled.
        do_rescale: Whether bytes are multiplied by *rescale_factor*.
        rescale_factor: A factor.
        do_normalize: Whether *mean* is subtracted, and the rest divided by *std*.
        mean: For each channel.
        std: For each channel.
    """

    max_frames: int = 64
    frames_per_second: float = 1.0
    longest_edge: int = 4 * 364
    frame_edge: int = 364
    resample: int = 1
    do_resize: bool = True
    do_rescale: bool = True
    rescale_factor: float = 1 / 255
    do_normalize: bool = True
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)


class VideoFamily:
    """A family that takes videos.

    Attributes:
        video_settings: The settings of the checkpoint.
    """

    video_settings: VideoSettings = VideoSettings()

    def preprocess_video(
        self, video: Video, recall: Callable[[bytes], PictureTensors | None] = lambda digest: None
    ) -> PictureTensors:
        """Read and scale the frames that the model sees; safe in any thread.

        Args:
            video: The open video, which stays open.
            recall: See `Family.preprocess`.

        Raises:
            ImageError: If the frames cannot be read.
        """
        raise NotImplementedError


def choose_frames(facts: VideoFacts, settings: VideoSettings) -> list[int]:
    """Return the indices of the frames that the model sees, evenly spaced.

    As `SmolVLMVideoProcessor.sample_frames`.
    """
    wanted = min(round(settings.frames_per_second * facts.duration_seconds), settings.max_frames)
    start, end = 0, facts.frames - 1
    rest_seconds = facts.duration_seconds - 2 * _SKIPPED_SECONDS
    if rest_seconds > settings.max_frames * settings.frames_per_second:
        skipped = _SKIPPED_SECONDS * facts.frames_per_second
        start, end = int(skipped), min(int(facts.frames - skipped), end)
    if start >= end:
        start, end = 0, facts.frames - 1
    indices: list[int] = np.unique(np.linspace(start, end, max(1, wanted), dtype=int)).tolist()
    return indices


def scale_frames(
    frames: Iterator[Frame], settings: VideoSettings
) -> tuple[list[Tensor], list[int], tuple[int, int]]:
    """Scale *frames* one by one.

    Returns:
        The frames, uint8 (3, H, W); their indices; and (width, height) of the first before scaling.
    """
    scaled: list[Tensor] = []
    indices: list[int] = []
    size = 0, 0
    for frame in frames:
        height, width = frame.pixels.shape[:2]
        size = size if indices else (width, height)
        scaled.append(_scale(frame.pixels, settings))
        indices.append(frame.index)
    return scaled, indices, size


def _scale(pixels: NDArray[np.uint8], settings: VideoSettings) -> Tensor:
    frame = torch.from_numpy(pixels).permute(2, 0, 1).contiguous()[None]
    if settings.do_resize:
        first = first_size(frame.shape[2], frame.shape[3], settings.longest_edge)
        for size in (first, (settings.frame_edge, settings.frame_edge)):
            frame = _resize(frame, size, settings.resample)
    return frame[0]


def first_size(height: int, width: int, longest_edge: int) -> tuple[int, int]:
    """Return (height, width) to which a frame is scaled before it becomes a square.

    As `get_resize_output_image_size`.
    """
    longest, ratio = min(_MOST_PIXELS, longest_edge), width / height
    if width >= height:
        shorter = int(longest / ratio)
        height, width = shorter + shorter % 2, longest
    else:
        shorter = int(longest * ratio)
        height, width = longest, shorter + shorter % 2
    return max(height, 1), max(width, 1)


def _resize(frames: Tensor, size: tuple[int, int], resample: int) -> Tensor:
    """Return *frames* (B, 3, H, W) in *size*, with the bytes of torchvision's `resize`."""
    if tuple(frames.shape[2:]) == size:
        return frames
    mode = FILTERS[resample]
    # torch 2.11 has no filter "lanczos". transformers then resizes with "bicubic", and so does this
    # function.
    if mode == "lanczos" and not hasattr(torch.ops.aten, "_upsample_lanczos2d_aa"):
        mode = "bicubic"
    if mode == "nearest-exact":
        return torch.nn.functional.interpolate(frames, size, mode=mode)
    return torch.nn.functional.interpolate(
        frames, size, mode=mode, align_corners=False, antialias=True
    )


def frame_levels(settings: VideoSettings) -> Tensor:
    """Return the normalized value of each byte in each channel, float32 (3, 256).

    As `rescale_and_normalize`, which does both steps in one.
    """
    levels = torch.arange(256, dtype=torch.float32).expand(3, 256)
    if not settings.do_normalize:
        return levels * settings.rescale_factor if settings.do_rescale else levels.clone()
    mean, std = torch.tensor(settings.mean), torch.tensor(settings.std)
    if settings.do_rescale:
        factor = 1.0 / settings.rescale_factor
        mean, std = mean * factor, std * factor
    return levels.sub(mean.view(-1, 1)).div_(std.view(-1, 1))


def moments_of(facts: VideoFacts, indices: Sequence[int]) -> Moments:
    """Return the times of the frames with these *indices*, in whole seconds."""
    rate = facts.frames_per_second
    return Moments(tuple(int(index / rate) for index in indices), int(facts.duration_seconds))


def spell_video(moments: Moments, frame: str) -> str:
    """Return the text of a video in a prompt, with *frame* for each frame.

    As `SmolVLMProcessor.replace_video_token`.
    """
    count = spell_number(len(moments.seconds))
    duration = timedelta(seconds=moments.duration_seconds)
    intro = (
        f"You are provided the following series of {count} frames from a {duration} [H:MM:SS] "
        "video.\n"
    )
    shown = (f"\nFrame from {s // 60:02d}:{s % 60:02d}:{frame}" for s in moments.seconds)
    return intro + "".join(shown) + "\n\n"


def spell_number(number: int) -> str:
    """Return *number*, from 0 to 999, in English words: "one hundred and twenty-one"."""
    if number < 20:
        return _ONES[number]
    if number < 100:
        tens, ones = divmod(number, 10)
        return _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")
    hundreds, rest = divmod(number, 100)
    return f"{_ONES[hundreds]} hundred" + (f" and {spell_number(rest)}" if rest else "")
