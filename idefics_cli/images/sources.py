"""The sources of pictures: files, URLs, `data:` URIs, stdin and the clipboard."""

from __future__ import annotations

import base64
import binascii
import difflib
import io
import os
import re
import stat
import sys
from contextlib import suppress
from itertools import islice
from threading import Lock
from typing import BinaryIO
from urllib.parse import unquote_to_bytes

from idefics_cli.core.errors import ImageError
from idefics_cli.core.files import read_limited
from idefics_cli.core.sources import (
    CLIPBOARD,
    MOST_FILE_BYTES,
    STDIN,
    describe_source,
    has_scheme,
    is_clipboard,
    kind_of_source,
    lacks_password,
    match_data_uri,
    too_many_bytes,
)
from idefics_cli.core.text import abbreviated
from idefics_cli.core.types import ImageLimits
from idefics_cli.core.units import format_size
from idefics_cli.images.clipboard import read_clipboard
from idefics_cli.images.folders import has_wildcard
from idefics_cli.images.tars import open_member, split_member

_NEIGHBOURS = 5000  # number of names in a folder that are compared with a misspelt name
# RFC 8089 allows three forms: file:///path, file://localhost/path and file:/path.
_FILE = re.compile(r"file:(?://([^/]*))?(/[^?#]*)", re.IGNORECASE | re.DOTALL)


class ImageSources:
    """Opens sources as streams of bytes; any thread may use it.

    Args:
        limits: `max_bytes` applies to downloads, `data:` URIs and stdin, but not to files.
            `sources` and `addresses` say what may be opened at all.
        offline: Whether to refuse URLs.
        stdin: Standard input in bytes; None uses the stdin of the process when it is needed.
    """

    def __init__(self, limits: ImageLimits, *, offline: bool, stdin: BinaryIO | None) -> None:
        self._limits = limits
        self._offline = offline
        self._stdin = stdin
        self._stdin_lock = Lock()
        self._stdin_bytes: bytes | None = None

    def open(self, source: str) -> BinaryIO:
        """Return the bytes of *source* as a seekable stream; the caller closes it.

        Raises:
            ImageError: If the source cannot be read.
        """
        kind = kind_of_source(source)
        # This is the only place that opens sources, so it is where the policy is enforced.
        if kind not in self._limits.sources:
            raise _refused()
        if kind == "stdin":
            return io.BytesIO(self._read_stdin())
        if kind == "web":
            return io.BytesIO(self._download(source))
        if kind == "remote":
            self._check_online(source)
            from idefics_cli.images.remote import read_remote

            return io.BytesIO(read_remote(source, self._limits))
        if kind == "data":
            return io.BytesIO(_decode_data(source, self._limits))
        if kind == "clipboard":
            content = read_clipboard(self._limits)
            if isinstance(content, bytes):
                return io.BytesIO(content)
            return _open_file(content, content)
        return _open_file(_local_path(source), source)

    def _download(self, url: str) -> bytes:
        self._check_online(url)
        # requests is imported only here, because its import takes as long as that of the rest of
        # this package.
        from idefics_cli.images.download import download

        return download(url, self._limits)

    def _check_online(self, url: str) -> None:
        if lacks_password(url):
            raise ImageError(
                f"cannot fetch `{describe_source(url)}`: its user name and password were left out",
                kind="fetch_failed",
                hint="give the full address; a run that failed goes on with `--retry-failed`"
                " and its former arguments",
            )
        if self._offline:
            raise ImageError(
                f"cannot fetch `{describe_source(url)}`: --offline is set",
                kind="fetch_failed",
                hint="run without --offline, or download it and give the file",
            )

    def _read_stdin(self) -> bytes:
        # A pipe can be read only once, so every later `-` means the same picture.
        with self._stdin_lock:
            if self._stdin_bytes is None:
                self._stdin_bytes = self._drain_stdin()
        if len(self._stdin_bytes) > self._limits.max_bytes:
            raise too_many_bytes(STDIN, self._limits)
        if not self._stdin_bytes:
            raise ImageError(
                "cannot read `stdin`: nothing was piped in", kind="missing", hint=_PIPE_HINT
            )
        return self._stdin_bytes

    def _drain_stdin(self) -> bytes:
        # `sys.stdin` is None if the process has no standard input. typeshed does not say so.
        process: object = sys.stdin
        stream = self._stdin or getattr(process, "buffer", None)
        try:
            if stream is None or stream.isatty():
                raise ImageError(
                    "cannot read `stdin`: no picture is piped in", kind="missing", hint=_PIPE_HINT
                )
            return bytes(read_limited(stream, self._limits.max_bytes + 1))
        except (OSError, ValueError) as error:  # ValueError: closed
            raise ImageError(
                f"cannot read `stdin`: {_reason(error)}", kind="missing", hint=_PIPE_HINT
            ) from error


