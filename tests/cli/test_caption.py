"""`idefics caption` with a fake model: exit code, stdout and stderr, whole."""

from __future__ import annotations

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from idefics_cli.caption.item import CaptionItem
from idefics_cli.caption.job import CaptionJob, CaptionQuestion
from idefics_cli.caption.rehearsal import seconds_per_picture
from idefics_cli.caption.sinks import SINKS
from idefics_cli.cli.commands.caption.inputs import automatic_batch
from idefics_cli.config.settings import CAPTION_TOKENS
from idefics_cli.core.errors import ImageError, MemoryLimitError, ModelError
from idefics_cli.core.types import (
    Attachment,
    GenerationRequest,
    ImageLimits,
    Message,
    Sampling,
)
from idefics_cli.models.planning.memory import CPU_RUNTIME_BYTES
from idefics_cli.models.planning.placement import Need
from tests.support.commands import Terminal, World, run
from tests.support.fakes import EngineOf, FakeClock, FakeEngine


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "here"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture(autouse=True)
def photos(here: Path) -> Path:
    """Three files that the fake model takes for pictures, and things that are none."""
    folder = here / "photos"
    (folder / ".cache").mkdir(parents=True)
    (folder / "sub").mkdir()
    for name in (
        "b.jpg",
        "a.jpg",
        "c.png",
        "notes.txt",
        ".hidden.jpg",
        ".cache/d.jpg",
        "sub/e.jpg",
    ):
        (folder / name).touch()
    return folder


def name(request: GenerationRequest) -> str:
    return f"a picture named {Path(request.attachments[0].source).stem}"


BAD = ImageError(
    "cannot read `photos/b.jpg`: it is cut off", kind="truncated", hint="copy it again"
)
LINES = [f"photos/{n}\ta picture named {n[0]}\n" for n in ("a.jpg", "b.jpg", "c.png")]
ALL = "".join(LINES)
REST = LINES[0] + LINES[2]


# What comes out


def test_a_folder_gives_a_line_each_in_order_and_a_summary() -> None:
    ran = run("caption", "photos", services=World(FakeEngine(name)).services)

    assert tuple(ran) == (0, ALL, "captioned 3 of 3 in 3.0 s (1.0/s)\n")


@pytest.mark.parametrize("paths", [["photos/*"], ["photos/*.jpg", "photos/c.png"], ["./photos/"]])
def test_a_glob_that_no_shell_expanded_gives_the_same_lines(paths: list[str]) -> None:
    os.remove("photos/notes.txt")
    os.remove("photos/sub/e.jpg")
    os.rmdir("photos/sub")

    ran = run("caption", *paths, services=World(FakeEngine(name)).services)
    assert tuple(ran) == (0, ALL, "captioned 3 of 3 in 3.0 s (1.0/s)\n")


def test_sub_folders_are_taken_when_asked_for() -> None:
    short = World(FakeEngine(name))
    variable = World(FakeEngine(name), IDEFICS_RECURSIVE="1")
    ran = run("caption", "photos", "-r", services=short.services)

    assert ran == run("caption", "photos", services=variable.services)
    assert ran.out == ALL + "photos/sub/e.jpg\ta picture named e\n"


def test_a_picture_is_captioned_once_however_often_it_is_named() -> None:
    paths = ("photos/b.jpg", "photos", "./photos/a.jpg", "photos/*.png")
    ran = run("caption", *paths, services=World(FakeEngine(name)).services)

    assert sorted(ran.out.splitlines()) == ALL.splitlines()
    assert ran.out.startswith("photos/b.jpg\t")


def test_quiet_leaves_the_captions_only() -> None:
    ran = run("caption", "photos", "-q", services=World(FakeEngine(name)).services)

    assert tuple(ran) == (0, ALL, "")


