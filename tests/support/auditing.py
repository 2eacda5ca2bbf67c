"""What a block of code opens: files, folders, connections and processes."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

_EVENTS = frozenset(
    {
        *("open", "os.scandir", "os.listdir", "subprocess.Popen", "socket.connect"),
        *("socket.getaddrinfo", "glob.glob", "pathlib.Path.glob"),
    }
)
_recordings: list[list[tuple[str, object]]] = []
_lock = threading.Lock()
_is_installed = False


def _note(event: str, arguments: tuple[object, ...]) -> None:
    if event in _EVENTS and _recordings:
        for recording in _recordings:
            recording.append((event, arguments[0] if arguments else None))


@contextmanager
def opened_files() -> Iterator[list[tuple[str, object]]]:
    """Record what any thread opens, each as the name of the audit event and what was opened."""
    global _is_installed
    with _lock:
        if not _is_installed:  # a hook cannot be removed
            sys.addaudithook(_note)
            _is_installed = True
    recording: list[tuple[str, object]] = []
    _recordings.append(recording)
    try:
        yield recording
    finally:
        _recordings.remove(recording)


LOCAL_SOURCES = (
    *("/etc/hostname", "/etc/passwd", "/proc/self/environ", "/dev/stdin", "/dev/zero", "/"),
    *("a.png", "./a.png", "../a.png", "../../etc/passwd", "a/b/../c.png", "~", "~/a.png"),
    *("~root/a.png", "no-such-file.png", "*.png", "-", "--", " -", "", " ", ".", ".."),
    *("clipboard:", "CLIPBOARD:", "Clipboard:", "clipboard:x"),
    *("file:///etc/passwd", "FILE:///etc/passwd", "file:/etc/passwd", "file:etc/passwd"),
    *("file://localhost/etc/passwd", "file://otherhost/etc/passwd", "file:///%65tc/passwd"),
    *(" file:///etc/passwd", "file:\\\\server\\share", "\\\\server\\share\\a.png", "C:\\a.png"),
    *("ftp://127.0.0.1/a.png", "gopher://127.0.0.1/", "ssh://127.0.0.1/", "s3://bucket/a.png"),
    *("concat:/etc/passwd", "subfile:/etc/passwd", "pipe:0", "fd:0", "zip:///a.zip", "jar:file:/a"),
    *("http:/etc/passwd", "http:a.png", "https:/a.png", " http://127.0.0.1/a.png", "//127.0.0.1/a"),
    *("\thttps://127.0.0.1/a.png", "/etc/passwd\0.png", "\0", "\ud800.png", "é/ü.png"),
)
"""Spellings of local sources, and of addresses that are none of the web."""
