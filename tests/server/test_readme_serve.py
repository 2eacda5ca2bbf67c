"""The examples of README for clients print what README says."""

from __future__ import annotations

import re
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
    assert ran.stdout.endswith(".")
    assert ran.stderr == ""
