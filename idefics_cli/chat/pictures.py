"""The pictures of sessions: read once, named by the hash of their bytes, kept for good."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import re
import tempfile
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from idefics_cli.core.errors import SessionError
from idefics_cli.core.types import Attachment, ImageLimits
from idefics_cli.models.image_formats import HEAD_BYTES, identify
from idefics_cli.models.image_sources import ImageSources, describe_source, is_clipboard

_SUFFIXES = {"JPEG": ".jpg", "TIFF": ".tif", "JPEG2000": ".jp2"}  # others: Pillow's name
UNFINISHED = ".part"
_DATA_START = "data:application/octet-stream;base64,"
_PASSWORD = re.compile(r"^([a-z][a-z0-9+.-]*://)[^/?#]*@", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Staged:
    """A picture that goes with the next question.

    Attributes:
        source: How the user named it, for people.
        data: The bytes of the picture file.
        width: Pixels, as seen by a person; 0 when unknown.
        height: As *width*.
        is_turned: Its EXIF data say that it was taken with the camera turned or mirrored.
    """

    source: str
    data: bytes
    width: int = 0
    height: int = 0
    is_turned: bool = False

    @property
    def digest(self) -> str:
        """SHA-256 of the bytes, in hexadecimal."""
        return hashlib.sha256(self.data).hexdigest()

    @property
    def suffix(self) -> str:
        """What a file of these bytes is called by, as `.png`."""
        plugin = identify(self.data[:HEAD_BYTES]).plugin
        if plugin is None:
            return ".bin"
        return _SUFFIXES.get(plugin, f".{plugin.lower()[:5]}")


def stage(
    source: str, limits: ImageLimits, *, offline: bool = False, stdin: BinaryIO | None = None
) -> Staged:
    """Read a picture from anywhere, whole, and check that a model can be shown it.

    Args:
        source: As `Attachment.source`.
        limits: What is accepted.
        offline: Refuse addresses.
        stdin: Standard input as bytes; None takes that of the process.

    Raises:
        ImageError: If it cannot be read or is no picture.
    """
    from idefics_cli.models.images import ImageLoader, is_turned

    loader = ImageLoader(limits, offline=offline, stdin=stdin)
    if is_clipboard(source):
        copied = loader.open(Attachment(source))
        buffer = io.BytesIO()
        copied.save(buffer, "PNG")
        return Staged("clipboard", buffer.getvalue(), *copied.size)
    with ImageSources(limits, offline=offline, stdin=stdin).open(source) as stream:
        data = stream.read()
    # From the very bytes that are kept: the file may change, and stdin is read once.
    image = loader.open_stream(io.BytesIO(data), source, draft_edge=1)
    width, height = image.info["original_size"]
    return Staged(source, data, width, height, is_turned(data))


class PictureFolder:
    """A folder of picture files that are named by their content.

    Args:
        path: The folder; made, for its owner only, when the first picture is added.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, staged: Staged) -> str:
        """Return the name of the file that holds the bytes of *staged*, written if need be.

        Raises:
            OSError: If it cannot be written.
        """
        name = staged.digest + staged.suffix
        target = self.path / name
        if not (target.is_file() and target.stat().st_size == len(staged.data)):
            make_private_folder(self.path)
            write_whole(target, staged.data)
        return name

    def restore(self, name: str, source: str) -> bool:
        """Return whether the file *name* is there, copied again from *source* if need be."""
        target = self.path / name
        if target.is_file():
            return True
        try:
            # A pipe would be waited for.
            if not os.path.isfile(source):
                return False
            staged = Staged(source, Path(source).read_bytes())
            if staged.digest != name.partition(".")[0]:
                return False
            make_private_folder(self.path)
            write_whole(target, staged.data)
        except (OSError, ValueError):
            return False
        return True

    def unwanted(self, wanted: Collection[str]) -> list[Path]:
        """Return the files that are not *wanted*, and what a killed program left half done."""
        files = self.path.iterdir() if self.path.is_dir() else ()
        return [file for file in files if file.name not in wanted and file.is_file()]


def make_private_folder(path: Path) -> None:
    """Make the folder *path* and its parents, for their owner only, where they are not there."""
    if path.is_dir():
        return
    if not path.parent.is_dir():
        make_private_folder(path.parent)
    path.mkdir(mode=0o700, exist_ok=True)


def write_whole(target: Path, data: bytes) -> None:
    """Write *data* to *target*, readable by its owner only: all of it or nothing."""
    # mkstemp makes files with mode 0600.
    descriptor, name = tempfile.mkstemp(dir=target.parent, suffix=UNFINISHED)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        os.unlink(name)
        raise
    sync_folder(target.parent)


def sync_folder(path: Path) -> None:
    """Bring the names in the folder *path* to the disk, where a system can do that."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def unwritable(what: str, error: OSError) -> SessionError:
    """Return the error for a session or picture that cannot be written."""
    return SessionError(
        f"cannot keep {what}: {(error.strerror or str(error)).lower()}",
        hint="free some space or check the permissions; `--no-save` chats without keeping",
    )


def read_back(attachment: Attachment) -> bytes:
    """Return the bytes of a picture of a session: of a file, or what `data_uri` made.

    Raises:
        OSError: If the file cannot be read.
    """
    if attachment.source.startswith(_DATA_START):
        return base64.b64decode(attachment.source.removeprefix(_DATA_START))
    return Path(attachment.source).read_bytes()


def data_uri(staged: Staged) -> str:
    """Return the bytes of *staged* as a `data:` URI."""
    return _DATA_START + base64.b64encode(staged.data).decode("ascii")


def shown_source(source: str) -> str:
    """Return the name of a picture for records: absolute for a file, short for a `data:` URI."""
    if source[:5].lower() == "data:" or source == "-":
        return describe_source(source)
    if "://" in source[:12] or is_clipboard(source):
        return _PASSWORD.sub(r"\1…@", source)
    return os.path.abspath(os.path.expanduser(source))