def test_json_lines_have_a_row_for_each_picture_and_the_failures() -> None:
    engine = FakeEngine(
        name, image_errors={"photos/b.jpg": BAD}, sizes={"photos/c.png": (200, 100)}
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
    to_stdout = run(*arguments, services=World(FakeEngine(name)).services)
    to_file = run(*arguments, "-o", "out", services=World(FakeEngine(name)).services)

    assert to_file.out == ""
    assert to_stdout.out == Path("out").read_text("utf-8")
    assert to_stdout.err == to_file.err
    assert run(*arguments, "-o", "-", services=World(FakeEngine(name)).services) == to_stdout


@pytest.mark.parametrize(
    ("paths", "subject"),
    [(["photos/a.jpg"], "one caption was"), (["photos"], "3 captions were")],
)
def test_captions_that_were_cut_are_told_and_are_no_failure(paths: list[str], subject: str) -> None:
    arguments = ("caption", *paths, "--max-new-tokens", "2")
    ran = run(*arguments, services=World(FakeEngine(name)).services)

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
    world = World(FakeEngine(name))
    ran = run("caption", "photos", "-o", "out", services=world.services)

    assert tuple(ran) == (
        2,
        "",
        "error: `out` exists already\nhint: `--overwrite` replaces it\n",
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
        ran = run("caption", *arguments, services=World(FakeEngine(name)).services)
        assert ran.out == "-r.jpg\ta picture named -r\n"


# What the model is asked


def test_each_picture_is_asked_about_alone_with_the_models_own_prompt() -> None:
    world = World(FakeEngine(name))
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
    world = World(FakeEngine(name))
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
        world = World(FakeEngine(name, sizes=sizes))
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
        world = World(FakeEngine(name))
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
    assert automatic_batch(plan) == 16  # type: ignore[arg-type]  # all that it looks at


def test_limits_of_pictures_reach_the_loader() -> None:
    world = World(FakeEngine(name))
    run(
        "caption",
        "photos",
        *("--max-pixels", "5", "--max-bytes", "6", "--timeout-seconds", "7"),
        services=world.services,
    )
    (spec,) = world.specs
    assert spec.limits == ImageLimits(max_pixels=5, max_bytes=6, timeout_seconds=7.0)


# What goes wrong


def test_one_bad_file_is_told_and_the_others_go_on() -> None:
    engine = FakeEngine(name, image_errors={"photos/b.jpg": BAD})
    ran = run("caption", "photos", services=World(engine).services)

    assert tuple(ran) == (
        3,
        REST,
        "error: cannot read `photos/b.jpg`: it is cut off\n"
        "hint: copy it again\n"
        "captioned 2 of 3 in 3.0 s (0.7/s), 1 failed\n",
    )


def test_failures_are_told_when_quiet_too() -> None:
    engine = FakeEngine(name, image_errors={"photos/b.jpg": BAD})
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
    engine = FakeEngine(name, image_errors={"gone.jpg": missing})
    ran = run("caption", "gone.jpg", "empty", "photos", services=World(engine).services)

    assert tuple(ran) == (
        3,
        ALL,
        "error: no pictures in folder `empty`\n"
        "hint: `-r` also looks into its sub-folders\n"
        "error: no such file: `gone.jpg`\n"
        "captioned 3 of 4 in 4.0 s (0.8/s), 1 failed\n",
    )


def test_an_empty_folder_among_others_is_a_partial_failure_without_a_failed_picture() -> None:
    os.mkdir("empty")
    ran = run("caption", "empty", "photos", "-r", services=World(FakeEngine(name)).services)

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
        name,
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


# A process of its own, with a fake model that takes its time
SLOW = textwrap.dedent(
    """
    import sys, time
    from idefics_cli.cli.app import app
    from tests.support.commands import World
    from tests.support.fakes import FakeClock, FakeEngine

    def answer(request):
        time.sleep(0.05)
        return "a cat"

    class Engine(FakeEngine):
        def prepare(self, request, *, open_image=None):
            if request.attachments[0].source.endswith("/hangs.jpg"):
                time.sleep(60)
            return super().prepare(request)

    app(sys.argv[1:], prog_name="idefics", obj=World(Engine(answer)).services)
    """
)


def start(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", SLOW, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
    )


@pytest.fixture
def many(here: Path) -> None:
    (here / "many").mkdir()
    for number in range(400):
        (here / "many" / f"{number:03}.jpg").touch()


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.usefixtures("many")
def test_ctrl_c_ends_a_running_command_with_whole_lines() -> None:
    with start("caption", "many", "--batch-size", "2") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        first = process.stdout.readline()
        process.send_signal(signal.SIGINT)
        # Not `communicate`, which would lose what `readline` read ahead.
        rest, err = process.stdout.read(), process.stderr.read()

    lines = (first + rest).splitlines(keepends=True)
    assert 1 <= len(lines) < 400
    assert lines == [f"many/{number:03}.jpg\ta cat\n" for number in range(len(lines))]
    assert process.returncode == 130
    told = err.splitlines()
    assert told[0] == "note: finishing the current batch; Ctrl-C again stops at once"
    assert told[1].startswith(f"interrupted: captioned {len(lines)} of 400")
    assert len(told) == 3


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
@pytest.mark.usefixtures("many")
def test_a_picture_that_never_comes_does_not_hold_back_ctrl_c() -> None:
    Path("many/hangs.jpg").touch()
    with start("caption", "many/00*.jpg", "many/hangs.jpg", "--batch-size", "2") as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGINT)
        assert process.wait(timeout=20) == 130


@pytest.mark.skipif(os.name == "nt", reason="POSIX pipes")
@pytest.mark.usefixtures("many")
def test_a_reader_that_goes_away_ends_the_run_quietly() -> None:
    with start("caption", "many", "--batch-size", "1") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == "many/000.jpg\ta cat\n"
        process.stdout.close()
        assert process.stderr.read() == ""
        assert process.wait(timeout=30) == 1


# Without running


def drawn(photos: Path) -> None:
    for path in (*photos.glob("*.jpg"), *photos.glob("*.png"), *photos.glob("sub/*.jpg")):
        Image.new("RGB", (8, 8)).save(path)


def test_a_dry_run_shows_the_plan_and_how_many_pictures_and_downloads_no_model(
    photos: Path,
) -> None:
    drawn(photos)
    world = World(FakeEngine(), is_cached=False)
    ran = run("caption", "photos", "-r", "--dry-run", "-o", "out", services=world.services)

    assert (ran.code, ran.err) == (0, "")
    assert ran.out.startswith("smolvlm-256m: ")
    assert ran.out.splitlines()[-1].startswith("4 pictures, ")
    assert ran.out.endswith(" at a time, with the prompt `Describe this image.`\n")
    assert (world.specs, Path("out").exists()) == ([], False)


def test_a_dry_run_finds_pictures_whose_headers_cannot_be_read(photos: Path) -> None:
    drawn(photos)
    (photos / "b.jpg").write_text("hello", "utf-8")
    world = World(FakeEngine(), is_cached=False)
    ran = run("caption", "photos", "--dry-run", services=world.services)

    assert ran.err.startswith("error: cannot read `photos/b.jpg`: it is ")
    assert ran.out.splitlines()[-2] == "1 cannot be read"


def test_a_dry_run_of_a_run_that_was_begun_says_what_is_left_and_changes_nothing(
    photos: Path,
) -> None:
    drawn(photos)
    answers = iter(["one"])

    def answer(request: GenerationRequest) -> str:
        if (text := next(answers, None)) is None:
            raise KeyboardInterrupt
        return text

    command = ("caption", "photos", "-o", "out.jsonl", "--batch-size", "1")
    run(*command, services=World(FakeEngine(answer)).services)
    before = {path: path.read_bytes() for path in Path().glob("out*")}
    world = World(FakeEngine(), is_cached=False)
    ran = run(*command, "--dry-run", services=world.services)

    assert ran.out.splitlines()[-2] == "2 of 3 pictures are left to caption"
    assert {path: path.read_bytes() for path in Path().glob("out*")} == before
    other = run(*command, "--dry-run", "-p", "What?", services=World(FakeEngine()).services)
    assert (other.code, "had other settings: prompt:" in other.err) == (2, True)


def test_a_dry_run_with_a_model_that_is_here_says_how_long_it_would_take(photos: Path) -> None:
    drawn(photos)
    ran = run("caption", "photos", "--dry-run", services=World(FakeEngine(name)).services)

    assert ran.out.splitlines()[-2] == "about 1.0 s, by a probe of three pictures"


def test_the_time_of_a_run_is_estimated_by_three_of_its_pictures() -> None:
    pictures = tuple(CaptionItem(f"{n}.jpg", Attachment(f"{n}.jpg")) for n in range(101))
    job = CaptionJob(pictures, (CaptionQuestion("What?"),))
    engine = FakeEngine(name)

    assert seconds_per_picture(job, EngineOf(engine), clock=FakeClock(6.0)) == 2.0
    assert [r.attachments[0].source for r in engine.requests] == ["0.jpg", "50.jpg", "100.jpg"]
    assert engine.is_closed


def test_a_dry_run_in_json_is_one_object() -> None:
    world = World(FakeEngine(), IDEFICS_JSON="1")
    ran = run("caption", "photos/a.jpg", "--dry-run", "-p", "What?", services=world.services)

    assert ran.record["pictures"] == 1
    assert ran.record["prompt"] == "What?"
    assert ran.record["model"] == "smolvlm-256m"


def test_no_heavy_module_is_imported_before_the_model_loads() -> None:
    code = (
        "import sys\n"
        "from idefics_cli.cli.commands.caption import command\n"
        "import idefics_cli.caption.runner, idefics_cli.caption.sinks\n"
        "import idefics_cli.ui.views.progress\n"
        "print(*sys.modules)"
    )
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"torch", "transformers", "PIL", "numpy"} & set(ran.stdout.split())
