"""Mistakes of new users: each gets an error and a hint, in few lines."""

from __future__ import annotations

import io
import shlex
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import pytest
from PIL import Image

from idefics_cli.models.hub import download
from idefics_cli.models.hub.facts import find_facts
from idefics_cli.models.hub.progress import Transfer
from tests.support.commands import Terminal, World, run
from tests.support.fakes import FakeEngine

NO_MODEL = "`idefics models` lists the names"

# The typed line, the exit code, and parts of the error and of the hint.
MISTAKES = [
    # A word in place of a command.
    ("photo.jpg", 2, "no command `photo.jpg`", 'idefics ask "What is in it?" -i photo.jpg'),
    ("photo.jpg other.png", 2, "no command", "idefics caption photo.jpg other.png"),
    ("photos", 2, "no command `photos`", "idefics caption photos"),
    ("./photos/", 2, "no command", "idefics caption ./photos/"),
    ("'my photo.jpg'", 2, "no command", "-i 'my photo.jpg'"),
    ("'What is this?'", 2, "no command", "idefics ask 'What is this?' -i PICTURE"),
    ("'What is this?' photo.jpg", 2, "no command", "idefics ask 'What is this?' -i photo.jpg"),
    ("capton photos", 2, "no command", "did you mean `idefics caption photos`?"),
    ("aks hello", 2, "no command", "did you mean `idefics ask hello`?"),
    ("caht", 2, "no command", "did you mean `idefics chat`?"),
    ("CAPTION photos", 2, "no command", "did you mean `idefics caption photos`?"),
    ("describe photo.jpg", 2, "no command", "idefics caption photo.jpg"),
    ("run idefics2-8b", 2, "no command", "idefics chat -m idefics2-8b"),
    ("pull idefics2-8b", 2, "no command", "idefics models pull idefics2-8b"),
    ("download idefics2-8b", 2, "no command", "idefics models pull idefics2-8b"),
    ("list", 2, "no command", "`idefics models`"),
    ("version", 2, "no command", "idefics --version"),
    ("resume", 2, "no command", "idefics chat -c"),
    ("idefics2-8b", 2, "no command", "idefics chat -m idefics2-8b"),
    ("HuggingFaceM4/idefics2-8b", 2, "no command", "idefics chat -m HuggingFaceM4/idefics2-8b"),
    ("zzzzz", 2, "no such command", "idefics --help"),
    ("-m demo", 2, "no such option: -m", "`idefics ask -m`"),
    ("--model demo", 2, "no such option: --model", "`idefics ask --model`"),
    ("-i photo.jpg", 2, "no such option: -i", "`idefics ask -i`"),
    ("--hlep", 2, "no such option", "--help"),
    ("help nonsense", 2, "no such command", "idefics --help"),
    # After a command.
    ("models list", 2, "no command", "`idefics models`"),
    ("models idefics2-8b", 2, "no command", "idefics models pull idefics2-8b"),
    ("models rm idefics2-8b", 2, "no command", "hf cache rm"),
    ("models pul demo", 2, "no command", "did you mean `idefics models pull demo`?"),
    ("models pull", 2, "missing argument 'NAME'", "idefics models pull --help"),
    ("models pull idefics2", 1, "unknown model `idefics2`", "`idefics2-8b`"),
    ("models path nothing", 1, "unknown model `nothing`", NO_MODEL),
    ("config set model demo", 2, "no command", "idefics config path"),
    ("config get model", 2, "no command", "`idefics config`"),
    ("sessions delete holidays", 2, "no command", "idefics sessions rm holidays"),
    ("sessions show nothing", 1, "there are no sessions yet", "idefics chat"),
    ("demo", 2, "missing argument 'DIR'", "idefics demo --help"),
    # ask and chat.
    ("ask", 2, "the prompt is empty", "idefics ask 'What is in the picture?' -i PICTURE"),
    ("ask ''", 2, "the prompt is empty", "-i PICTURE"),
    ("ask '   ' -i photo.jpg", 2, "the prompt is empty", "-i PICTURE"),
    ("ask photo.jpg", 2, "`photo.jpg` is a file, not a question", "-i photo.jpg"),
    ("ask What is this", 2, "unexpected extra argument", "put the prompt into quotes"),
    ("ask 'What?' photo.jpg", 2, "unexpected extra argument", "`-i` before each picture"),
    ("ask 'What?' -i phto.jpg", 1, "no such file: `phto.jpg`", "did you mean `photo.jpg`?"),
    ("ask 'What?' -i photos", 1, "`photos` is a folder", "idefics caption"),
    (
        "ask 'What?' -i notes.txt",
        1,
        "`notes.txt`: it is text",
        "`idefics caption --filelist notes.txt`",
    ),
    ("ask 'What?' -i empty.jpg", 1, "`empty.jpg`", ""),
    ("ask 'What?' -i broken.jpg", 1, "`broken.jpg`", ""),
    ("ask 'What?' -i", 2, "option '-i' requires an argument", "idefics ask --help"),
    ("ask 'What?' -i -", 2, "`-i -` needs a picture on stdin", "<PICTURE"),
    ("ask 'What?' --img photo.jpg", 2, "no such option: --img", "--image"),
    ("ask 'What?' -i 'ftp://x/y.jpg'", 1, "ftp://x/y.jpg", ""),
    ("ask 'What?' -m idefics2", 1, "unknown model `idefics2`", "did you mean `idefics2-8b`"),
    ("ask 'What?' -m smolvlm", 1, "unknown model `smolvlm`", "did you mean `smolvlm-500m`"),
    ("ask 'What?' -m llava", 1, "unknown model `llava`", NO_MODEL),
    ("ask 'What?' -m ''", 1, "model", ""),
    ("ask 'What?' --temperature hot", 2, "--temperature must be a number, not `hot`", ""),
    ("ask 'What?' --quantization 3bit", 2, "not `3bit`", ""),
    ("ask 'What?' --quantization int4", 2, "not `int4`", ""),
    ("ask 'What?' --device gpu", 2, "not `gpu`", ""),
    ("ask 'What?' --device cuda", 2, "`--device cuda`", ""),
    ("ask 'What?' --dtype fp16", 2, "not `fp16`", ""),
    ("ask 'What?' --max-tokens 10", 2, "no such option: --max-tokens", "--max-new-tokens"),
    ("chat photo.jpg", 2, "unexpected extra argument", "`-i` before each picture"),
    ("chat 'What is this?'", 2, "unexpected extra argument", "pipe the question in"),
    # caption.
    ("caption nothing/*.jpg", 1, "no picture matches `nothing/*.jpg`", ""),
    (
        "ask 'What?' -i list.jsonl",
        1,
        "`list.jsonl`: it is text",
        "`idefics caption --filelist list.jsonl`",
    ),
    ("caption nothing.jpg", 1, "no such file: `nothing.jpg`", ""),
    ("caption folder", 1, "no pictures in folder `folder`", "-r"),
    ("caption photos --format yaml", 2, "not `yaml`", ""),
    ("caption photos --ouput x", 2, "no such option: --ouput", "--output"),
    ("caption photos --prompt ''", 2, "the prompt is empty", "--prompt"),
    ("caption photos --batch-size 0", 2, "--batch-size must be 1 or more", ""),
    ("caption photos -o nowhere/x.jsonl", 2, "nowhere", ""),
    ("caption photos -o photos", 2, "`photos`", ""),
    # Options of other tools.
    ("ask -p 'What?' -i photo.jpg", 2, "no such option: -p", "the question has no option"),
    ("ask --prompt 'What?'", 2, "no such option: --prompt", "idefics ask QUESTION -i PICTURE"),
    ("ask 'What?' -f photo.jpg", 2, "no such option: -f", "`-i PICTURE`"),
    ("ask 'What?' --picture photo.jpg", 2, "no such option: --picture", "`-i PICTURE`"),
    ("ask 'What?' --temp 1", 2, "no such option: --temp", "`--temperature`"),
    ("ask 'What?' --4bit", 2, "no such option: --4bit", "`--quantization 4bit`"),
    ("ask 'What?' --cpu", 2, "no such option: --cpu", "`--device cpu`"),
    ("caption -i photo.jpg", 2, "no such option: -i", "idefics caption photos/ -r"),
    ("caption photos --limit 10", 2, "no such option: --limit", "--filelist"),
    ("ask 'What?' --samples 3", 2, "no such option: --samples", "option of `idefics caption`"),
    ("ask 'What?' -r photos", 2, "no such option: -r", "option of `idefics caption`"),
    ("models --device cpu", 2, "no such option: --device", "`idefics chat` and other commands"),
    ("caption photos --json", 2, "no such option: --json", "`--format jsonl`"),
    ("tune photos --steps 9", 2, "no such option: --steps", "`--epochs X`"),
    ("caption photos --resume", 2, "no such option: --resume", "same command continues"),
    ("models --pull demo", 2, "no such option: --pull", "`idefics models pull NAME`"),
    ("config --set model=demo", 2, "no such option: --set", "idefics config path"),
    ("-m demo caption photos", 2, "no such option: -m", "`idefics caption -m demo photos`"),
    ("-v ask 'Why so?'", 2, "no such option: -v", "`idefics ask -v 'Why so?'`"),
    ("caption photos \u2013r", 2, "begins with a typographic dash", "type `-r`"),
    ("ask 'What?' \u2014model demo", 2, "begins with a typographic dash", "type `--model`"),
    # Words in the wrong place.
    ("chat demo", 2, "unexpected extra argument", "`-m demo`"),
    ("doctor idefics2-8b", 2, "unexpected extra argument", "`-m idefics2-8b`"),
    ("models pull demo smolvlm-256m", 2, "unexpected extra argument", "one model at a time"),
    ("config model", 2, "no command `model`", "idefics config path"),
    ("config max-new-tokens=9", 2, "no command", "shows `max-new-tokens`"),
    ("completion bash", 2, "no command `bash`", "`idefics completion install bash`"),
    ("completion install tcsh", 2, "`tcsh`", "bash, zsh, fish"),
    ("upgrade", 2, "no command `upgrade`", "pip install --upgrade idefics-cli"),
    ("export holidays", 2, "no command", "idefics sessions export holidays"),
    ("login", 2, "no command `login`", "hf auth login"),
    ("exit", 2, "no command `exit`", "idefics chat"),
    ("https://example.com/x.jpg", 2, "no command", "-i https://example.com/x.jpg"),
    ("'*.tiff'", 2, "no command", "no picture matches `*.tiff` here"),
    # Names and files.
    ("ask 'What?' -i photo.jpg,other.png", 1, "no such file", "each picture has its own `-i`"),
    ("ask 'What?' -i '*.jpg'", 1, "no such file: `*.jpg`", "globs are for `idefics caption`"),
    ("ask 'What?' -i PHOTO.JPG", 1, "no such file: `PHOTO.JPG`", "did you mean `photo.jpg`?"),
    ("ask 'What?' -i movie.mp4", 1, "it is a video", "ffmpeg"),
    (
        "ask 'What?' -m https://huggingface.co/HuggingFaceM4/idefics2-8b",
        1,
        "is an address",
        "`-m HuggingFaceM4/idefics2-8b`",
    ),
    ("ask 'What?' -m photos", 1, "`photos` has no config.json", "a model folder holds"),
    ("ask 'What?' -m ./missing", 1, "there is no folder `./missing`", "Hub id"),
    ("ask 'What?' -m idefics2:8b", 1, "unknown model `idefics2:8b`", "`idefics2-8b`"),
    ("caption photos -o captions.json", 2, "no format for `captions.json`", "captions.jsonl"),
    ("caption photos -o captions.xlsx", 2, "no format for `captions.xlsx`", "captions.csv"),
    ("caption photos -o gallery.html", 2, "no format for `gallery.html`", "--report"),
    ("caption photos -o ''", 2, "the name of the output file is empty", "`-` is stdout"),
    ("caption photos.zip", 1, "no such file: `photos.zip`", "did you mean `photos`?"),
    ("demo photo.jpg", 2, "`photo.jpg` is not a folder", "name another folder"),
]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    for folder in ("photos", "folder/sub"):
        (tmp_path / folder).mkdir(parents=True)
    for name in ("photo.jpg", "my photo.jpg", "other.png", "photos/a.jpg", "folder/sub/a.jpg"):
        Image.new("RGB", (32, 24), "red").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("milk\n")
    (tmp_path / "list.jsonl").write_text('{"file_name": "photo.jpg"}\n')
    (tmp_path / "empty.jpg").touch()
    (tmp_path / "movie.mp4").write_bytes(b"\0\0\0\x20ftypisom" + bytes(99))
    (tmp_path / "broken.jpg").write_bytes((tmp_path / "photo.jpg").read_bytes()[:100])
    return tmp_path


