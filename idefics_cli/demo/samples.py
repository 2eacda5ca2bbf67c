"""Sample pictures with their truth, for users to try the tool on: `idefics demo DIR`."""

from __future__ import annotations

import io
import json
import os
import random
from dataclasses import asdict, dataclass
from pathlib import Path

from idefics_cli.core.errors import IdeficsError, UsageError
from idefics_cli.demo.questions import TASKS, Question, ask
from idefics_cli.demo.scenes import Scene, caption, scene_for_split

METADATA = "metadata.jsonl"
MAX_SAMPLES = 100_000
# Scenes 0 to 199,999 are those of the watch during training and of the evaluation.
_SCENES_PER_SEED = 1_000_000


@dataclass(frozen=True, slots=True)
class Sample:
    """A written picture and what is true of it.

    Attributes:
        file_name: Of the picture, in the folder.
        caption: What the built-in model should say to "Describe this image.".
        questions: One of every task that the scene offers; the caption is not among them.
    """

    file_name: str
    caption: str
    questions: tuple[Question, ...]


def write_samples(folder: Path, *, count: int, seed: int) -> list[Sample]:
    """Write *count* PNG files of scenes that training never showed, and `metadata.jsonl`.

    The rows of the metadata (`file_name`, `caption`, `questions`) follow the image folder
    format of Hugging Face datasets. The same call gives the same pixels and rows on every
    machine, and leaves a folder that it wrote before as it is. The metadata is written last:
    where it is, all pictures are.

    Args:
        folder: Made if it is not there; other files in it are left alone.
        count: 1 to `MAX_SAMPLES`.
        seed: 0 or more; another seed gives other scenes.

    Raises:
        UsageError: If a number is out of range, *folder* is a file, or a file in it has a
            name that is needed and holds something else.
        IdeficsError: If the folder cannot be written.
    """
    if not 1 <= count <= MAX_SAMPLES:
        raise UsageError(f"cannot write {count} samples", hint=f"ask for 1 to {MAX_SAMPLES:,}")
    if seed < 0:
        raise UsageError(f"the seed {seed} is negative", hint="use 0 or more")
    scenes = [
        scene_for_split("combo", _SCENES_PER_SEED * (seed + 1) + index) for index in range(count)
    ]
    samples = [_sample(scene, seed, index) for index, scene in enumerate(scenes)]
    rows = "".join(json.dumps(asdict(sample)) + "\n" for sample in samples).encode()
    try:
        _refuse_to_overwrite(folder, scenes, samples, rows)
        folder.mkdir(parents=True, exist_ok=True)
        for sample, scene in zip(samples, scenes, strict=True):
            _write_new(folder / sample.file_name, _png(scene))
        _write_new(folder / METADATA, rows)
    except OSError as error:
        raise IdeficsError(
            f"cannot write samples to `{folder}`: {error.strerror or error}",
            hint="choose a folder that you may write to",
        ) from error
    return samples


def _sample(scene: Scene, seed: int, index: int) -> Sample:
    rng = random.Random(f"questions-{seed}-{index}")
    asked = [ask(scene, rng, task) for task in TASKS if task != "caption"]
    questions = tuple(question for question in asked if question is not None)
    return Sample(f"scene-{index:03}.png", caption(scene), questions)


def _png(scene: Scene) -> bytes:
    # Pillow and numpy load only when something is drawn: listings need only the words.
    from idefics_cli.demo.drawing import render

    buffer = io.BytesIO()
    render(scene).save(buffer, "PNG")
    return buffer.getvalue()


def _refuse_to_overwrite(
    folder: Path, scenes: list[Scene], samples: list[Sample], rows: bytes
) -> None:
    """Check every name before anything is written."""
    if folder.exists() and not folder.is_dir():
        raise UsageError(f"`{folder}` is not a folder", hint="give the name of a folder")
    for sample, scene in zip(samples, scenes, strict=True):
        path = folder / sample.file_name
        if _is_taken(path) and not _shows(path, scene):
            raise _taken(path)
    metadata = folder / METADATA
    if _is_taken(metadata) and not (metadata.is_file() and metadata.read_bytes() == rows):
        raise _taken(metadata)


def _is_taken(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _shows(path: Path, scene: Scene) -> bool:
    """Whether *path* holds the pixels of *scene*, whatever compressed them."""
    from PIL import Image

    from idefics_cli.demo.drawing import render

    expected = render(scene)
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.size == expected.size and image.tobytes() == expected.tobytes()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def _taken(path: Path) -> UsageError:
    return UsageError(
        f"`{path}` exists and holds something else", hint="choose an empty or a new folder"
    )


def _write_new(path: Path, content: bytes) -> None:
    """Write *path* whole or not at all; a file that is there already was found to be equal."""
    if path.exists():
        return
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("xb") as file:
            file.write(content)
        part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise
