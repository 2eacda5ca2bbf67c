"""Sample pictures with right answers, on which users can try the tool: `idefics demo DIR`."""

from __future__ import annotations

import io
import json
import random
from dataclasses import asdict, dataclass
from pathlib import Path

from idefics_cli.core.errors import IdeficsError, UsageError
from idefics_cli.core.files import check_folder, write_whole
from idefics_cli.demo.questions import TASKS, Question, ask
from idefics_cli.demo.scenes import Scene, caption, scene_for_split

METADATA = "metadata.jsonl"
MAX_SAMPLES = 100_000
# Each seed of the user has its own range of a million scene numbers, from 1,000,000 on. Training
# and its evaluation use the numbers 0 to 199,999.
_SCENES_PER_SEED = 1_000_000


@dataclass(frozen=True, slots=True)
class Sample:
    """A picture that was written, and right answers about it.

    Attributes:
        file_name: Name of the picture in the folder.
        caption: The right answer to "Describe this image.".
        questions: One question of every task that fits the scene, except captions.
    """

    file_name: str
    caption: str
    questions: tuple[Question, ...]


def write_samples(folder: Path, *, count: int, seed: int) -> list[Sample]:
    """Write *count* PNG files of scenes that training never showed, and `metadata.jsonl`.

    The metadata has a row for each picture (`file_name`, `caption`, `questions`), in the image
    folder format of Hugging Face datasets. It is written last, so a folder with metadata has all
    pictures. The same arguments give the same pixels and rows on every machine. A second call with
    the same arguments changes nothing.

    Args:
        folder: The folder to write to. It is made if it does not exist; other files in it stay.
        count: Number of pictures, 1 to `MAX_SAMPLES`.
        seed: A number, 0 or more, that chooses the scenes.

    Raises:
        UsageError: If a number is out of range, *folder* is a file, or a file to write exists
            with other content.
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
    # Only drawing needs Pillow and numpy, so they are imported here.
    from idefics_cli.demo.drawing import render

    buffer = io.BytesIO()
    render(scene).save(buffer, "PNG")
    return buffer.getvalue()


def _refuse_to_overwrite(
    folder: Path, scenes: list[Scene], samples: list[Sample], rows: bytes
) -> None:
    """Raise an error if a file to write exists with other content; write nothing."""
    check_folder(folder)
    for sample, scene in zip(samples, scenes, strict=True):
        path = folder / sample.file_name
        if _exists(path) and not _shows(path, scene):
            raise _taken_name(path)
    metadata = folder / METADATA
    if _exists(metadata) and not (metadata.is_file() and metadata.read_bytes() == rows):
        raise _taken_name(metadata)


def _exists(path: Path) -> bool:
    return path.exists() or path.is_symlink()


def _shows(path: Path, scene: Scene) -> bool:
    """Whether the PNG at *path* has the pixels of *scene*."""
    from PIL import Image

    from idefics_cli.demo.drawing import render

    expected = render(scene)
    try:
        with Image.open(path, formats=["PNG"]) as image:
            return image.size == expected.size and image.tobytes() == expected.tobytes()
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError):
        return False


def _taken_name(path: Path) -> UsageError:
    return UsageError(
        f"`{path}` exists and holds other content",
        hint="choose an empty or a new folder, or for this one its former --count and --seed",
    )


def _write_new(path: Path, content: bytes) -> None:
    """Write *content* atomically to *path*, unless that file exists.

    If it exists, an earlier check has found that it has the same content.
    """
    if not path.exists():
        write_whole(path, content, durable=False)