def test_there_are_at_least_sixty_of_them() -> None:
    assert len({line for line, *_ in MISTAKES}) == len(MISTAKES) >= 60


@pytest.mark.usefixtures("place")
@pytest.mark.parametrize(("line", "code", "error", "hint"), MISTAKES, ids=str)
def test_a_mistake_is_told_with_the_way_out(line: str, code: int, error: str, hint: str) -> None:
    engine = FakeEngine("a red picture")
    # The real function is used, because none of these mistakes leads to a download.
    services = replace(World(engine).services, find_facts=find_facts)

    ran = run(*shlex.split(line), services=services)

    lines = [line for line in ran.err.splitlines() if "is not downloaded yet" not in line]
    assert (ran.code, ran.out, engine.requests) == (code, "", [])
    assert lines[0].startswith("error: ")
    assert error in lines[0]
    assert hint in "".join(lines[1:])
    assert [line.split()[0] for line in lines[1:]] in ([], ["hint:"])
    assert "Traceback" not in ran.err


# The first use of a model.


@pytest.mark.parametrize("answer", [b"\n", b"y\n", b"YES\n", b"what?\ny\n"])
def test_a_download_is_told_and_asked_for_on_a_terminal(answer: bytes) -> None:
    world = World(FakeEngine("blue"), is_cached=False, stdin=Terminal(answer))
    ran = run("ask", "Which colour?", services=world.services, terminal=True)
    assert (ran.code, ran.out, len(world.specs)) == (0, "blue\n", 1)
    said = "`smolvlm-256m` is not downloaded yet: about 0.5 GiB from the Hugging Face Hub"
    assert said in " ".join(ran.err.split())
    assert ran.err.count("Download it? [Y/n]") == answer.count(b"\n")


