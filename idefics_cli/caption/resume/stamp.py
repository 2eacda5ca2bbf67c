"""Digests and stamps of pictures, by which a later run sees whether a picture has changed."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass, field
from io import BufferedReader, FileIO

from idefics_cli.caption.item import CaptionItem
from idefics_cli.core.errors import ImageError
from idefics_cli.core.files import stamp_of_file, stamp_of_status
from idefics_cli.core.sources import MOST_FILE_BYTES, is_uri
from idefics_cli.core.types import Attachment
from idefics_cli.images.tars import open_member, split_member

# Each reader holds a file of up to this size in memory, so that it is read only once. A JPEG from a
# camera has some 10 MB. A larger file is read twice: for its digest, and by the decoder.
_MAX_BYTES = 64 * 2**20
_BLOCK_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class FileContent:
    """Digest and stamp of a file, for the fields of `CaptionRecord` with the same names."""

    sha256: str | None = None
    stamp: str | None = None


@dataclass(frozen=True, slots=True)
class PictureFile:
    """A picture as it was read.

    Attributes:
        content: Digest and stamp of the file.
        data: The bytes of the file; None for a source other than a file, for a file that cannot be
            read, and for a file that is too large to be held in memory.
        has_changed: Whether the file changed while it was read.
        error: Why the file cannot be read; None leaves that to the image loader.
    """

    content: FileContent
    data: bytes | None = field(default=None, repr=False)
    has_changed: bool = False
    error: ImageError | None = None


def read_picture(picture: CaptionItem, *, max_bytes: int = _MAX_BYTES) -> PictureFile:
    """Read the file of *picture* once, for all uses of its bytes.

    A file that cannot be read raises no error here. The image loader later raises one that says
    why.
    """
    if (found := split_member(picture.attachment.source)) is not None:
        return _read_member(picture, found[0], max_bytes)
    try:
        with _open_regular(picture.attachment.source) as file:
            before = os.fstat(file.fileno())
            if before.st_size > MOST_FILE_BYTES:  # the loader refuses it
                return PictureFile(FileContent(None, stamp_of(picture)))
            data = file.read() if before.st_size <= max_bytes else None
            sha256 = (
                hashlib.sha256(data) if data is not None else hashlib.file_digest(file, "sha256")
            )
            after = os.fstat(file.fileno())
    except (OSError, ValueError):  # ValueError: NUL in the name
        return PictureFile(FileContent(None, stamp_of(picture)))
    stamp = _with_columns(stamp_of_status(before), picture)
    content = FileContent(sha256.hexdigest(), stamp)
    return PictureFile(content, data, has_changed=stamp_of_status(before) != stamp_of_status(after))


def _read_member(picture: CaptionItem, tar: str, max_bytes: int) -> PictureFile:
    # The archive may grow while it is read; the bytes of its members stay where they are.
    stamp = _with_columns(stamp_of_file(tar), picture)
    try:
        with open_member(picture.attachment.source, picture.span) as file:
            data = file.read(max_bytes + 1)
            sha256 = hashlib.sha256(data)
            while block := file.read(_BLOCK_BYTES):
                sha256.update(block)
    except ImageError as error:
        # Without a stamp, the next run reads the picture again.
        is_changing = error.kind == "truncated"
        return PictureFile(FileContent(None, None if is_changing else stamp), error=error)
    except OSError:
        return PictureFile(FileContent(None, stamp))
    return PictureFile(
        FileContent(sha256.hexdigest(), stamp), data if len(data) <= max_bytes else None
    )


def fetched_picture(picture: CaptionItem, read: Callable[[Attachment], bytes]) -> PictureFile:
    """Return a picture that *read* fetches; see `PictureFile`."""
    try:
        data = read(picture.attachment)
    except ImageError as error:
        return PictureFile(FileContent(None, stamp_of(picture)), error=error)
    return PictureFile(FileContent(hashlib.sha256(data).hexdigest(), stamp_of(picture)), data)


def sha256_of(picture: CaptionItem) -> str | None:
    """Return the digest of the file of *picture*; None if the file cannot be read."""
    if (found := split_member(picture.attachment.source)) is not None:
        return _read_member(picture, found[0], 0).content.sha256
    try:
        with _open_regular(picture.attachment.source) as file:
            if os.fstat(file.fileno()).st_size > MOST_FILE_BYTES:
                return None
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError):
        return None


def stamp_of(picture: CaptionItem) -> str | None:
    """Return the stamp of *picture*: the stamp of its file, `#`, and the digest of its columns.

    If size and time of change are the same, the content of a file is assumed to be the same.
    The file of a picture in a tar archive is the archive.
    For a source other than a file, its version stands before the `#`, if there is one. For a
    picture without columns, there is no `#`. If there is nothing of all this, the stamp is None.
    """
    source = picture.attachment.source
    stamp = picture.version if is_uri(source) else stamp_of_file(source)
    if stamp is None and (found := split_member(source)) is not None:
        stamp = stamp_of_file(found[0])
    return _with_columns(stamp, picture)


def _with_columns(stamp: str | None, picture: CaptionItem) -> str | None:
    if not picture.columns:
        return stamp
    columns = hashlib.sha256(repr(sorted(picture.columns)).encode("utf-8", "surrogateescape"))
    return f"{stamp or ''}#{columns.hexdigest()[:16]}"


def _open_regular(source: str) -> BufferedReader:
    """Open a regular file.

    Raises:
        OSError: If *source* is not a regular file. A pipe or a device could be read without end.
    """
    if is_uri(source):
        raise FileNotFoundError(source)
    # Opening a pipe must not wait for its writer.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    descriptor = os.open(source, flags)
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return BufferedReader(FileIO(descriptor))
    os.close(descriptor)
    raise OSError(f"`{source}` is not a regular file")
