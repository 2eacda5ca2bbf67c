"""Every command of README does what README says: with a quick stand-in, and some with the model."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from safetensors.torch import save_file

from tests.support.clips import Clip
from tests.support.readme import ROOT, Example, examples
from tests.support.tars import make_tar

PICTURES = (
    *("photo.jpg", "street.jpg", "before.png", "after.png", "site.jpg", "receipt.jpg"),
    *("photos/a.jpg", "photos/b.png", "photos/sub/c.jpg", "pictures/scene-001.png", "new/d.jpg"),
)
# What needs the network, another machine, or minutes.
NOT_RUN = (
    *(
        "pip ",
        "git clone",
        "idefics models pull",
        "idefics bench",
        "idefics tune",
        "idefics serve",
        "docker ",
    ),
    *("idefics caption photos/ -r -o captions.jsonl --devices", "idefics collect"),
    *("idefics caption s3:", "idefics caption 'hf:"),  # a store on the network
    "idefics caption /data/photos",  # a cluster
)

# A program that reads the clipboard, in which there is a picture.
CLIPBOARD = 'case "$*" in *list-types* | *TARGETS*) echo image/png ;; *) cat before.png ;; esac'

# With the cursor shown again, the line editor waits for keys.
PROMPT = r"> ?\x1b\[0m[^>]*\x1b\[\?25h"

pytestmark = pytest.mark.skipif(
    shutil.which("bash") is None, reason="README's commands are for a Unix shell"
)


def _is_run(example: Example) -> bool:
    return not example.command.startswith(NOT_RUN) and not _is_typed_into(example)


def _is_typed_into(example: Example) -> bool:
    return example.command.startswith("idefics chat")


def _asks_the_model(example: Example) -> bool:
    return _is_run(example) and example.output is not None and "-m demo" in example.command


@pytest.fixture(scope="module")
def bin_folder(tmp_path_factory: pytest.TempPathFactory, warm_python: tuple[str, ...]) -> Path:
    folder, python = tmp_path_factory.mktemp("bin"), shlex.join(warm_python)
    scripts = {
        "idefics": f'exec {python} -m tests.support.readme_idefics "$@"',
        "idefics-real": f'exec {python} -m idefics_cli "$@"',
        "curl": "cat photo.jpg",
        "wl-paste": CLIPBOARD,
        "xclip": CLIPBOARD,
    }
    for name, script in scripts.items():
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.fixture
def place(files: Path, tmp_path: Path) -> Path:
    shutil.copytree(files, tmp_path, dirs_exist_ok=True)
    return tmp_path


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Everything that the commands read, which each test copies."""
    folder = tmp_path_factory.mktemp("files")
    for name in PICTURES:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 30), "red").save(path)
    for name in ("clip.mp4", "clips/a.mp4"):
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(Clip(frames=30).encode())
    (folder / "shards").mkdir()
    sample = {"000.jpg": (folder / "photo.jpg").read_bytes(), "000.txt": b"red"}
    for number in range(8):
        make_tar(folder / "shards" / f"{number:05}.tar", sample)
    (folder / "rules.txt").write_text("No smoking.\n")
    style = {"peft_type": "LORA", "lora_alpha": 8, "base_model_name_or_path": "smolvlm-500m"}
    (folder / "my-style").mkdir()
    (folder / "my-style" / "adapter_config.json").write_text(json.dumps(style))
    save_file({}, folder / "my-style" / "adapter_model.safetensors")
    (folder / "requests.jsonl").write_text('{"prompt": "Hi!", "image": "photo.jpg"}\n')
    return folder


def _environ(place: Path, bin_folder: Path) -> dict[str, str]:
    return {
        **os.environ,
        "PATH": f"{bin_folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HOME": str(place / "home"),
        "XDG_DATA_HOME": str(place / "data"),
        # Nobody answers the question for the position of the cursor here.
        "PROMPT_TOOLKIT_NO_CPR": "1",
    }


def _run(command: str, place: Path, bin_folder: Path) -> subprocess.CompletedProcess[str]:
    # There is no network here, so a picture at an address is a file.
    command = command.replace("-i https://example.com/", "-i ")
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", command],
        cwd=place,
        env=_environ(place, bin_folder),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def test_readme_has_commands_of_every_kind() -> None:
    commands = [example.command for example in examples()]
    assert len(commands) >= 15
    for name in ("ask", "chat", "caption"):
        assert any(f"idefics {name} " in command for command in commands)
    assert any(map(_asks_the_model, examples()))


@pytest.mark.parametrize("example", [*filter(_is_run, examples())], ids=str)
def test_a_command_of_readme_works(example: Example, place: Path, bin_folder: Path) -> None:
    if "--embed" in example.command and shutil.which("exiftool") is None:
        pytest.skip("exiftool is not installed")
    ran = _run(example.command, place, bin_folder)
    assert ran.returncode == 0, ran.stderr
    assert "error:" not in ran.stderr
    assert "Traceback" not in ran.stderr


@pytest.mark.parametrize("example", [*filter(_is_typed_into, examples())], ids=str)
def test_a_chat_of_readme_begins_answers_and_ends(
    example: Example, place: Path, bin_folder: Path
) -> None:
    pexpect = pytest.importorskip("pexpect")
    # `-c` goes on with a chat.
    begin = ["idefics chat"] if " -c " in example.command else []
    for command in (*begin, example.command):
        child = pexpect.spawn(
            "bash", ["-c", command], cwd=str(place), env=_environ(place, bin_folder),
            timeout=90, encoding="utf-8",
        )  # fmt: skip
        child.expect(PROMPT)
        child.send("What is in it?\r")
        child.expect("A red square")
        child.send("/exit\r")
        child.expect(pexpect.EOF)
        child.close()
        assert child.exitstatus == 0


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory, bin_folder: Path) -> Path:
    """The folder with the pictures of `idefics demo`."""
    folder = tmp_path_factory.mktemp("drawn")
    ran = _run("idefics-real demo pictures --count 6 -q", folder, bin_folder)
    assert ran.returncode == 0, ran.stderr
    return folder


@pytest.mark.parametrize("example", [*filter(_asks_the_model, examples())], ids=str)
def test_an_answer_that_readme_shows_is_the_answer_of_the_model(
    example: Example, drawn: Path, bin_folder: Path
) -> None:
    real = example.command.replace("idefics ", "idefics-real ")
    ran = _run(real, drawn, bin_folder)
    assert (ran.returncode, ran.stdout.rstrip()) == (0, example.output), ran.stderr


def test_the_messages_of_troubleshooting_are_messages_of_ours() -> None:
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    table = text.split("## Troubleshooting", 1)[1].split("\n## ", 1)[0]
    cells = [line.split("|")[1] for line in table.splitlines() if line.startswith("| `")]
    messages = [message for cell in cells for message in re.findall(r"`([^`]+)`", cell)]
    assert len(messages) >= 10
    files = (ROOT / "idefics_cli").rglob("*.py")
    # Literals that go on in the next line are one message.
    source = re.sub(r'"\s*f?"', "", "".join(file.read_text(encoding="utf-8") for file in files))
    assert [message for message in messages if message not in source] == []
