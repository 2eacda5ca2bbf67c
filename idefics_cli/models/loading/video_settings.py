"""The settings of a checkpoint for videos, from the files of its processor."""

from __future__ import annotations

from pathlib import Path

from idefics_cli.core.errors import ModelError
from idefics_cli.core.text import abbreviated
from idefics_cli.models.families.geometry import Json, section
from idefics_cli.models.families.protocols import Processor
from idefics_cli.models.families.videos import FILTERS, MOST_FRAMES, VideoSettings
from idefics_cli.models.hub.files import read_json

_LARGEST_EDGE = 2**14
_LARGEST_NUMBER = 1000


def video_settings(folder: Path, processor: Processor) -> VideoSettings:
    """Return the settings for videos; those of transformers stand for what the files leave out.

    Raises:
        ModelError: If a file is broken, or holds absurd numbers.
    """
    stated, file = _read(folder)
    # `video_sampling` is the older form of three settings. If a file has both forms, the older form
    # wins for `num_frames` and `fps`, and the newer for `size`, as in the constructor of
    # `SmolVLMVideoProcessor` (transformers 5.24, video_processing_smolvlm.py).
    older = section(stated, "video_sampling")
    size = section(stated, "size") or section(older, "video_size")
    tile = section(stated, "max_image_size")
    if not tile:
        tile = dict(getattr(processor.image_processor, "max_image_size", None) or {})
    given: Json = {
        **{key: value for key, value in stated.items() if value is not None},
        "num_frames": older.get("max_frames", stated.get("num_frames")),
        "fps": older.get("fps", stated.get("fps")),
        "size.longest_edge": size.get("longest_edge"),
        "max_image_size.longest_edge": tile.get("longest_edge"),
    }
    read, usual = _Reader(given, f"{file} of `{folder.name}`"), VideoSettings()
    return VideoSettings(
        max_frames=read.whole("num_frames", usual.max_frames, 1, MOST_FRAMES),
        frames_per_second=read.number("fps", usual.frames_per_second, 0),
        longest_edge=read.whole("size.longest_edge", usual.longest_edge, 1, _LARGEST_EDGE),
        frame_edge=read.whole("max_image_size.longest_edge", usual.frame_edge, 1, _LARGEST_EDGE),
        resample=read.whole("resample", usual.resample, min(FILTERS), max(FILTERS)),
        do_resize=bool(given.get("do_resize", True)),
        do_rescale=bool(given.get("do_rescale", True)),
        rescale_factor=read.number("rescale_factor", usual.rescale_factor, 1e-9),
        do_normalize=bool(given.get("do_normalize", True)),
        mean=read.channels("image_mean", usual.mean, -_LARGEST_NUMBER),
        std=read.channels("image_std", usual.std, 1e-9),
    )


def _read(folder: Path) -> tuple[Json, str]:
    """Return the settings, and the file that has them, in the order of transformers."""
    merged = section(read_json(folder / "processor_config.json", folder.name), "video_processor")
    if merged:
        return merged, "processor_config.json"
    for name in ("video_preprocessor_config.json", "preprocessor_config.json"):
        if stated := read_json(folder / name, folder.name):
            return stated, name
    return {}, "preprocessor_config.json"


class _Reader:
    """Reads numbers of *given*, and says *where* a wrong one is."""

    def __init__(self, given: Json, where: str) -> None:
        self._given = given
        self._where = where

    def whole(self, key: str, usual: int, least: int, most: int) -> int:
        value = self._given.get(key)
        if value is None:
            return usual
        if type(value) is not int or not least <= value <= most:
            raise self._wrong(key, value)
        return value

    def number(self, key: str, usual: float, least: float) -> float:
        value = self._given.get(key)
        return usual if value is None else self._checked(key, value, least)

    def channels(self, key: str, usual: tuple[float, ...], least: float) -> tuple[float, ...]:
        values = self._given.get(key)
        if values is None:
            return usual
        if not isinstance(values, list) or len(values) != len(usual):
            raise self._wrong(key, values)
        return tuple(self._checked(key, value, least) for value in values)

    def _checked(self, key: str, value: object, least: float) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self._wrong(key, value)
        if not least <= value <= _LARGEST_NUMBER:
            raise self._wrong(key, value)
        return value

    def _wrong(self, key: str, value: object) -> ModelError:
        return ModelError(
            f"{self._where} says `{key}` is {abbreviated(str(value), 30)}, which no model of this "
            "family has",
            hint="copy or download the file again",
        )
