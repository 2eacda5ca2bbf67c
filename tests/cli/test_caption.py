"""`idefics caption` with a fake model: exit code, stdout and stderr, whole."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest

from idefics_cli.caption.sinks import SINKS
from idefics_cli.cli.commands.caption.inputs import automatic_batch
from idefics_cli.config.settings import CAPTION_TOKENS
from idefics_cli.core.errors import ImageError
from idefics_cli.core.types import (
    DECODING_BYTES,
    Attachment,
    GenerationRequest,
    ImageLimits,
    Message,
    Sampling,
)
from idefics_cli.models.planning.memory import CPU_RUNTIME_BYTES, GPU_RUNTIME_BYTES
from idefics_cli.models.planning.needs import Need
from tests.support.commands import World, run
from tests.support.fakes import FakeEngine
from tests.support.photo_folder import ALL, BAD, describe_photo

pytestmark = pytest.mark.usefixtures("photos")


def test_a_folder_gives_a_line_each_in_order_and_a_summary() -> None:
    ran = run("caption", "photos", services=World(FakeEngine(describe_photo)).services)

    assert tuple(ran) == (0, ALL, "captioned 3 of 3 in 3.0 s (1.0/s)\n")


@pytest.mark.parametrize("paths", [["photos/*"], ["photos/*.jpg", "photos/c.png"], ["./photos/"]])
def test_a_glob_that_no_shell_expanded_gives_the_same_lines(paths: list[str]) -> None:
    os.remove("photos/notes.txt")
    os.remove("photos/sub/e.jpg")
    os.rmdir("photos/sub")

    ran = run("caption", *paths, services=World(FakeEngine(describe_photo)).services)
    assert tuple(ran) == (0, ALL, "captioned 3 of 3 in 3.0 s (1.0/s)\n")


def test_sub_folders_are_taken_when_asked_for() -> None:
    short = World(FakeEngine(describe_photo))
    variable = World(FakeEngine(describe_photo), IDEFICS_RECURSIVE="1")
    ran = run("caption", "photos", "-r", services=short.services)

    assert ran == run("caption", "photos", services=variable.services)
    assert ran.out == ALL + "photos/sub/e.jpg\ta picture named e\n"


def test_a_picture_is_captioned_once_however_often_it_is_named() -> None:
    paths = ("photos/b.jpg", "photos", "./photos/a.jpg", "photos/*.png")
    ran = run("caption", *paths, services=World(FakeEngine(describe_photo)).services)

    assert sorted(ran.out.splitlines()) == ALL.splitlines()
    assert ran.out.startswith("photos/b.jpg\t")


def test_quiet_leaves_the_captions_only() -> None:
    ran = run("caption", "photos", "-q", services=World(FakeEngine(describe_photo)).services)

    assert tuple(ran) == (0, ALL, "")


def test_json_lines_have_a_row_for_each_picture_and_the_failures() -> None:
    engine = FakeEngine(
        describe_photo, image_errors={"photos/b.jpg": BAD}, sizes={"photos/c.png": (200, 100)}
    )
    ran = run("caption", "photos", "--format", "jsonl", services=World(engine).services)

    rows = [json.loads(line) for line in ran.out.splitlines()]
    assert [list(row) for row in rows] == [
        [
            *("file_name", "caption", "status", "error", "error_kind", "finish"),
            *("width", "height", "sha256", "tokens", "seconds"),
        ]
    ] * 3
    assert rows[1] == {
        "file_name": "photos/b.jpg",
        "caption": None,
        "status": "error",
        "error": "cannot read `photos/b.jpg`: it is cut off",
        "error_kind": "truncated",
        "finish": None,
        "width": None,
        "height": None,
        "sha256": hashlib.sha256(b"").hexdigest(),
        "tokens": 0,
        "seconds": 0.0,
    }
    assert rows[2] | {"seconds": None} == {
        "file_name": "photos/c.png",
        "caption": "a picture named c",
        "status": "ok",
        "error": None,
        "error_kind": None,
        "finish": "stop",
        "width": 200,
        "height": 100,
        "sha256": hashlib.sha256(b"").hexdigest(),
        "tokens": 5,
        "seconds": None,
    }
    assert ran.code == 3


@pytest.mark.parametrize("format_", ["tsv", "jsonl", "csv"])
def test_a_file_gets_what_stdout_would(format_: str) -> None:
    arguments = ("caption", "photos", "--format", format_)
    to_stdout = run(*arguments, services=World(FakeEngine(describe_photo)).services)
    to_file = run(*arguments, "-o", "out", services=World(FakeEngine(describe_photo)).services)

    assert to_file.out == ""
    assert to_stdout.out == Path("out").read_text("utf-8")
    assert to_stdout.err == to_file.err
    assert (
        run(*arguments, "-o", "-", services=World(FakeEngine(describe_photo)).services) == to_stdout
    )


@pytest.mark.parametrize(
    ("paths", "subject"),
    [(["photos/a.jpg"], "one caption was"), (["photos"], "3 captions were")],
)
def test_captions_that_were_cut_are_told_and_are_no_failure(paths: list[str], subject: str) -> None:
    arguments = ("caption", *paths, "--max-new-tokens", "2")
    ran = run(*arguments, services=World(FakeEngine(describe_photo)).services)

    assert ran.code == 0
    assert ran.out.startswith("photos/a.jpg\ta picture\n")
    assert ran.err.splitlines()[1:] == [
        f"note: {subject} cut after 2 tokens; `--max-new-tokens` sets the limit"
    ]


def test_every_format_that_can_be_written_can_be_chosen() -> None:
    *names, last = SINKS
    shown = f"{', '.join(names)} or {last}"
    assert shown in " ".join(run("caption", "--help").out.replace("│", " ").split())
    assert f"must be {shown}, not `xml`" in run("caption", "a.jpg", "-f", "xml").err


def test_a_file_that_exists_is_kept_unless_told_and_no_model_is_loaded() -> None:
    Path("out").write_text("mine", "utf-8")
    world = World(FakeEngine(describe_photo))
    ran = run("caption", "photos", "-o", "out", services=world.services)

    assert tuple(ran) == (
        2,
        "",
        "error: `out` exists already\nhint: `--overwrite` replaces it, `--existing append` adds "
        "all captions to it, `--existing skip` those that it lacks; or name another file\n",
    )
    assert (Path("out").read_text("utf-8"), world.specs) == ("mine", [])
    run("caption", "photos", "-o", "out", "--overwrite", services=world.services)
    assert Path("out").read_text("utf-8") == ALL


def test_a_caption_of_several_lines_is_one_line() -> None:
    engine = FakeEngine(lambda request: "one\ntwo\tthree \x1b[31mred\\")
    ran = run("caption", "photos/a.jpg", "-q", services=World(engine).services)

    assert tuple(ran) == (0, "photos/a.jpg\tone\\ntwo\\tthree \\x1b[31mred\\\\\n", "")


@pytest.mark.skipif(os.name == "nt", reason="such names are not allowed here")
@pytest.mark.parametrize("terminal", [True, False])
@pytest.mark.parametrize("format_", ["tsv", "jsonl"])
def test_names_that_are_no_text_crash_nothing_and_reach_no_terminal(
    format_: str, terminal: bool
) -> None:
    os.mkdir("odd")
    names = [b"\xff.jpg", b"a\nb\t.jpg", b"\x1b[2J.jpg", b"-r.jpg", b"\xc2\x9b31m.jpg"]
    for each in names:
        open(b"odd/" + each, "wb").close()
    bad = os.fsdecode(b"odd/\xff.jpg")
    engine = FakeEngine(lambda request: "x", image_errors={bad: ImageError("gone", kind="missing")})
    arguments = ("caption", "odd", "--format", format_, "--batch-size", "1")
    ran = run(*arguments, services=World(engine).services, terminal=terminal)

    assert ran.code == 3
    failures = 1 if format_ == "jsonl" else 0
    lines = [line for line in ran.out.split("\n") if line]
    assert len(lines) == 4 + failures
    assert not any(code in ran.out for code in ("\x1b", "\x9b", "\udcff"))
    if not terminal:
        assert ran.err.startswith("error: odd/\\xff.jpg: gone\n")


def test_a_file_with_a_leading_dash_can_be_named() -> None:
    Path("-r.jpg").touch()
    for arguments in (("--", "-r.jpg"), ("./-r.jpg",)):
        ran = run("caption", *arguments, services=World(FakeEngine(describe_photo)).services)
        assert ran.out == "-r.jpg\ta picture named -r\n"


def test_each_picture_is_asked_about_alone_with_the_models_own_prompt() -> None:
    world = World(FakeEngine(describe_photo))
    run("caption", "photos/a.jpg", "https://x.org/b.jpg", services=world.services)

    assert world.engine.requests == [
        GenerationRequest(
            (Message("user", (Attachment(source), "Describe this image.")),),
            Sampling(max_new_tokens=CAPTION_TOKENS),
            "chat",
        )
        for source in ("photos/a.jpg", "https://x.org/b.jpg")
    ]


def test_prompt_and_sampling_are_the_users() -> None:
    world = World(FakeEngine(describe_photo))
    flags = ("-p", "What is it?", "--temperature", "0.5", "--top-p", "0.9", "--max-new-tokens", "7")
    run("caption", "photos/a.jpg", *flags, services=world.services)

    (request,) = world.engine.requests
    assert request.messages[0].text == "What is it?"
    assert request.sampling == Sampling(temperature=0.5, top_p=0.9, max_new_tokens=7)


@pytest.mark.parametrize(
    ("model", "expected"),
    [("idefics2-8b-base", " In this image,"), ("idefics-9b", " This is an image of")],
)
def test_a_base_model_completes_the_beginning_of_a_caption(model: str, expected: str) -> None:
    world = World(FakeEngine(" a cat."), model=model)
    ran = run("caption", "photos/a.jpg", "-m", model, services=world.services)

    (request,) = world.engine.requests
    assert request.mode == "complete"
    assert request.messages == (Message("user", (Attachment("photos/a.jpg"), expected)),)
    assert ran.out == "photos/a.jpg\ta cat.\n"


def test_a_sampled_caption_does_not_depend_on_order_or_batch() -> None:
    def seeds(*arguments: str) -> dict[str, int | None]:
        sizes = {"photos/a.jpg": (20, 10), "photos/b.jpg": (21, 10), "photos/c.png": (22, 10)}
        world = World(FakeEngine(describe_photo, sizes=sizes))
        run("caption", *arguments, "--temperature", "1", services=world.services)
        return {r.attachments[0].source: r.sampling.seed for r in world.engine.requests}

    together = seeds("photos", "--seed", "5")
    assert len(set(together.values())) == 3
    paths = ("photos/c.png", "photos/a.jpg", "photos/b.jpg")
    assert seeds(*paths, "--batch-size", "1", "--seed", "5") == together
    assert seeds("photos", "--seed", "6") != together


def test_the_batch_size_is_the_users_or_follows_from_memory() -> None:
    for number in range(20):
        Path(f"photos/{number}.jpg").touch()

    def batches(*arguments: str) -> list[int]:
        world = World(FakeEngine(describe_photo))
        run("caption", "photos", *arguments, services=world.services)
        return world.engine.batches

    assert batches("--batch-size", "10") == [10, 10, 3]
    assert 1 < max(batches()) <= 16


def test_pictures_that_are_answered_together_share_what_the_runtime_takes() -> None:
    small = 2**20
    need = Need("cpu", 0, small, CPU_RUNTIME_BYTES + small, 0, usable=4 * CPU_RUNTIME_BYTES)
    plan = SimpleNamespace(
        spec=SimpleNamespace(device="cpu"), facts=SimpleNamespace(parameters=10), needs=(need,)
    )
    assert automatic_batch(plan) == 16  # type: ignore[arg-type]  # a plan with the fields that matter


@pytest.mark.parametrize(("device", "expected"), [("cpu", 1), ("cuda:0", 64)])
def test_the_batch_leaves_main_memory_for_decoding(device: str, expected: int) -> None:
    picture = 2**20
    runtime = GPU_RUNTIME_BYTES if device.startswith("cuda") else CPU_RUNTIME_BYTES
    need = Need(device, 0, picture, runtime + picture, 0, usable=runtime + DECODING_BYTES)
    plan = SimpleNamespace(
        spec=SimpleNamespace(device=device),
        facts=SimpleNamespace(parameters=10, shape=SimpleNamespace(tiles=1, patches=1)),
        needs=(need,),
        spare_ram_bytes=2 * DECODING_BYTES,
    )
    assert automatic_batch(plan) == expected  # type: ignore[arg-type]  # a plan with the fields that matter


def test_limits_of_pictures_reach_the_loader() -> None:
    world = World(FakeEngine(describe_photo))
    run(
        "caption",
        "photos",
        *("--max-pixels", "5", "--max-bytes", "6", "--timeout-seconds", "7"),
        services=world.services,
    )
    (spec,) = world.specs
    assert spec.limits == ImageLimits(max_pixels=5, max_bytes=6, timeout_seconds=7.0)
