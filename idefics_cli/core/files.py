"""Reading of files with a limit, atomic writing, and locks on open files."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from io import BufferedWriter
from pathlib import Path
from typing import IO, BinaryIO

from idefics_cli.core.errors import IdeficsError, UsageError

UNFINISHED = ".part"
# The pattern allows a further extension after `.part`, because a sink may add one.
_UNFINISHED_NAME = re.compile(
    r"\.idefics-[0-9a-f]{8}-(?P<host>[0-9a-f]{8})-(?P<process>\d{1,10})-[0-9a-f]{16}\.part[.\w]*"
)
_LONGEST_LINE = _BLOCK_BYTES = 64 * 2**20
# With these errors, the place of an output is right, and the disk is at fault.
_DISK_FAULTS = frozenset({errno.ENOSPC, errno.EIO, getattr(errno, "EDQUOT", errno.ENOSPC)})
_LEFT_SECONDS = 24 * 3600
# Windows makes locked bytes unreadable, so the locked byte is beyond the end of every file.
_LOCKED_BYTE = 1 << 40


def read_regular_file(path: Path, *, limit_bytes: int) -> bytes:
    """Return the content of the file *path*; never wait for a pipe or read a device.

    Args:
        path: File, or a link to one.
        limit_bytes: Largest size that is read.

    Raises:
        OSError: If the file cannot be read, is not a regular file, or is larger than the limit.
        ValueError: If no file can have this name.
    """
    # With O_NONBLOCK, opening a pipe does not wait, and its kind can then be checked.
    flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    with os.fdopen(os.open(path, flags), "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        content = read_limited(file, limit_bytes + 1) if status.st_size <= limit_bytes else b""
    if max(status.st_size, len(content)) > limit_bytes:
        raise OSError(errno.EFBIG, os.strerror(errno.EFBIG), str(path))
    return content


def read_limited(stream: IO[bytes], limit_bytes: int) -> bytes:
    """Return at most *limit_bytes* bytes from *stream*, without memory for more than it has."""
    # `read(n)` of a file takes memory for n bytes before it reads.
    first = stream.read(min(limit_bytes, _BLOCK_BYTES))
    if len(first) < _BLOCK_BYTES:
        return first
    blocks, left = [first], limit_bytes - len(first)
    while block := stream.read(min(left, _BLOCK_BYTES)):
        blocks.append(block)
        left -= len(block)
    return b"".join(blocks)


def limited_lines(file: BinaryIO) -> Iterator[bytes]:
    """Yield the lines of *file* with their line ends.

    Raises:
        OSError: If it cannot be read, or a line is longer than 64 MiB: a sparse file of any size
            has a single line.
    """
    while line := file.readline(_LONGEST_LINE + 1):
        if len(line) > _LONGEST_LINE:
            raise OSError(errno.EFBIG, "a line is longer than 64 MiB")
        yield line


def write_whole(target: Path, data: bytes, *, private: bool = False, durable: bool = True) -> None:
    """Write *data* to *target* atomically: the file has all of it, or stays as it was.

    Args:
        target: The file to write or replace.
        data: The whole content.
        private: Whether only the owner may read the file. If not, the umask decides.
        durable: Whether to wait until the file is on the disk, which takes some milliseconds.

    Raises:
        OSError: If the file cannot be written; *target* is unchanged.
    """
    with replacing(target, private=private, durable=durable) as file:
        file.write(data)


@contextmanager
def replacing(
    target: Path, *, private: bool = False, durable: bool = False
) -> Iterator[BufferedWriter]:
    """Yield an open file that replaces *target* when the block ends without an error.

    Args:
        target: The file to write or replace.
        private: As in `write_whole`.
        durable: As in `write_whole`.

    Raises:
        OSError: If the file cannot be written; *target* is unchanged.
    """
    # With O_EXCL and a random name, no link is followed and no file of the user is overwritten.
    name = unfinished_path(target)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
    descriptor = os.open(name, flags, 0o600 if private else 0o666)
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        os.replace(name, target)
    except BaseException:
        with suppress(OSError):
            os.unlink(name)
        raise
    if durable:
        sync_folder(target.parent)


def stamp_of_file(path: str | os.PathLike[str]) -> str | None:
    """Return the size and the time of change of a file; None if there is no such file."""
    try:
        return stamp_of_status(os.stat(path))
    except (OSError, ValueError):  # ValueError: NUL in the name
        return None


def stamp_of_status(status: os.stat_result) -> str:
    """Return the size and the time of change of a file with this *status*."""
    return f"{status.st_size}-{status.st_mtime_ns}"


def check_replaceable(path: Path, before: os.stat_result | None) -> None:
    """Check that a file that was read can be replaced.

    Args:
        path: The file.
        before: Its status before it was read; None if it did not exist.

    Raises:
        OSError: If the file is read-only, or has changed since it was read.
    """
    try:
        now = os.stat(path)
    except FileNotFoundError:
        now = None
    if _version(now) != _version(before):
        raise OSError(errno.EBUSY, "another program has changed it", str(path))
    # The mode is checked, because `os.replace` would let the owner replace a read-only file.
    if now is not None and not (now.st_mode & 0o222 and os.access(path, os.W_OK)):
        raise PermissionError(errno.EACCES, "it is read-only", str(path))


def _version(status: os.stat_result | None) -> tuple[int, ...] | None:
    return None if status is None else (status.st_ino, status.st_size, status.st_mtime_ns)


def check_place(path: Path) -> None:
    """Check that *path* can be written: a new file, or one that can be replaced.

    Raises:
        UsageError: If it is a folder, read-only or a link to nothing, or its folder is missing or
            takes no files.
        IdeficsError: If the disk is full or fails.
    """
    if os.path.isdir(path):
        raise UsageError(f"cannot write `{path}`: it is a folder", hint="name a file in it")
    check_folder_of(path)
    if not os.path.exists(path) and os.path.islink(path):
        problem = f"cannot write `{path}`: it is a link to a file that is missing"
        raise UsageError(problem, hint="name the file itself, or remove the link")
    if os.path.exists(path) and not os.access(path, os.W_OK):
        raise UsageError(f"cannot write `{path}`: permission denied")


def check_folder_of(path: Path) -> None:
    """Check that the folder of *path* is there and takes files; devices and pipes need none.

    Raises:
        UsageError: If it is missing, a file, or takes no files.
        IdeficsError: If the disk is full or fails.
    """
    folder = path.parent
    if not os.path.isdir(folder):
        if os.path.exists(folder):
            raise UsageError(
                f"cannot write `{path}`: `{folder}` is not a folder", hint="choose another folder"
            )
        raise UsageError(
            f"cannot write `{path}`: no folder `{folder}`", hint="make the folder first"
        )
    if os.path.isfile(path) or not os.path.exists(path):
        _check_takes_files(folder, path)


def check_folder(path: Path) -> None:
    """Check that *path* can become a folder with files: a new one, or one that takes files.

    Nothing is written there.

    Raises:
        UsageError: If it is a file, lies below one, or takes no files.
        IdeficsError: If the disk is full or fails.
    """
    folder = path
    # A link to nothing is not passed over: no folder can be made in its place.
    while not os.path.lexists(folder) and folder != folder.parent:
        folder = folder.parent
    if not os.path.isdir(folder):
        raise UsageError(
            f"cannot write to `{path}`: `{folder}` is not a folder", hint="name another folder"
        )
    _check_takes_files(folder, path)


def check_new_folder(path: Path) -> None:
    """Check that *path* can become a folder that is new, or is empty now.

    Raises:
        UsageError: If it is in use, or takes no files.
        IdeficsError: If the disk is full or fails.
    """
    if os.path.exists(path) and (not os.path.isdir(path) or any(path.iterdir())):
        raise UsageError(f"`{path}` exists already", hint="name a new folder with `-o`")
    check_folder(path)


def _check_takes_files(folder: Path, path: Path) -> None:
    """Raise an error for *path* if no file can be made in *folder*."""
    # A trial, because `os.access` tells the superuser that every folder takes files.
    trial = unfinished_path(folder / path.name)
    try:
        with suppress(FileNotFoundError):
            os.lstat(path)  # a name that is too long is an error, though no file has it
        os.close(os.open(trial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
        os.unlink(trial)
    except OSError as error:
        if error.errno in _DISK_FAULTS:
            raise cannot_write(path, error) from error
        why = f"no file can be made in `{folder}` ({error.strerror or error})"
        raise UsageError(f"cannot write `{path}`: {why}", hint="choose another folder") from error


def unfinished_path(target: Path, *, process: int | None = None) -> Path:
    """Return the path of a temporary file beside *target*; nobody can guess its name.

    Args:
        target: The file that the temporary file becomes.
        process: Process that writes it; None is this one.
    """
    # The name has a digest of the target's name, because a name of 255 bytes leaves no room for a
    # suffix.
    owner = f"{_digest(target.name)}-{_host()}-{process or os.getpid()}"
    return target.with_name(f".idefics-{owner}-{secrets.token_hex(8)}{UNFINISHED}")


def is_unfinished(name: str) -> bool:
    """Whether *name* is that of a temporary file of this program; see `unfinished_path`."""
    return _UNFINISHED_NAME.fullmatch(name) is not None


def remove_unfinished(folder: Path) -> None:
    """Remove the temporary files and folders in *folder* that killed programs left there.

    Several computers may share the folder. Files of another computer are removed when they are a
    day old.
    """
    try:
        with os.scandir(folder) as entries:
            names = [e.name for e in entries if e.name.startswith(".idefics-")]
    except OSError:
        return
    for name in names:
        match = _UNFINISHED_NAME.fullmatch(name)
        with suppress(OSError):
            if match and _is_left(folder / name, match["host"], int(match["process"])):
                _remove(folder / name)


@contextmanager
def scratch_folder(name: str) -> Iterator[Path]:
    """Yield a new folder for temporary files, which only this user can read; it is removed.

    What killed programs left is removed, too.

    Args:
        name: What the folder is for.

    Raises:
        IdeficsError: If it cannot be made.
    """
    parent = Path(tempfile.gettempdir())
    remove_unfinished(parent)
    path = unfinished_path(parent / name)
    try:
        path.mkdir(mode=0o700)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        yield path
    finally:
        # After Ctrl-C, a thread may still write a file.
        shutil.rmtree(path, ignore_errors=True)


def _remove(path: Path) -> None:
    if stat.S_ISDIR(path.lstat().st_mode):
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink()


def _is_left(path: Path, host: str, process: int) -> bool:
    if host == _host() and not _runs(process):
        return True
    return time.time() - path.lstat().st_mtime > _LEFT_SECONDS


def _runs(process: int) -> bool:
    if os.name == "nt":
        return True  # on Windows, signal 0 is Ctrl-C
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        return True
    return True


@cache
def _host() -> str:
    return _digest(socket.gethostname())


def _digest(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:8]


def sync_folder(path: Path) -> None:
    """Write the names in the folder *path* to the disk, on systems that can do that."""
    if os.name == "nt":
        return
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def lock(descriptor: int) -> None:
    """Lock the open file *descriptor* against every other process; its position does not change.

    Raises:
        BlockingIOError: If another process holds the lock.
        OSError: If the file system has no locks.
    """
    if sys.platform == "win32":
        import msvcrt

        position = os.lseek(descriptor, 0, os.SEEK_CUR)
        os.lseek(descriptor, _LOCKED_BYTE, os.SEEK_SET)
        try:
            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        except PermissionError as error:
            raise BlockingIOError(*error.args) from error
        os.lseek(descriptor, position, os.SEEK_SET)
    else:
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)


def lacks_locks(error: OSError) -> bool:
    """Whether *error*, from `lock`, means that the file system has no locks; NFS may have none."""
    return error.errno in (errno.ENOLCK, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)


def cannot_write(path: Path | None, error: OSError) -> IdeficsError:
    """Return the error for a failed write to *path*, or to stdout if *path* is None."""
    name = f"`{path}`" if path else "stdout"
    return IdeficsError(f"cannot write {name}: {error.strerror or error}")
