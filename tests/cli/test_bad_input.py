"""Bad input: each call gives its error class, its exit code and one clear line.

There is no traceback, and nothing on stdout.
"""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from idefics_cli.cli.services import Services
from idefics_cli.core.errors import IdeficsError, ImageErrorKind
from idefics_cli.ui.terminal.console import Console
from tests.support.bad_calls.call import Call
from tests.support.bad_calls.captioning import CAPTIONING
from tests.support.bad_calls.folder import write_folder
from tests.support.bad_calls.models import MODELS
from tests.support.bad_calls.options import OPTIONS
from tests.support.bad_calls.pictures import PICTURES
from tests.support.bad_calls.prompts import PROMPTS
from tests.support.commands import run

CALLS = (*PROMPTS, *PICTURES, *MODELS, *OPTIONS, *CAPTIONING)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the calls."""
    root = tmp_path_factory.mktemp("bad")
    write_folder(root)
    return root


@pytest.mark.parametrize("call", CALLS, ids=str)
def test_bad_input_is_one_clear_error_of_its_class_and_nothing_on_stdout(
    call: Call, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[IdeficsError] = []
    tell = Console.error

    def remember(console: Console, error: IdeficsError) -> None:
        told.append(error)
        tell(console, error)

    monkeypatch.setattr(Console, "error", remember)
    monkeypatch.chdir(folder)
    stdin = None if call.stdin is None else io.BytesIO(call.stdin)
    # The image loader reads the stdin of the process.
    monkeypatch.setattr(sys, "stdin", None if stdin is None else io.TextIOWrapper(stdin))
    environ = dict(pair.split("=", 1) for pair in call.environ.split())
    services = Services(
        environ=environ,
        stdin=stdin,
        probe=lambda: call.machine,
        torch_version=lambda: call.machine.versions["torch"],
    )

    before = sorted(os.listdir())
    code, out, err = run(*_words(call.line), services=services)

    (error,) = told
    lines = [f"error: {call.message}", *([f"hint: {call.hint}"] if call.hint else [])]
    assert re.fullmatch(_pattern("\n".join(lines) + "\n"), str(err)), err
    assert (type(error), getattr(error, "kind", None)) == (call.error, call.kind)
    assert (code, out) == (call.error.exit_code, "")
    assert sorted(os.listdir()) == before


def test_the_calls_are_of_every_command_and_every_kind_of_error() -> None:
    assert {call.line.split()[0] for call in CALLS} >= {
        *("ask", "chat", "caption", "models", "doctor", "bench", "demo", "config")
    }
    assert {call.kind for call in CALLS} == {None, *get_args(ImageErrorKind)}
    assert len({str(call) for call in CALLS}) > 150


MISSING = {
    "ask x -m demo -i nosuch.png": "no such file: `nosuch.png`",
    "ask x -m demo -i nosuch/": "no such folder: `nosuch/`",
    "ask x -m demo -i good.png --examples nosuch.jsonl": "no such list of examples: `nosuch.jsonl`",
    "chat -m demo -i nosuch.png": "no such file: `nosuch.png`",
    "caption -m demo nosuch.png": "no such file: `nosuch.png`",
    "caption -m demo nosuch/": "no such folder: `nosuch/`",
    "caption -m demo nosuch.tar": "no such file: `nosuch.tar`",
    "caption -m demo 'nosuch/*.png'": "no picture matches `nosuch/*.png`",
    "caption -m demo --filelist nosuch.txt": "no such list: `nosuch.txt`",
    "caption -m demo good.png --examples nosuch.jsonl": "no such list of examples: `nosuch.jsonl`",
    "caption -m demo nosuch/ --dry-run": "no such folder: `nosuch/`",
    "collect nosuch.jsonl": "there are no shards of `nosuch.jsonl`",
    "batch -m demo nosuch.jsonl": "cannot read `nosuch.jsonl`: No such file or directory",
    "batch -m demo nosuch/": "cannot read `nosuch/`: No such file or directory",
    "batch -m demo requests.jsonl --image-folder nosuch": "no folder `nosuch`",
    "tune -m demo nosuch -o adapter": "no such file or folder: `nosuch`",
    "tune -m demo nosuch.jsonl -o adapter": "no such file or folder: `nosuch.jsonl`",
    "tune -m demo nosuch/ -o adapter --dry-run": "no such file or folder: `nosuch`",
    "ask x -m ./nosuch": "there is no folder `./nosuch`",
    "serve -m ./nosuch": "there is no folder `./nosuch`",
    "ask x -m demo -i good.png --adapter ./nosuch": "there is no adapter `./nosuch`",
}


@pytest.mark.parametrize("line", MISSING)
def test_what_a_command_works_on_and_does_not_exist_is_a_failure_and_no_wrong_usage(
    line: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    Path("requests.jsonl").write_text('{"prompt": "Hi"}\n', "utf-8")
    before = sorted(os.listdir())
    services = Services(environ={}, stdin=io.BytesIO(b"What is it?"))
    ran = run(*shlex.split(line), services=services)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.splitlines()[0] == f"error: {MISSING[line]}"
    assert sorted(os.listdir()) == before


@pytest.mark.parametrize(
    ("line", "stdin", "code", "first"),
    [
        ("ask x -i nosuch.png", b"", 1, "error: no such file: `nosuch.png`"),
        ("ask x -i - -m demo", b"GIF89a", 1, "error: cannot read `stdin`: a GIF picture that ..."),
        ("config", None, 2, "error: variable IDEFICS_SEED must be a whole number, not `one`"),
    ],
)
def test_a_process_tells_the_same_and_no_traceback(
    line: str,
    stdin: bytes | None,
    code: int,
    first: str,
    folder: Path,
    warm_python: tuple[str, ...],
) -> None:
    python = warm_python if "-m demo" in line else (sys.executable,)
    ran = subprocess.run(
        [*python, "-m", "idefics_cli", *shlex.split(line)],
        input=stdin,
        stdin=subprocess.DEVNULL if stdin is None else None,
        capture_output=True,
        cwd=folder,
        env={**os.environ, **({"IDEFICS_SEED": "one"} if line == "config" else {})},
        check=False,
    )
    err = ran.stderr.decode()
    assert re.fullmatch(_pattern(first), err.splitlines()[0]), err
    assert "Traceback" not in err
    assert (ran.returncode, ran.stdout) == (code, b"")


def _words(line: str) -> list[str]:
    return [word.replace("<ESC>", "\x1b") for word in shlex.split(line)]


def _pattern(text: str) -> str:
    return ".+".join(re.escape(part) for part in text.split("..."))
