"""The inputs of `idefics caption`, with a fake model: the pictures and the questions."""

from __future__ import annotations

import io
import json
import os
import subprocess
from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.cli.services import Services
from idefics_cli.core.types import GenerationRequest
from tests.support.commands import Ran, World, run
from tests.support.fakes import FakeEngine

NAMES = ("a.jpg", "b.jpg", "sub/c.png")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    (folder / "photos" / "sub").mkdir(parents=True)
    monkeypatch.chdir(folder)
    for number, name in enumerate(NAMES):
        Image.new("RGB", (10 + number, 5)).save(f"photos/{name}")
    return folder


def echo(request: GenerationRequest) -> str:
    """Answer with the question, so that the caption shows it."""
    return request.messages[0].text


def asked(*arguments: str, stdin: bytes | None = None) -> Ran:
    world = World(FakeEngine(echo), stdin=None if stdin is None else io.BytesIO(stdin))
    return run("caption", *arguments, "-q", services=world.services)


def lines(*pairs: tuple[str, str]) -> str:
    return "".join(f"photos/{name}\t{text}\n" for name, text in pairs)


EVERY = lines(*((name, "x") for name in NAMES))


@pytest.mark.parametrize(
    ("arguments", "stdin"),
    [
        (("photos", "-r"), None),
        (("--filelist", "l.txt"), None),
        (("--filelist", "-"), b"photos/a.jpg\r\nphotos/b.jpg\r\n\r\nphotos/sub/c.png"),
        (("--filelist", "-", "--null"), b"photos/a.jpg\0photos/b.jpg\0photos/sub/c.png\0"),
        (("-0", "--filelist=-"), b"photos/a.jpg\0photos/b.jpg\0photos/sub/c.png\0"),
        (("--filelist", "photos/metadata.jsonl"), None),
        (("--filelist", "l.csv"), None),
        (("--filelist", "-"), b"path,n\nphotos/a.jpg,1\nphotos/b.jpg,2\nphotos/sub/c.png,3\n"),
        (("photos/a.jpg", "--filelist", "l.csv", "--filelist", "l.txt"), None),
    ],
)
def test_every_way_to_name_the_same_pictures_gives_the_same(
    arguments: tuple[str, ...], stdin: bytes | None
) -> None:
    paths = [f"photos/{name}" for name in NAMES]
    Path("l.txt").write_text("\n".join(paths), "utf-8")
    Path("l.csv").write_text("path\n" + "\n".join(paths), "utf-8")
    rows = (json.dumps({"file_name": name}) for name in NAMES)
    Path("photos/metadata.jsonl").write_text("\n".join(rows), "utf-8")

    assert tuple(asked(*arguments, "-p", "x", stdin=stdin)) == (0, EVERY, "")


@pytest.mark.skipif(os.name == "nt", reason="such names are not allowed here")
def test_what_find_prints_is_captioned_whatever_the_names() -> None:
    for name in (b"two\nlines", b"caf\xe9", b" a", b"'q'", b'"q"', b"-r", b"{stem}", b"*", b"a,b"):
        Image.new("RGB", (4, 4)).save(b"photos/" + name, "PNG")
    found = subprocess.run(
        ["find", "photos", "-type", "f", "-print0"], capture_output=True, check=True
    ).stdout

    listed = asked("--filelist", "-", "--null", stdin=found)
    assert sorted(listed.out.splitlines()) == sorted(asked("photos", "-r").out.splitlines())
    assert len(listed.out.splitlines()) == 12
    assert (listed.code, listed.err) == (0, "")


def test_a_list_of_failures_is_a_list() -> None:
    text = "photos/a.jpg\nphotos/b.jpg\n"

    assert asked("--filelist", "-", "-p", "x", stdin=text.encode()).out == lines(
        ("a.jpg", "x"), ("b.jpg", "x")
    )


def test_rows_that_were_written_can_be_read_again() -> None:
    for name in ("out.jsonl", "out.csv"):
        assert asked("photos", "-r", "-p", "seen in {folder}", "-o", name).code == 0

        again = asked("--filelist", name, "-p", "Shorter: {caption} {width} {existing}")
        assert again.out == lines(
            ("a.jpg", "Shorter: seen in photos 64 seen in photos"),
            ("b.jpg", "Shorter: seen in photos 64 seen in photos"),
            ("sub/c.png", "Shorter: seen in sub 64 seen in sub"),
        )


def test_a_prompt_has_the_fields_of_the_picture_and_of_its_row() -> None:
    Path("l.csv").write_text("file,who\nphotos/a.jpg,Ann\nphotos/sub/c.png,\n", "utf-8")
    Path("photos/a.txt").write_text("old\n", "utf-8")
    Path("photos/sub/c.txt").touch()

    text = '{who}|{stem}|{name}|{folder}|{existing}|{width}x{height}|{{stem}}|{"k": 1}'
    assert asked("--filelist", "l.csv", "-p", text).out == lines(
        ("a.jpg", 'Ann|a|a.jpg|photos|old|10x5|{stem}|{"k": 1}'),
        ("sub/c.png", '|c|c.png|sub||12x5|{stem}|{"k": 1}'),
    )


def test_a_picture_that_lacks_a_field_is_a_failed_row_and_the_others_go_on() -> None:
    rows = b'{"path": "photos/a.jpg"}\n{"path": "photos/b.jpg", "who": "Bob"}\n'
    ran = asked("--filelist", "-", "-p", "{who}", stdin=rows)

    assert tuple(ran) == (
        3,
        lines(("b.jpg", "Bob")),
        "error: `photos/a.jpg` has no `who` for the prompt\n"
        "hint: its row in the list must have that column, even if the value is empty\n",
    )


