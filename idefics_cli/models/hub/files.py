"""Safe reading of the files in a model's folder, which may come from anybody."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from idefics_cli.core.errors import ModelError
from idefics_cli.core.files import read_regular_file
from idefics_cli.core.json_text import parse_json
from idefics_cli.models.families.geometry import Json

# Files other than weights may have at most this size. The tokenizer of Llama 3 has 17 MB, and the
# largest tokenizers of today have 35 MB.
_LIMIT_BYTES = 2**28
# Largest size of a JSON file that this module parses. In memory, parsed JSON takes up to 30 times
# the size of the file.
_JSON_LIMIT_BYTES = 2**25
_READ_BY_THE_LIBRARY = (".json", ".jinja", ".model", ".txt", ".safetensors")
# A pointer file of Git LFS begins with this text; see
# https://github.com/git-lfs/git-lfs/blob/main/docs/spec.md.
_LFS_START = b"version https://git-lfs"


def check_files(folder: Path, name: str) -> None:
    """Check that no file in *folder* is a pipe, a device, a Git LFS pointer or of absurd size.

    transformers opens these files itself. It would wait for a pipe, read a device without end,
    and report a pointer as a damaged file. Links that lead nowhere count as missing files.

    Args:
        folder: Folder of the model.
        name: Name of the model in errors.

    Raises:
        ModelError: If a file fails the check, or cannot be read.
    """
    try:
        paths = sorted(path for path in folder.iterdir() if path.suffix in _READ_BY_THE_LIBRARY)
        for path in paths:
            if path.exists():
                _check_file(path, name)
    except OSError as error:
        where = Path(str(error.filename)).name if error.filename else folder.name
        raise ModelError(
            f"cannot read {where} of `{name}`: {error.strerror}",
            hint="check that you may read the folder and every file in it",
        ) from error


def read_json(path: Path, name: str) -> Json:
    """Return the object in the JSON file *path*, empty if there is no file.

    Raises:
        ModelError: If the file cannot be read or holds no JSON object.
    """
    try:
        content = read_regular_file(path, limit_bytes=_JSON_LIMIT_BYTES)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise ModelError(f"cannot read {path.name} of `{name}`: {error.strerror}") from error
    if content.startswith(_LFS_START):
        raise _pointer_error(path, name)
    try:
        value = parse_json(content)
    except ValueError as error:
        raise ModelError(
            f"{path.name} of `{name}` is not valid JSON", hint="copy or download the file again"
        ) from error
    if not isinstance(value, dict):
        raise ModelError(
            f"{path.name} of `{name}` holds no JSON object", hint="copy or download the file again"
        )
    return value


def read_text(path: Path, name: str) -> str | None:
    """Return the text in the file *path*; None if there is no file.

    Raises:
        ModelError: If the file cannot be read or is not UTF-8.
    """
    try:
        return read_regular_file(path, limit_bytes=_LIMIT_BYTES).decode("utf-8")
    except FileNotFoundError:
        return None
    except OSError as error:
        raise ModelError(f"cannot read {path.name} of `{name}`: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ModelError(
            f"{path.name} of `{name}` is not UTF-8 text", hint="copy or download the file again"
        ) from error


def _check_file(path: Path, name: str) -> None:
    status = path.stat()
    if not stat.S_ISREG(status.st_mode):
        raise ModelError(
            f"{path.name} of `{name}` is not a regular file",
            hint="copy or download the file again",
        )
    if path.suffix != ".safetensors" and status.st_size > _LIMIT_BYTES:
        raise ModelError(
            f"{path.name} of `{name}` is larger than any file of its kind",
            hint="copy or download the file again",
        )
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        if file.read(len(_LFS_START)) == _LFS_START:
            raise _pointer_error(path, name)


def _pointer_error(path: Path, name: str) -> ModelError:
    what = "the weights" if path.suffix == ".safetensors" else "the file itself"
    return ModelError(
        f"{path.name} of `{name}` is a Git LFS pointer, not {what}",
        hint="run `git lfs pull` in the folder",
    )
