"""The store of quantized weights on the disk, so that only the first start has to quantize.

The weights of each model have a folder, with the files that `save_pretrained` wrote, and a manifest
that is written last. A folder is written under another name and then renamed, so that it appears
complete or not at all.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from idefics_cli.core.errors import ModelError
from idefics_cli.core.files import read_regular_file
from idefics_cli.core.json_text import parse_json
from idefics_cli.core.types import LoadSpec
from idefics_cli.core.versions import installed_version
from idefics_cli.models.families.spec import find_family

_MANIFEST = "idefics.json"
_LIMIT_BYTES = 2**20
_PARTIAL = ".partial-"
# A save removes partial folders that are older than this: an earlier save has crashed and left them
# behind. Another process may still be writing a younger folder.
_PARTIAL_SECONDS = 24 * 3600
_SPARE_BYTES = 2**30
_CHUNK = 2**22
# Packages whose versions are part of the digest, because each version may write other files.
_MAKERS = ("bitsandbytes", "transformers")


class Savable(Protocol):
    """A model, or a part of one, that writes itself to a folder as models of transformers do."""

    def save_pretrained(self, save_directory: Path) -> object:
        """Write all files to *save_directory*."""
        ...


@dataclass(frozen=True, slots=True)
class Stored:
    """Quantized weights on the disk.

    Attributes:
        folder: Folder with the files.
        repo: Repository of the original model.
        quantization: Method of quantization.
        size_bytes: Size of all files.
    """

    folder: Path
    repo: str
    quantization: str
    size_bytes: int


def find_folder(
    root: Path, source: Path, spec: LoadSpec, *, layout: tuple[str | int | None, ...] = ()
) -> Path:
    """Return the folder for the quantized weights of *spec*, made from the files in *source*.

    If a file, the method, the layout or the version of a library changes, so does the folder.

    Args:
        root: Folder of all quantized weights.
        source: Folder of the model.
        spec: The choices for the model.
        layout: Layout of the weights in the files; () for bitsandbytes.
    """
    files = [
        # In the Hugging Face cache these files are links to files that are named by their content,
        # so the digest includes the names behind the links.
        (path.name, (real := path.resolve()).name, real.stat().st_size, real.stat().st_mtime_ns)
        for path in [*sorted(source.glob("*.safetensors")), source / "config.json"]
    ]
    made: tuple[object, ...] = (spec.quantization, spec.format_4bit, spec.dtype, layout)
    if spec.adapter is not None:
        made += (spec.adapter.digest,)
    parts = (files, *made, find_family(spec.family).unquantized, _versions())
    digest = hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]
    name = spec.repo.strip("/").replace("/", "--")[-80:]
    return root / f"{name}--{spec.quantization}--{digest}"


def is_whole(folder: Path) -> bool:
    """Whether the files in *folder* have the sizes and checksums with which they were written."""
    files = _read(folder).get("files")
    if not isinstance(files, dict) or not files:
        return False
    try:
        return all(_is_intact(folder, name, listed) for name, listed in files.items())
    except (OSError, ValueError):  # ValueError: a name that no file can have
        return False


def save_weights(model: Savable, folder: Path, spec: LoadSpec, *, needed_bytes: int) -> None:
    """Write *model* to *folder*, completely or not at all.

    Args:
        model: A model with quantized weights, before its first forward.
        folder: Folder from `find_folder`.
        spec: The choices for the model.
        needed_bytes: Largest size of the files.

    Raises:
        ModelError: If there is no room, or the files cannot be written.
    """
    partial = folder.with_name(f"{_PARTIAL}{os.getpid()}-{folder.name}")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        _remove_partial(folder.parent)
        if shutil.disk_usage(folder.parent).free < needed_bytes + _SPARE_BYTES:
            raise ModelError(f"no room for quantized weights in `{folder.parent}`")
        try:
            model.save_pretrained(partial)
            files = {path.name: _checksum(path) for path in sorted(partial.iterdir())}
            about = {"repo": spec.repo, "quantization": spec.quantization, "files": files}
            (partial / _MANIFEST).write_text(json.dumps(about, indent=1), encoding="utf-8")
            shutil.rmtree(folder, ignore_errors=True)
            partial.rename(folder)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise ModelError(f"cannot store quantized weights in `{folder.parent}`: {error}") from error


def list_stored(root: Path) -> Iterator[Stored]:
    """Yield all quantized weights below *root*, in the order of their names."""
    for path in sorted(root.glob(f"*/{_MANIFEST}")):
        if path.parent.name.startswith(_PARTIAL):
            continue
        about = _read(path.parent)
        repo, method = about.get("repo"), about.get("quantization")
        yield Stored(
            path.parent,
            repo if isinstance(repo, str) else "unknown",
            method if isinstance(method, str) else "unknown",
            sum(file.lstat().st_size for file in path.parent.iterdir()),
        )


def remove_stored(root: Path, repo: str) -> int:
    """Remove all quantized weights of *repo* below *root*; return how many bytes that frees."""
    freed = 0
    for entry in list(list_stored(root)):
        if entry.repo == repo:
            shutil.rmtree(entry.folder)
            freed += entry.size_bytes
    return freed


def remove_folder(folder: Path) -> None:
    """Remove the weights in *folder*, if there are any."""
    shutil.rmtree(folder, ignore_errors=True)


def _read(folder: Path) -> dict[str, object]:
    try:
        found = parse_json(read_regular_file(folder / _MANIFEST, limit_bytes=_LIMIT_BYTES))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _is_intact(folder: Path, name: str, listed: object) -> bool:
    """Whether the file *name* in *folder* has the size and the checksum that the manifest lists."""
    path = folder / name
    # Another program may have written the manifest: it may name a pipe, or any other file.
    if path.parent != folder or not path.is_file() or not isinstance(listed, list):
        return False
    return listed[:1] == [path.stat().st_size] and _checksum(path) == listed


def _checksum(path: Path) -> list[int]:
    """Return the size and the CRC-32 of a file; this takes about a second for a gigabyte."""
    size = checksum = 0
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            size += len(chunk)
            checksum = zlib.crc32(chunk, checksum)
    return [size, checksum]


def _remove_partial(root: Path) -> None:
    for path in root.glob(f"{_PARTIAL}*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _PARTIAL_SECONDS:
                shutil.rmtree(path)


def _versions() -> list[str]:
    return [installed_version(name) or "" for name in _MAKERS]
