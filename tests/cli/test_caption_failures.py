"""`idefics caption` when something goes wrong: bad files, wrong usage, interrupts."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from idefics_cli.core.errors import ImageError, MemoryLimitError, ModelError
from idefics_cli.core.types import (
    GenerationRequest,
)
from tests.support.commands import Terminal, World, run
from tests.support.fakes import FakeEngine
from tests.support.photo_folder import ALL, BAD, REST, describe_photo

pytestmark = pytest.mark.usefixtures("photos")


def test_one_bad_file_is_told_and_the_others_go_on() -> None:
    engine = FakeEngine(describe_photo, image_errors={"photos/b.jpg": BAD})
    ran = run("caption", "photos", services=World(engine).services)

    assert tuple(ran) == (
        3,
        REST,
        "error: cannot read `photos/b.jpg`: it is cut off\n"
        "hint: copy it again\n"
        "captioned 2 of 3 in 3.0 s (0.7/s), 1 failed\n",
    )


def test_failures_are_told_when_quiet_too() -> None:
    engine = FakeEngine(describe_photo, image_errors={"photos/b.jpg": BAD})
    ran = run("caption", "photos", "-q", services=World(engine).services)

    assert tuple(ran) == (
        3,
        REST,
        "error: cannot read `photos/b.jpg`: it is cut off\nhint: copy it again\n",
    )


def test_only_failures_are_a_failure() -> None:
    errors = {f"photos/{n}": BAD for n in ("a.jpg", "b.jpg", "c.png")}
    ran = run("caption", "photos", services=World(FakeEngine(image_errors=errors)).services)

    assert (ran.code, ran.out) == (1, "")
    assert ran.err.endswith("captioned 0 of 3, 3 failed\n")


def test_a_missing_file_and_an_empty_folder_are_told_and_the_others_go_on() -> None:
    os.mkdir("empty")
    missing = ImageError("no such file: `gone.jpg`", kind="missing")
    engine = FakeEngine(describe_photo, image_errors={"gone.jpg": missing})
    ran = run("caption", "gone.jpg", "empty", "photos", services=World(engine).services)

    assert tuple(ran) == (
        3,
        ALL,
        "error: no pictures in folder `empty`\n"
        "error: no such file: `gone.jpg`\n"
        "captioned 3 of 4 in 4.0 s (0.8/s), 1 failed\n",
    )


def test_an_empty_folder_among_others_is_a_partial_failure_without_a_failed_picture() -> None:
    os.mkdir("empty")
    ran = run(
        "caption", "empty", "photos", "-r", services=World(FakeEngine(describe_photo)).services
    )

    assert ran.code == 3
    assert ran.err.splitlines() == [
        "error: no pictures in folder `empty`",
        "captioned 4 of 4 in 4.0 s (1.0/s)",
    ]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (["gone.jpg"], "error: no such file: `gone.jpg`\nhint: check the path\n"),
        (
            ["photos/sub/.."],
            "error: no pictures in folder `photos/sub/..`\n"
            "hint: `-r` also looks into its sub-folders\n",
        ),
        (
            ["*.jpg"],
            "error: no picture matches `*.jpg`\n"
            "hint: `**` matches any depth; `-r FOLDER` takes all of it\n",
        ),
        (["**/*.gif"], "error: no picture matches `**/*.gif`\n"),
    ],
)
def test_nothing_to_caption_is_an_error_before_any_model_is_looked_up(
    paths: list[str], message: str
) -> None:
    for path in ("a.jpg", "b.jpg", "c.png"):
        os.remove(f"photos/{path}")
    world = World(FakeEngine())
    ran = run("caption", *paths, services=world.services)

    assert tuple(ran) == (1, "", message)
    assert world.looked_up == []


def test_no_path_is_wrong_usage() -> None:
    ran = run("caption", services=World(FakeEngine()).services)

    assert (ran.code, ran.out) == (2, "")
    assert ran.err == (
        "error: no pictures are given\n"
        "hint: `idefics caption photos/ -r`; `--filelist FILE` takes a list of them\n"
    )


@pytest.mark.parametrize(
    ("prompt", "message"),
    [(" ", "the prompt is empty"), ("\udcff", "the prompt is not valid UTF-8 text")],
)
def test_a_prompt_that_says_nothing_is_refused(prompt: str, message: str) -> None:
    world = World(FakeEngine())
    ran = run("caption", "photos", "--prompt", prompt, services=world.services)

    assert (ran.code, ran.out, ran.err.splitlines()[0]) == (2, "", f"error: {message}")
    assert world.specs == []


def test_a_picture_on_stdin_is_taken_unless_stdin_is_a_keyboard() -> None:
    piped = World(FakeEngine(lambda request: "a cat"), stdin=io.BytesIO(b"picture"))
    ran = run("caption", "-", "-q", services=piped.services)
    assert tuple(ran) == (0, "-\ta cat\n", "")

    for stdin in (Terminal(), None):
        ran = run("caption", "-", services=World(FakeEngine(), stdin=stdin).services)
        assert (ran.code, ran.out) == (2, "")
        assert ran.err.startswith("error: `-` needs a picture on stdin\n")


def test_a_model_that_does_not_load_is_one_error_and_no_file() -> None:
    error = ModelError("`x` is not in the cache", hint="`--model demo` is built in")
    world = World(FakeEngine(), load_error=error)
    ran = run("caption", "photos", "-o", "out", services=world.services)

    assert tuple(ran) == (
        1,
        "",
        "error: `x` is not in the cache\nhint: `--model demo` is built in\n",
    )
    assert not Path("out").exists()


def test_too_little_memory_for_a_batch_is_told_and_gives_the_same_captions() -> None:
    engine = FakeEngine(
        describe_photo,
        completion_error=lambda requests: (
            MemoryLimitError("out of memory") if len(requests) > 1 else None
        ),
    )
    ran = run("caption", "photos", "--batch-size", "2", services=World(engine).services)

    assert tuple(ran) == (
        0,
        ALL,
        "warning: out of memory: continuing with one picture at a time\n"
        "captioned 3 of 3 in 3.0 s (1.0/s)\n",
    )


def test_an_interrupt_keeps_what_is_finished_and_says_so() -> None:
    answers = iter(["one", "two"])

    def answer(request: GenerationRequest) -> str:
        try:
            return next(answers)
        except StopIteration:
            raise KeyboardInterrupt from None

    engine = FakeEngine(answer)
    ran = run("caption", "photos", "--batch-size", "1", services=World(engine).services)

    assert tuple(ran) == (
        130,
        "photos/a.jpg\tone\nphotos/b.jpg\ttwo\n",
        "interrupted: captioned 2 of 3 in 2.0 s (1.0/s)\n"
        "note: with `-o FILE`, the same command could continue from here\n",
    )
    assert engine.is_closed
