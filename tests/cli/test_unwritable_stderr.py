"""Messages that cannot be written end no command, and change no exit code."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

pytestmark = pytest.mark.skipif(
    not os.path.exists("/dev/full"), reason="needs a disk that is always full"
)
KINDS = pytest.mark.parametrize("kind", ["full", "pipe", "closed"])


def code_of(*arguments: str, kind: str, python: tuple[str, ...] = (sys.executable, "-P")) -> int:
    """Return the exit code of `idefics` with *arguments*, whose stderr is of *kind*."""
    reader, writer = os.pipe()
    os.close(reader)
    full = os.open("/dev/full", os.O_WRONLY)
    command = [*python, "-m", "idefics_cli", *arguments]
    if kind == "closed":
        command = ["sh", "-c", 'exec "$@" 2>&-', "sh", *command]
    try:
        return subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=full if kind == "full" else writer,
            check=False,
            timeout=120,
        ).returncode
    finally:
        os.close(writer)
        os.close(full)


@KINDS
def test_an_error_keeps_its_exit_code(here: Path, kind: str, warm_python: tuple[str, ...]) -> None:
    command = ("ask", "hi", "-m", "demo")
    assert code_of(*command, "--no-such-option", kind=kind) == 2
    assert code_of(*command, "-i", "missing.png", kind=kind, python=warm_python) == 1
    assert code_of("config", kind=kind, python=warm_python) == 0


@KINDS
def test_a_run_captions_all_pictures(here: Path, kind: str, warm_python: tuple[str, ...]) -> None:
    for number in range(3):
        Image.new("RGB", (64, 64), (80 * number, 0, 0)).save(f"{number}.png")
    Path("bad.png").write_text("no picture")
    pictures = ("bad.png", "0.png", "1.png", "2.png")
    arguments = ("-m", "demo", "--threads", "1", "-o", "o.jsonl")
    assert code_of("caption", *pictures, *arguments, kind=kind, python=warm_python) == 3
    assert len(Path("o.jsonl").read_text("utf-8").splitlines()) == 4
    assert '"end": "done"' in Path("o.jsonl.run.json").read_text("utf-8")
