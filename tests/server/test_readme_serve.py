"""The examples of README for clients print what README says."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from idefics_cli.demo.samples import write_samples
from tests.support.http_servers import HttpServer
from tests.support.readme import ROOT

_BLOCK = re.compile(r"^<!-- serve -->\n```(\w+)\n(.*?)^```$", re.M | re.S)


def block(language: str, server: HttpServer) -> str:
    """Return the example of README in *language*, for the port of *server*."""
    found = dict(_BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8")))
    text = found[language]
    assert "http://127.0.0.1:8000/v1" in text
    return str(text).replace(":8000/", f":{server.port}/")


@pytest.mark.skipif(not (shutil.which("curl") and shutil.which("jq")), reason="needs curl and jq")
def test_curl_gets_the_answer_of_readme(demo: HttpServer) -> None:
    text = block("bash", demo)
    command, _, shown = text.removeprefix("$ ").partition("message.content'\n")

    ran = subprocess.run(
        ["bash", "-c", f"{command}message.content'"],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert shown
    assert ran.stdout == shown


def test_other_machines_get_the_answers_of_readme(demo: HttpServer, tmp_path: Path) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.search(r"^<!-- server -->\n```bash\n(.*?)^```$", readme, re.M | re.S)
    assert found is not None
    write_samples(tmp_path / "pictures", count=2, seed=0)
    examples = re.findall(r"^\$ idefics (.*)\n((?:(?!\$).*\n)*)", found[1], re.M)
    assert len(examples) == 2
    for words, shown in examples:
        ran = subprocess.run(
            [
                sys.executable,
                "-m",
                "idefics_cli",
                *shlex.split(words.replace(":8000", f":{demo.port}")),
            ],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
        )
        assert ran.stdout.replace(f":{demo.port}", ":8000") == shown, ran.stderr


def test_the_client_of_openai_prints_a_description(demo: HttpServer, tmp_path: Path) -> None:
    write_samples(tmp_path / "pictures", count=2, seed=0)

    ran = subprocess.run(
        [sys.executable, "-c", block("python", demo)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )

    assert ran.stdout.startswith("A ")
    assert ran.stdout.endswith(".\n")
    assert ran.stderr == ""