def _refused() -> ImageError:
    # The message is the same for all sources: it must not tell whether a file exists.
    return ImageError(
        "pictures from this kind of source are not accepted",
        kind="unsupported",
        hint="give a data: URI or a public http(s) address",
    )


_PIPE_HINT = "pipe a picture in: idefics … -i - < picture.jpg"


def _decode_data(uri: str, limits: ImageLimits) -> bytes:
    """Return the bytes of a `data:` URI (RFC 2397)."""
    match = match_data_uri(uri)
    if match is None or not match[2]:
        raise _broken_data(uri, "it has no comma before its data")
    payload = uri[match.end() :]
    is_base64 = match[1].lower().replace(" ", "").endswith(";base64")
    if len(payload) > (limits.max_bytes + 3) * (2 if is_base64 else 3):
        raise too_many_bytes(uri, limits)
    try:
        data = _decode_base64(payload) if is_base64 else unquote_to_bytes(payload)
    except (binascii.Error, UnicodeError) as error:
        raise _broken_data(uri, "its data is not base64") from error
    if len(data) > limits.max_bytes:
        raise too_many_bytes(uri, limits)
    return data


def _decode_base64(payload: str) -> bytes:
    # Most payloads need nothing of what follows, which takes as long as decoding them.
    with suppress(ValueError):
        return binascii.a2b_base64(payload, strict_mode=True)
    # Data copied from mails and style sheets can have line ends, lack padding, or use the alphabet
    # for URLs.
    data = b"".join(unquote_to_bytes(payload).split()).translate(_URL_ALPHABET).rstrip(b"=")
    return base64.b64decode(data + b"=" * (-len(data) % 4), validate=True)


_URL_ALPHABET = bytes.maketrans(b"-_", b"+/")


def _broken_data(uri: str, reason: str) -> ImageError:
    return ImageError(
        f"cannot read `{describe_source(uri)}`: {reason}",
        kind="not_an_image",
        hint="as in data:image/png;base64,iVBORw0KGgo…",
    )


def _local_path(source: str) -> str:
    if match := _FILE.match(source):
        if (match[1] or "localhost").lower() == "localhost":
            return os.fsdecode(unquote_to_bytes(_file_name_bytes(match[2], source)))
        raise ImageError(
            f"cannot read `{describe_source(source)}`: it names another machine",
            kind="unsupported",
            hint="a file on this machine is file:///path, with three slashes",
        )
    if has_scheme(source):
        raise ImageError(
            f"cannot read `{describe_source(source)}`: unknown kind of address",
            kind="unsupported",
            hint="give a file, an http(s) address, a data: URI, `-` or `clipboard:`",
        )
    return os.path.expanduser(source)


def _file_name_bytes(name: str, source: str) -> bytes:
    try:
        return os.fsencode(name)
    except UnicodeEncodeError as error:  # half of a character, as "\\ud800"
        raise ImageError(
            f"cannot read `{describe_source(source)}`: no file has such a name", kind="missing"
        ) from error


