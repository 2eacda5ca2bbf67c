"""What a run was made with, for people and later programs: a JSON file beside the output."""

from __future__ import annotations

import contextlib
import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from importlib import metadata
from pathlib import Path

from idefics_cli import __version__
from idefics_cli.caption.job import CaptionJob
from idefics_cli.core.files import cannot_write, remove_unfinished, write_whole
from idefics_cli.core.types import LoadSpec

_PACKAGES = ("torch", "transformers", "pillow", "bitsandbytes")


def run_settings(spec: LoadSpec, job: CaptionJob) -> dict[str, object]:
    """Return what the captions of *job* depend on, by name, as JSON holds it.

    Not the device, threads or batches, which change how fast they come.
    """
    named = {f"question {q.name}": q.prompt for q in job.questions if q.name}
    sampling = {name.replace("_", " "): value for name, value in asdict(job.sampling).items()}
    return {
        "model": spec.name or spec.repo,
        "revision": spec.revision,
        "dtype": spec.dtype,
        "quantization": spec.quantization,
        "splitting": spec.splitting,
        **(named or {"prompt": job.questions[0].prompt}),
        "mode": job.mode,
        **sampling,
        **{name.replace("_", " "): value for name, value in asdict(job.wording).items()},
    }


def run_header(spec: LoadSpec, settings: Mapping[str, object]) -> dict[str, object]:
    """Return the header of a run with the model *spec*: what is known before it begins."""
    versions = {"idefics-cli": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "model": spec.name or spec.repo,
        "repository": spec.repo,
        "revision": spec.revision,
        "device": spec.device,
        "attention": spec.attention,
        "settings": dict(settings),
        "versions": versions,
    }


def write_header(path: Path, header: Mapping[str, object]) -> None:
    """Write *header* to *path*, whole or not at all.

    Raises:
        IdeficsError: If it cannot be written.
    """
    write_beside(path, json.dumps(header, indent=2).encode() + b"\n")


def write_beside(path: Path, data: bytes) -> None:
    """Write *data* to *path*, a file beside the output of this run: whole or not at all.

    Raises:
        IdeficsError: If it cannot be written.
    """
    try:
        # One run at a time has the output, so what is unfinished is of one that was killed.
        remove_unfinished(path)
        write_whole(path, data)
    except OSError as error:
        raise cannot_write(path, error) from error
