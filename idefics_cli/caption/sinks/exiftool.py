"""The program exiftool (https://exiftool.org), kept open: it changes the metadata in pictures."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

from idefics_cli.core.errors import UsageError

_CONFIG = Path(__file__).with_name("exiftool.config")
_CHARSET = ("-charset", "filename=utf8") if os.name == "nt" else ()
_MOST_MESSAGE_BYTES = 4096
_INSTALL = {
    "darwin": "`brew install exiftool` installs it",
    "win32": "`winget install OliverBetz.ExifTool` installs it",
}


class ExifTool:
    """A process of exiftool, which starts with the first order and waits for more.

    A start takes a quarter of a second, an order some milliseconds.

    Args:
        program: Path of exiftool.
    """

    def __init__(self, program: str) -> None:
        self._program = program
        self._process: subprocess.Popen[bytes] | None = None
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115  # `close` closes it
        self._orders = 0

    def close(self) -> None:
        """End the process."""
        self._stop()
        self._errors.close()

    def read(self, tags: Sequence[str], paths: Sequence[str]) -> dict[str, dict[str, str]]:
        """Return the values of *tags* in the files *paths*, by path and by `GROUP:TAG`.

        A file that cannot be read is left out, and so are several with names that are not UTF-8.
        """
        if not paths:
            return {}
        output, _ = self._order("-json", "-G1", *(f"-{tag}" for tag in tags), *paths)
        text = output.decode("utf-8", "surrogateescape").strip()
        rows = json.loads(text, parse_int=str, parse_float=str) if text else []
        names = [row.pop("SourceFile") for row in rows]
        if len(paths) == len(rows) == 1:  # exiftool changes a name that is not UTF-8
            names = list(paths)
        found = [{key: str(value) for key, value in row.items()} for row in rows]
        return dict(zip(names, found, strict=True))

    def write(self, values: Mapping[str, str], path: str) -> None:
        """Write *values* into the file *path*.

        A killed exiftool leaves the file as it was, and perhaps a file `PATH_exiftool_tmp`.

        Args:
            values: `GROUP:TAG` -> text; "" removes the tag.
            path: The file. Its extension says its format.

        Raises:
            OSError: If it cannot be written, with the reason of exiftool.
        """
        changes = [f"-{tag}={_entities(text)}" for tag, text in values.items()]
        # `-o` is not used, because exiftool writes no WebP with it until version 12.57.
        output, errors = self._order("-E", "-overwrite_original", *changes, path, quiet=False)
        if not re.search(rb"1 image files (updated|unchanged)", output):
            lines = errors.splitlines() or ["exiftool wrote no file"]
            told = next((line for line in lines if line.startswith("Error")), lines[0])
            raise OSError(told.removeprefix("Error: ").removesuffix(f" - {path}"))

    def _order(self, *arguments: str, quiet: bool = True) -> tuple[bytes, str]:
        """Give an order; return its output and its messages."""
        if any("\n" in argument or "\r" in argument for argument in arguments):
            raise OSError("exiftool takes no name with a line break")
        if self._process is None:
            self._start()
        process, errors = self._process, self._errors
        assert process is not None
        assert process.stdin is not None
        assert process.stdout is not None
        self._orders += 1
        # exiftool ends its output with `{ready}` and this number. Without a number, `-q` would
        # suppress this line.
        lines = [*arguments, *_CHARSET, *(["-q"] if quiet else []), f"-execute{self._orders}"]
        errors.seek(0)
        errors.truncate()
        output, end = b"", f"{{ready{self._orders}}}".encode()
        with suppress(BrokenPipeError):
            process.stdin.write(b"".join(os.fsencode(line) + b"\n" for line in lines))
            process.stdin.flush()
            while line := process.stdout.readline():
                if line.strip() == end:
                    return output, _message(errors)
                output += line
        self._stop()
        raise OSError(f"exiftool ended: {_message(errors)}")

    def _start(self) -> None:
        command = [self._program, "-config", str(_CONFIG), "-stay_open", "True", "-@", "-"]
        # The Ctrl-C that ends the run after the current batch must not end exiftool.
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            process_group=None if os.name == "nt" else 0,
            creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),
        )

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()


def _message(errors: IO[bytes]) -> str:
    errors.seek(0)
    return errors.read(_MOST_MESSAGE_BYTES).decode("utf-8", "replace").strip()


def _entities(text: str) -> str:
    """Return *text* for the option `-E` on one line, whose spaces at the start stay."""
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace("\r", "&#13;")
    return re.sub("^ ", "&#32;", text.replace("\n", "&#10;"))


def find_exiftool() -> str:
    """Return the path of exiftool.

    Raises:
        UsageError: If it is not installed.
    """
    found = shutil.which("exiftool")
    if found is None:
        install = _INSTALL.get(sys.platform, "`apt install libimage-exiftool-perl` installs it")
        raise UsageError("`--embed` needs exiftool, which is not installed", hint=install)
    return found