@pytest.mark.parametrize("answer", [b"n\n", b"No\n", b""])
def test_a_download_that_is_not_wanted_does_not_begin(answer: bytes) -> None:
    world = World(FakeEngine("blue"), is_cached=False, stdin=Terminal(answer))
    ran = run("ask", "Which colour?", services=world.services, terminal=True)
    assert (ran.code, ran.out, world.specs) == (1, "", [])
    assert "`smolvlm-256m` is not downloaded" in ran.err
    assert "`-m demo` is built in" in ran.err


@pytest.mark.parametrize(
    ("stdin", "terminal", "flags"),
    [
        (io.BytesIO(b"Which colour?"), True, ()),
        (None, True, ()),
        (Terminal(b"n\n"), False, ()),
        (Terminal(b"n\n"), True, ("--yes",)),
    ],
)
def test_nobody_is_asked_in_a_script(
    stdin: BinaryIO | None, terminal: bool, flags: tuple[str, ...]
) -> None:
    world = World(FakeEngine("blue"), is_cached=False, stdin=stdin)
    ran = run("ask", "Which colour?", *flags, services=world.services, terminal=terminal)
    assert (ran.code, ran.out) == (0, "blue\n")
    assert "is not downloaded yet" in ran.err
    assert "[Y/n]" not in ran.err


