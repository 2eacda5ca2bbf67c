"""Pictures in object stores and on other machines, through fsspec: reads and listings.

Credentials come from where the library of each store finds them: the environment, its files, or
the agent of SSH. Errors of these libraries can quote addresses and headers, so their text is never
shown: a message has only the kind of the error.
"""

from __future__ import annotations

import logging
import random
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from queue import Empty, SimpleQueue
from types import MappingProxyType
from typing import Any, TypeVar

from idefics_cli.core.errors import ImageError
from idefics_cli.core.sources import describe_source, too_many_bytes
from idefics_cli.core.threads import in_background
from idefics_cli.core.types import ImageLimits
from idefics_cli.core.units import counted

# Protocol -> the package that fsspec needs, and the command that installs it.
_PACKAGES: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "s3": ("s3fs", "pip install 'idefics-cli[s3]'"),
        "gs": ("gcsfs", "pip install 'idefics-cli[gs]'"),
        "az": ("adlfs", "pip install 'idefics-cli[az]'"),
        "sftp": ("paramiko", "pip install 'idefics-cli[sftp]'"),
        "hf": ("huggingface_hub", "pip install huggingface_hub"),
    }
)
_TRIES = 5
FIRST_WAIT_SECONDS = 0.5
"""How long to wait before the second try; before each further one, twice as long."""
_DEADLINE_READS = 10  # as in `download`
_TRANSIENT = re.compile(
    r"timeout|timedout|connection|disconnected|throttl|slowdown|unavailable|eof"
)
_DENIED = re.compile(r"credential|authentication")
_TRANSIENT_STATUS = frozenset({408, 425, 429, 500, 502, 503, 504})
_PERMANENT = (FileNotFoundError, PermissionError, IsADirectoryError, NotADirectoryError)
_WILD = re.compile(r"[*?[]")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file in a listing.

    Attributes:
        url: Its address, with the user name of the listed address.
        relative: Its path below the listed folder.
        stamp: What changes with its content: its ETag, or its size and time; None if not known.
    """

    url: str
    relative: str
    stamp: str | None


def read_remote(
    url: str, limits: ImageLimits, *, wait: Callable[[float], None] = time.sleep
) -> bytes:
    """Return the bytes at *url*; errors that may pass are tried again, five times in all.

    Args:
        url: An address of one of the known stores.
        limits: Limits of bytes and time.
        wait: Waits before another try.

    Raises:
        ImageError: Of the kind `fetch_failed`, `missing`, or `too_large` if there are more than
            `limits.max_bytes` bytes.
    """

    def read(system: Any) -> bytes:
        data: bytes = system.cat_file(_path(system, url), start=0, end=limits.max_bytes + 1)
        return data

    data = _tried(read, url, limits, wait)
    if len(data) > limits.max_bytes:
        raise too_many_bytes(url, limits)
    return data


def list_remote(url: str, limits: ImageLimits, *, recursive: bool) -> Iterator[RemoteFile]:
    """Yield the files that *url* names: itself, what it matches, or those of a folder, unsorted.

    One folder at a time is in memory.

    Args:
        url: An address, perhaps with wildcards.
        limits: Limits of time.
        recursive: Whether to list the folders of a folder, too.

    Raises:
        ImageError: If there is no such file, or it cannot be listed.
    """
    wild = _WILD.search(url)
    root = url[: wild.start()].rpartition("/")[0] if wild else url

    def tried(action: Callable[[Any], _Result]) -> _Result:
        return _tried(action, url, limits, time.sleep)

    base = tried(lambda system: _path(system, root).rstrip("/"))
    if wild:
        found = tried(lambda system: system.glob(_path(system, url), detail=True))
        yield from (_file(p, facts, root, base) for p, facts in found.items() if _is_file(facts))
        return
    facts = tried(lambda system: system.info(base))
    if _is_file(facts):
        yield _file(base, facts, root, base)
        return
    folders = [base]
    while folders:
        folder = folders.pop()
        for each in tried(partial(_list, folder)):
            path = each["name"].rstrip("/")
            if _is_file(each) and path != folder:
                yield _file(path, each, root, base)
            elif each["type"] == "directory" and recursive and path != folder:
                folders.append(path)


def _list(folder: str, system: Any) -> Any:
    return system.ls(folder, detail=True)


def _is_file(facts: Mapping[str, Any]) -> bool:
    return bool(facts["type"] == "file")


def _file(path: str, facts: Mapping[str, Any], root: str, base: str) -> RemoteFile:
    """Return a file below the folder *root*, whose path in the store is *base*."""
    relative = path[len(base) :].lstrip("/")
    name = f"{root.rstrip('/')}/{relative}" if relative else root
    return RemoteFile(name, relative or path.rpartition("/")[2], _stamp(facts))


def _stamp(facts: Mapping[str, Any]) -> str | None:
    tag = next(
        (facts[name] for name in ("ETag", "etag", "md5Hash", "blob_id") if facts.get(name)), None
    )
    if tag is not None:
        return str(tag).strip('"')
    changed = next(
        (facts[n] for n in ("LastModified", "mtime", "updated", "created") if facts.get(n)), None
    )
    return None if facts.get("size") is None else f"{facts['size']}-{changed}"


# Any: fsspec has no types.
@lru_cache(maxsize=64)
def _system_of(place: str) -> Any:
    # Listings are not kept: a store can have millions of files.
    return _connect(place, use_listings_cache=False)


# Any: fsspec has no types.
@lru_cache(maxsize=64)
def _idle_servers(place: str) -> SimpleQueue[Any]:
    """Return the connections to an SFTP server that no thread uses."""
    return SimpleQueue()


def forget_stores() -> None:
    """Forget the connections to all stores, for example because their settings have changed."""
    _system_of.cache_clear()
    _idle_servers.cache_clear()


def _do(action: Callable[[Any], _Result], url: str) -> _Result:
    """Call *action* with the file system of *url*."""
    protocol = url.partition("://")[0].lower()
    if protocol == "sftp":
        return _do_sftp(action, f"{protocol}://{url.split('/', 3)[2]}")
    # A bucket of a store is a part of the path.
    return action(_system_of(f"{protocol}://x"))


def _do_sftp(action: Callable[[Any], _Result], place: str) -> _Result:
    """Call *action* with a connection to the server *place*, which nobody else uses.

    If two threads share a connection, paramiko 5.1 drops an answer, and one waits for ever (in
    `SFTPClient._read_response`). It does not connect again if a connection is lost.
    """
    idle = _idle_servers(place)
    try:
        system = idle.get_nowait()
    except Empty:
        system = _connect(place, skip_instance_cache=True)
    try:
        result = action(system)
    except _PERMANENT:
        idle.put(system)
        raise
    except Exception:  # then all connections may be lost
        with suppress(Empty):
            while True:
                idle.get_nowait()
        raise
    idle.put(system)
    return result


def _connect(place: str, **options: bool) -> Any:
    import fsspec

    # What a library logs, which can quote addresses, would be printed if there were no handler.
    package, _ = _PACKAGES[place.partition("://")[0]]
    logging.getLogger(package).addHandler(logging.NullHandler())
    system, _ = fsspec.core.url_to_fs(place, **options)
    return system


def _path(system: Any, url: str) -> str:
    protocol, mark, rest = url.partition("://")
    path: str = system._strip_protocol(f"{protocol.lower()}{mark}{rest}")
    return path


def _tried(
    action: Callable[[Any], _Result], url: str, limits: ImageLimits, wait: Callable[[float], None]
) -> _Result:
    seconds = limits.download_seconds or limits.timeout_seconds * _DEADLINE_READS
    for number in range(_TRIES):
        result = in_background(partial(_do, action, url), name="remote-read")
        try:
            return result.result(timeout=seconds)
        except TimeoutError as error:
            if not result.done():
                raise _fetch_failed(
                    url, f"took longer than {counted(float(seconds), 'second')}"
                ) from error
            failure: Exception = error
        except ImportError as error:
            package, install = _PACKAGES[url.partition("://")[0].lower()]
            raise ImageError(
                f"cannot read `{describe_source(url)}`: {package} is not installed",
                kind="unsupported",
                hint=install,
            ) from error
        except Exception as error:  # each store has errors of its own
            failure = error
        if number == _TRIES - 1 or not _may_pass(failure):
            raise _failed(url, failure) from failure
        # With some chance in the wait, many readers do not come back at the same time.
        wait(FIRST_WAIT_SECONDS * 2**number * random.uniform(0.5, 1.5))
    raise AssertionError("the last try returns or raises")


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, _PERMANENT):
        return False
    if _status(error) is not None:
        return _status(error) in _TRANSIENT_STATUS
    # paramiko raises it if a server refuses a connection; its subclasses are for bad keys.
    if type(error).__name__ == "SSHException":
        return True
    names = " ".join(kind.__name__ for kind in type(error).__mro__).lower()
    return isinstance(error, OSError | TimeoutError) or _TRANSIENT.search(names) is not None


def _status(error: BaseException) -> int | None:
    """Return the HTTP status in an error of any of the libraries; None if there is none."""
    for name in ("code", "status", "status_code"):
        value = getattr(error, name, None)
        if str(value).isdecimal():
            return int(str(value))
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        value = response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        return value if isinstance(value, int) else None
    value = getattr(response, "status_code", None)
    if isinstance(value, int):
        return value
    return None if error.__cause__ is None else _status(error.__cause__)


def _failed(url: str, error: Exception) -> ImageError:
    name = describe_source(url)
    if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
        return ImageError(f"no such file: `{name}`", kind="missing", hint="check the address")
    if isinstance(error, ValueError):
        return _fetch_failed(
            url, "it is no valid address", "a `**` must stand alone between slashes"
        )
    kind = type(error).__name__
    status = _status(error)
    if isinstance(error, PermissionError) or status in (401, 403) or _DENIED.search(kind.lower()):
        return _fetch_failed(url, "access is denied", "check the credentials of this store")
    reason = kind if status is None else f"status {status}"
    tries = f", {_TRIES} times" if _may_pass(error) else ""
    return _fetch_failed(url, f"{reason}{tries}", "try again later")


def _fetch_failed(url: str, reason: str, hint: str = "raise --timeout-seconds") -> ImageError:
    message = f"cannot fetch `{describe_source(url)}`: {reason}"
    return ImageError(message, kind="fetch_failed", hint=hint)
