"""The header of a run: a JSON file beside the output that says how the captions were made."""

from __future__ import annotations

import json
import platform
from collections.abc import Mapping
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

from idefics_cli import __version__
from idefics_cli.caption.job import CaptionJob
from idefics_cli.caption.resume.run_files import write_beside
from idefics_cli.caption.sinks.base import TEXT_EXTENSION
from idefics_cli.core.colours import WHITE, hex_of
from idefics_cli.core.servers import UPLOAD_EDGE, ServerSpec
from idefics_cli.core.types import LoadSpec
from idefics_cli.core.versions import installed_version
from idefics_cli.models.families.few_shot import Shot

_PACKAGES = ("torch", "transformers", "pillow", "bitsandbytes")


def run_settings(
    spec: LoadSpec, job: CaptionJob, format_: str, more: Mapping[str, object] | None = None
) -> dict[str, object]:
    """Return the settings on which the captions of a run depend, as values for JSON.

    The device, the threads and the batch size are left out, because they only change the speed.
    *more* replaces or adds settings.
    """
    named = {f"question {q.name}": q.prompt for q in job.questions if q.name}
    sampling = {name.replace("_", " "): value for name, value in asdict(job.sampling).items()}
    # No option sets stop texts, and earlier versions have no such setting. So they are left out,
    # and a run that an earlier version began can be continued.
    del sampling["stop"]
    return {
        "format": format_,
        "model": spec.name or spec.repo,
        **(_here(spec) if spec.server is None else _at_server(spec.server)),
        **(named or {"prompt": job.questions[0].prompt}),
        **_unless("text extension", job.text_extension, TEXT_EXTENSION),
        **_unless("samples", job.samples, 1),
        **_unless("background", hex_of(job.limits.background), hex_of(WHITE)),
        **_unless("constraint", _constraint(job), None),
        **_unless("banned", list(job.banned), []),
        **_unless("examples", [_named(shot) for shot in job.shots], []),
        "mode": job.mode,
        **sampling,
        **{name.replace("_", " "): value for name, value in asdict(job.wording).items()},
        **(more or {}),
    }


def _here(spec: LoadSpec) -> dict[str, object]:
    adapter = spec.adapter
    return {
        "revision": spec.revision,
        **_unless("adapter", adapter and f"{adapter.name} ({adapter.digest[:12]})", None),
        "dtype": spec.dtype,
        "quantization": spec.quantization,
        "splitting": spec.splitting,
        **_unless("longest edge", spec.longest_edge, None),
    }


def _at_server(server: ServerSpec) -> dict[str, object]:
    # Our own server gets the bytes of a file, whatever its size.
    return {"server": server.url, "upload edge": None if server.is_ours else UPLOAD_EDGE}


def _constraint(job: CaptionJob) -> str | None:
    if job.form is None:
        return None
    constraint = job.form.constraint
    told = ", in the prompt" if job.form.instruction else ""
    return f"{constraint.kind}{told}: {constraint.text}"


def _named(shot: Shot) -> str:
    """Return an example as the digests of its pictures, its prompt and its answer."""
    parts = (p if isinstance(p, str) else f"[{p.digest[:12]}]" for p in shot.parts)
    return f"{''.join(parts)} {shot.answer}"


def _unless(name: str, value: object, default: object) -> dict[str, object]:
    # A setting with its default value is left out, because runs of earlier versions lack the
    # setting. So a run that an earlier version began can be continued.
    return {} if value == default else {name: value}


class RunHeader:
    """The header of one run, for people and for later programs.

    Args:
        spec: The model.
        settings: The result of `run_settings`.
        items: What the items of the run are, in the plural.

    Attributes:
        has_begun: Whether the model is loaded. Until then, the header of an earlier run stays.
    """

    def __init__(
        self, spec: LoadSpec, settings: Mapping[str, object], items: str = "pictures"
    ) -> None:
        self._items = items
        self._fields = {**_about(spec, settings), "started": _now()}
        self.has_begun = False

    def begin_run(self, commit: str | None) -> None:
        """Record that the model is loaded, and the commit of its weights."""
        self._fields["commit"] = commit
        self.has_begun = True

    def write(self, path: Path, *, end: str | None, counts: Mapping[str, int]) -> None:
        """Write the header to *path*, whole or not at all.

        Args:
            path: The file.
            end: How the run ended; None while it is running.
            counts: Numbers of items that were captioned, failed and so on.

        Raises:
            IdeficsError: If the file cannot be written.
        """
        self._fields["end"] = end
        self._fields["ended"] = _now() if end else None
        self._fields[self._items] = dict(counts)
        write_beside(path, json.dumps(self._fields, indent=2).encode() + b"\n")


def _about(spec: LoadSpec, settings: Mapping[str, object]) -> dict[str, object]:
    versions = {"idefics-cli": __version__, "python": platform.python_version()}
    for name in _PACKAGES:
        if version := installed_version(name):
            versions[name] = version
    place: dict[str, object] = {"device": spec.device, "attention": spec.attention}
    return {
        "model": spec.name or spec.repo,
        "repository": spec.repo,
        "revision": spec.revision,
        **(place if spec.server is None else {"server": spec.server.url}),
        "settings": dict(settings),
        "versions": versions,
    }


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