def test_a_model_that_is_here_is_not_spoken_of() -> None:
    world = World(FakeEngine("blue"), stdin=Terminal(b""))
    assert run("ask", "Which colour?", services=world.services).err == ""


def test_a_disk_that_is_too_full_is_noticed_before_anybody_is_asked(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(download, "free_bytes", lambda folder: 2**20)
    world = World(FakeEngine("blue"), is_cached=False, stdin=Terminal(b"y\n"))
    ran = run("ask", "Which colour?", services=world.services, terminal=True)
    assert (ran.code, ran.out, world.specs) == (1, "", [])
    assert "0.5 GiB of disk space, and 1 MiB are free" in " ".join(ran.err.split())
    assert "[Y/n]" not in ran.err


def test_a_transfer_tells_its_speed_of_late_and_the_time_left() -> None:
    now = [0.0]
    transfer = Transfer(2**30, clock=lambda: now[0])
    assert transfer.describe(0) == "downloading 0 KiB of 1.0 GiB"
    for second in range(1, 31):
        now[0] = second
        said = transfer.describe(second * 8 * 2**20)
    assert said == "downloading 0.2 GiB of 1.0 GiB, 8 MiB/s, 2 min left"
    for second in range(31, 60):
        now[0] = second
        said = transfer.describe(240 * 2**20 + (second - 30) * 2**20)
    assert said.endswith(", 1 MiB/s, 13 min left")


def test_a_transfer_that_stands_still_promises_nothing() -> None:
    now = [0.0]
    transfer = Transfer(2**30, clock=lambda: now[0])
    for second in range(40):
        now[0] = second
        said = transfer.describe(2**20)
    assert said == "downloading 1 MiB of 1.0 GiB"