def test_the_limit_of_pixels_holds_for_the_fields_of_a_prompt() -> None:
    ran = asked("photos/a.jpg", "-p", "{width}", "--max-pixels", "49")

    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith("error: `photos/a.jpg` is too large: 10x5 pixels, the limit is 49\n")


def test_captions_in_a_folder_are_improved_in_place() -> None:
    flags = ("photos", "-r", "--format", "txt", "-o", "out", "-q")
    assert asked(*flags, "-p", "one").code == 0
    # The text files beside the pictures come second.
    Path("photos/a.txt").write_text("beside", "utf-8")

    assert asked(*flags, "--existing", "overwrite", "-p", "more than {existing}").code == 0
    written = {p.relative_to("out").as_posix(): p.read_text() for p in Path("out").rglob("*.txt")}
    assert written == dict.fromkeys(("a.txt", "b.txt", "sub/c.txt"), "more than one\n")


def test_a_prompt_comes_from_a_file_or_stdin_as_from_the_flag() -> None:
    text = "Is it {stem},\nor “not”?"
    Path("p.txt").write_bytes(b"\xef\xbb\xbf" + text.encode() + b"\r\n")
    for flags in (("-p", text), ("--prompt-file", "p.txt"), ("--prompt-file", "-")):
        world = World(FakeEngine(echo), stdin=io.BytesIO(text.encode() + b"\n"))
        run("caption", "photos/a.jpg", *flags, services=world.services)
        (request,) = world.engine.requests
        assert request.messages[0].text == "Is it a,\nor “not”?"


def test_a_prompt_file_and_questions_replace_the_prompt_of_the_settings() -> None:
    Path("p.txt").write_text("mine", "utf-8")
    for flags in (("--prompt-file", "p.txt"), ("--ask", "q=mine")):
        world = World(FakeEngine(echo), IDEFICS_PROMPT="of the settings")
        ran = run("caption", "photos/a.jpg", *flags, "-q", services=world.services)
        assert ran.out == lines(("a.jpg", "mine"))


def test_several_questions_are_several_columns_of_one_row() -> None:
    flags = ("--ask", "what=What is {stem}?", "--ask", "caption=Describe.", "--format", "jsonl")
    ran = asked("photos", *flags)

    rows = [json.loads(line) for line in ran.out.splitlines()]
    assert [list(row)[:4] for row in rows] == [["file_name", "what", "caption", "status"]] * 2
    assert [(row["file_name"], row["what"], row["caption"]) for row in rows] == [
        ("photos/a.jpg", "What is a?", "Describe."),
        ("photos/b.jpg", "What is b?", "Describe."),
    ]


def test_wrong_fields_names_and_rows_are_told_before_a_model_is_looked_for() -> None:
    Path("bad.csv").write_text("path,x\na\n", "utf-8")
    for flags in (("-p", "{stemm}"), ("--ask", "a b=c"), ("--filelist", "bad.csv")):
        world = World(FakeEngine())
        ran = run("caption", "photos", *flags, services=world.services)
        assert (ran.code, ran.out, world.looked_up) == (2, "", [])


def test_a_dry_run_tells_the_questions() -> None:
    given = ("photos", "--ask", "a=One?", "--ask", "b=Two?", "--batch-size", "8", "--dry-run")
    ran = run("caption", *given, services=World(FakeEngine()).services)

    assert ran.out.endswith("2 pictures, 8 at a time, with the prompts `One?`, `Two?`\n")
    services = World(FakeEngine(), IDEFICS_JSON="1").services
    assert run("caption", *given, services=services).record["questions"] == {
        "a": "One?",
        "b": "Two?",
    }


def test_a_terminal_on_stdin_is_no_list() -> None:
    class Keyboard(io.BytesIO):
        def isatty(self) -> bool:
            return True

    services = Services(environ={}, stdin=Keyboard())
    ran = run("caption", "--filelist", "-", services=services)
    assert tuple(ran) == (
        2,
        "",
        "error: `--filelist -` needs text on stdin\nhint: pipe it in, or name a file\n",
    )


def test_a_list_that_does_not_come_is_waited_for_and_that_is_said() -> None:
    reading, writing = os.pipe()

    class Late(io.FileIO):
        def read(self, size: int | None = -1) -> bytes:
            os.write(writing, b"photos/a.jpg\n")
            os.close(writing)
            return super().read(-1)

    # The object is closed here. Otherwise the garbage collector closes it in a later test and
    # raises.
    with Late(reading) as late:
        services = World(FakeEngine(echo), stdin=late).services
        ran = run("caption", "--filelist", "-", "-p", "x", services=services)
    assert (ran.code, ran.out) == (0, "photos/a.jpg\tx\n")
    note = "note: waiting for the list of pictures on stdin; Ctrl-D ends typed input\n"
    assert ran.err.startswith(note)


def test_a_process_captions_a_piped_list_with_the_built_in_model(
    warm_python: tuple[str, ...],
) -> None:
    ran = subprocess.run(
        [
            *(*warm_python, "-m", "idefics_cli", "caption", "--filelist", "-", "--null"),
            *("-m", "demo", "-q", "--ask", "a=What is the background color?", "--ask", "b={width}"),
        ],
        input=b"photos/a.jpg\0photos/sub/c.png\0",
        capture_output=True,
        check=False,
    )
    names = [line.split(b"\t")[0] for line in ran.stdout.splitlines()]
    assert sorted(names) == [b"photos/a.jpg", b"photos/sub/c.png"]
    assert (ran.returncode, ran.stderr) == (0, b"")