def _open_file(path: str, source: str) -> BinaryIO:
    try:
        _check_regular(os.stat(path), source)
        # If a pipe replaces the file at this moment, opening it does not wait for a writer.
        flags = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
        descriptor = os.open(path, flags)
    # ValueError: NUL, or characters that no file name can have.
    except (OSError, ValueError) as error:
        if isinstance(error, NotADirectoryError) and split_member(path) is not None:
            return open_member(path)
        raise _unreadable(path, source, error) from error
    stream = os.fdopen(descriptor, "rb")
    try:
        status = os.fstat(descriptor)
        _check_regular(status, source)
        _check_length(status.st_size, source)
    except ImageError:
        stream.close()
        raise
    return stream


def _check_regular(status: os.stat_result, source: str) -> None:
    if stat.S_ISDIR(status.st_mode):
        raise ImageError(
            f"`{describe_source(source)}` is a folder, not a picture",
            kind="not_an_image",
            hint="caption the pictures in it with `idefics caption -r FOLDER`",
        )
    # A device such as /dev/zero has no end, and a named pipe may never send data.
    if not stat.S_ISREG(status.st_mode):
        raise ImageError(
            f"`{describe_source(source)}` is not a regular file",
            kind="not_an_image",
            hint=f"for a pipe, {_PIPE_HINT}",
        )


def _check_length(size: int, source: str) -> None:
    if size > MOST_FILE_BYTES:
        raise ImageError(
            f"`{describe_source(source)}` is too large: {format_size(size)},"
            f" the limit is {format_size(MOST_FILE_BYTES)}",
            kind="too_large",
            hint="shrink it first",
        )


def no_such_file(source: str) -> ImageError:
    """Return the error for the path or `file:` URI *source* of a missing file."""
    if not source:
        return ImageError("the name of a picture is empty", kind="missing")
    # A separator at the end is cut, because the hint compares the name with those in its folder.
    path = _local_path(source)
    bare = path.rstrip("".join(filter(None, (os.sep, os.altsep)))) or path
    # A name without an extension may be that of a folder.
    what = "file" if os.path.splitext(bare)[1] else "file or folder"
    return ImageError(
        f"no such {what if bare == path else 'folder'}: `{describe_source(source)}`",
        kind="missing",
        hint=_missing_hint(bare),
    )


def _unreadable(path: str, source: str, error: OSError | ValueError) -> ImageError:
    name = describe_source(source)
    if isinstance(error, FileNotFoundError | NotADirectoryError):
        if os.path.islink(path):
            message = f"cannot read `{name}`: it is a link to a file that does not exist"
            return ImageError(message, kind="missing", hint="fix or remove the link")
        return no_such_file(source)
    hint = "check the permissions of the file" if isinstance(error, PermissionError) else None
    return ImageError(f"cannot read `{name}`: {_reason(error)}", kind="missing", hint=hint)


def _reason(error: OSError | ValueError) -> str:
    text = error.strerror if isinstance(error, OSError) else str(error)
    return abbreviated((text or type(error).__name__).lower())


def _missing_hint(path: str) -> str:
    if path.lower().startswith("www."):
        return "an address begins with https://"
    if is_clipboard(f"{path}:"):
        return f"`{CLIPBOARD}` is the picture on the clipboard"
    if "," in path and all(map(os.path.exists, path.split(","))):
        return "each picture has its own `-i`"
    # A script may add quotes to a name that the shell has quoted already. The name then arrives
    # with quotes.
    bare = path.strip("'\" ")
    if bare != path and os.path.exists(bare):
        return f"did you mean `{abbreviated(bare)}`?"
    folder, base = os.path.split(path)
    try:
        with os.scandir(folder or ".") as entries:
            names = [entry.name for entry in islice(entries, _NEIGHBOURS)]
    except OSError:
        return f"there is no folder `{abbreviated(folder)}`"
    same = [name for name in names if name.casefold() == base.casefold()]
    if not same and has_wildcard(base):
        return "globs are for `idefics caption`; otherwise name each picture, with its own `-i`"
    # The cutoff is high, because many names are similar just by their extension.
    close = same or difflib.get_close_matches(base, names, n=1, cutoff=0.75)
    if close:
        return f"did you mean `{abbreviated(os.path.join(folder, close[0]))}`?"
    return "check the path"
