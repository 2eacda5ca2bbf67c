"""`idefics ask`, and `idefics chat` in a pipe: the request to the model, and the output."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

import pytest
from PIL import Image

import idefics_cli
from idefics_cli.core.errors import (
    ContextError,
    IdeficsError,
    ImageError,
    MemoryLimitError,
    ModelError,
    PlanError,
    PromptError,
)
from idefics_cli.core.types import (
    Attachment,
    GenerationRequest,
    ImageLimits,
    Message,
    Part,
    Sampling,
)
from idefics_cli.images import download, sources
from tests.support.commands import Terminal, World, run
from tests.support.fakes import FakeEngine


@pytest.fixture
def picture(tmp_path: Path) -> str:
    path = tmp_path / "x.png"
    Image.new("RGB", (8, 6), "red").save(path)
    return str(path)


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), "red").save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(autouse=True)
def downloads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every URL has a picture. Return those that were fetched."""
    fetched: list[str] = []

    def fetch(url: str, limits: ImageLimits) -> bytes:
        fetched.append(url)
        return png()

    monkeypatch.setattr(download, "download", fetch)
    return fetched


PICTURE = ("-i", "https://x.org/a.png")


def asked(world: World) -> GenerationRequest:
    (request,) = world.engine.requests
    return request


# Output


def test_in_a_pipe_stdout_is_the_answer_and_a_newline_in_one_write(picture: str) -> None:
    world = World(FakeEngine("A red  picture.\n[bold]x[/bold] "))
    ran = run("ask", "What?", "-i", picture, services=world.services)
    assert tuple(ran) == (0, "A red  picture.\n[bold]x[/bold] \n", "")
    assert world.engine.batches == [1]


def test_marks_in_a_question_are_the_places_of_the_pictures() -> None:
    first, second = Attachment("https://x.org/a"), Attachment("https://x.org/b")
    flags = ("-i", first.source, "-i", second.source)
    world = World(FakeEngine("x"))
    assert run("ask", "Is <image> as <image>?", *flags, services=world.services).code == 0
    assert asked(world).messages == (Message("user", ("Is ", first, " as ", second, "?")),)
    assert asked(world).mode == "chat"
    ran = run("ask", "Is <image> red?", *flags, services=world.services)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: the prompt has 1 `<image>`, and 2 pictures are given\n")


def test_numbers_in_a_question_are_the_places_of_the_pictures() -> None:
    first, second = Attachment("https://x.org/a"), Attachment("https://x.org/b")
    flags = ("-i", first.source, "-i", second.source)
    world = World(FakeEngine("x"))
    assert run("ask", "Is [2] as a[1]? [2]!", *flags, services=world.services).code == 0
    parts = (first, "Is ", second, " as a[1]? the second image!")
    assert asked(world).messages == (Message("user", parts),)
    ran = run("ask", "Is [3] red?", *flags, services=world.services)
    error = "the prompt has `[3]`, and there is no picture 3"
    assert tuple(ran) == (2, "", f"error: {error}\nhint: `\\[3]` is text\n")


def test_numbers_without_pictures_and_marks_from_a_pipe_are_text() -> None:
    text = "Does [1] say `<image>`, or [2]?"
    world = World(FakeEngine("x"))
    assert run("ask", text, services=world.services).err == ""
    assert asked(world).messages == (Message("user", (text,)),)
    picture = Attachment("https://x.org/a")
    piped = b"a <image> b <image> [7]"
    world = World(FakeEngine("x"), stdin=io.BytesIO(piped))
    ran = run("ask", "Sum up [1].", "-i", picture.source, services=world.services)
    assert ran.err == "note: `<image>` from stdin is text, as it does not stand for the pictures\n"
    parts = (f"{piped.decode()}\nSum up ", picture, ".")
    assert asked(world).messages == (Message("user", parts),)


def test_a_piped_question_has_its_marks() -> None:
    picture = Attachment("https://x.org/a")
    world = World(FakeEngine("x"), stdin=io.BytesIO(b"Is <image> red? [4]"))
    assert run("ask", "-i", picture.source, services=world.services).err == ""
    assert asked(world).messages == (Message("user", ("Is ", picture, " red? [4]")),)


@pytest.mark.parametrize("is_terminal", [False, True])
def test_an_empty_answer_is_told_on_stderr(is_terminal: bool) -> None:
    for answer, told in (("", True), (" \n", True), ("Red.", False)):
        world = World(FakeEngine(answer))
        ran = run("ask", "What?", services=world.services, terminal=is_terminal)
        assert ran.code == 0
        note = "the answer is empty: the model ended it before the first word\n"
        assert (note in ran.err) == told


@pytest.mark.parametrize("is_terminal", [False, True])
def test_an_answer_that_is_cut_before_a_word_was_not_ended_by_the_model(is_terminal: bool) -> None:
    world = World(FakeEngine("\n word"))
    arguments = ("ask", "What?", "--max-new-tokens", "1")
    ran = run(*arguments, services=world.services, terminal=is_terminal)
    assert "the answer was cut after 1 token, before its first word;" in ran.err
    assert "the model ended it" not in ran.err


def test_a_list_of_files_on_stdin_is_told_because_a_loop_loses_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.png").touch()
    cases = {b"b.png\nc.png\n": "2 lines", b"b.png,What?\n": "1 line", b"my notes\nb.png\n": ""}
    for data, told in cases.items():
        world = World(FakeEngine("Red."), stdin=io.BytesIO(data))
        ran = run("ask", "What?", services=world.services)
        note = f"note: the prompt begins with {told} from stdin, a list of files; "
        note += "in a loop such as `while read`, add `</dev/null`\n"
        assert ran.err == (note if told else "")


def test_streamed_on_a_terminal_equals_whole_in_a_pipe(picture: str) -> None:
    pipe, terminal, off = (World(FakeEngine("A red picture.")) for _ in range(3))
    arguments = ("ask", "What?", "-i", picture)
    whole = run(*arguments, services=pipe.services)
    streamed = run(*arguments, services=terminal.services, terminal=True)
    unstreamed = run(*arguments, "--no-stream", services=off.services, terminal=True)
    assert whole == streamed == unstreamed
    assert (pipe.engine.batches, terminal.engine.batches, off.engine.batches) == ([1], [], [1])
    assert asked(pipe) == asked(terminal) == asked(off)


def test_a_stream_can_be_asked_for_in_a_pipe() -> None:
    world = World(FakeEngine("One two"))
    assert tuple(run("ask", "Hi", "--stream", services=world.services)) == (0, "One two\n", "")
    assert world.engine.batches == []


@pytest.mark.parametrize("flag", ["--stream", "--no-stream"])
def test_control_characters_of_an_answer_never_reach_a_terminal(flag: str) -> None:
    world = World(FakeEngine("a\x1b[2J \x9b31m\r\n"))
    ran = run("ask", "Hi", *PICTURE, flag, services=world.services, terminal=True)
    assert tuple(ran) == (0, "a␛[2J \\x9b31m\n\n", "")


def test_control_characters_of_an_answer_go_to_a_pipe_as_they_are() -> None:
    world = World(FakeEngine("a\x1b[2J\x07\r\n"))
    assert tuple(run("ask", "Hi", services=world.services)) == (0, "a\x1b[2J\x07\r\n\n", "")


def test_json_names_each_picture_in_full_but_no_password(tmp_path: Path) -> None:
    folder = tmp_path / ("a long name " * 10)
    folder.mkdir()
    Image.new("RGB", (8, 6)).save(folder / "x.png")
    sources = [str(folder / "x.png"), "https://me:secret@x.org/a.png"]
    given = [word for source in sources for word in ("-i", source)]
    ran = run("ask", "What?", *given, "--json", services=World(FakeEngine("Red.")).services)
    assert ran.record["images"] == [sources[0], "https://…@x.org/a.png"]


def test_json_is_one_object_on_one_line(picture: str) -> None:
    world = World(FakeEngine("Red and☃ square."))
    arguments = ("ask", "What is it?", "-i", picture, "-i", "https://x.org/a.png", "--json")
    ran = run(*arguments, services=world.services, terminal=True)
    assert (ran.code, ran.err, ran.out.count("\n")) == (0, "", 1)
    assert ran.record == {
        "text": "Red and☃ square.",
        "finish": "stop",
        "prompt_tokens": 23,
        "reused_tokens": 0,
        "new_tokens": 4,
        "token_ids": [],
        "tokens_per_second": 8.0,
        "timings": {
            "load_seconds": 1.0,
            "prepare_seconds": 1.0,
            "prefill_seconds": 0.25,
            "decode_seconds": 0.5,
        },
        "model": "fake",
        "repo": "fake/model",
        "revision": "0123abc",
        "images": [picture, "https://x.org/a.png"],
        "device": "cpu",
        "dtype": "float32",
        "quantization": "none",
        "attention": "sdpa",
        "temperature": 0.0,
        "seed": None,
        "version": idefics_cli.__version__,
    }


def test_a_data_uri_is_shortened_in_json(picture: str) -> None:
    data = base64.b64encode(Path(picture).read_bytes()).decode()
    uri = f"data:image/png;base64,{data}"
    ran = run("ask", "Hi", "-i", uri, "--json", services=World(FakeEngine("x")).services)
    assert ran.record["images"] == [f"data:image/png;base64,… ({len(uri)} characters)"]


@pytest.mark.parametrize("terminal", [True, False])
def test_a_cut_answer_is_told_on_stderr_unless_quiet(terminal: bool) -> None:
    arguments = ("ask", "Hi", "--max-new-tokens", "2")
    loud, quiet = (World(FakeEngine("one two three")) for _ in range(2))
    ran = run(*arguments, services=loud.services, terminal=terminal)
    assert (ran.code, ran.out) == (0, "one two\n")
    assert "note" in ran.err
    assert "the answer was cut after 2 tokens; `--max-new-tokens` sets the limit\n" in ran.err
    ran = run(*arguments, "-q", services=quiet.services, terminal=terminal)
    assert tuple(ran) == (0, "one two\n", "")


# Request


def test_pictures_come_before_the_text_in_the_order_given(picture: str) -> None:
    world = World(FakeEngine("x"))
    sources = [picture, "https://x.org/a.png", picture]
    flags = [flag for source in sources for flag in ("-i", source)]
    run("ask", "Compare.", *flags, services=world.services)
    assert asked(world) == GenerationRequest(
        (Message("user", (*map(Attachment, sources), "Compare.")),), Sampling(), "chat"
    )


def test_the_page_of_a_file_with_several_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Messages shorten long paths.
    monkeypatch.chdir(tmp_path)
    pages = [Image.new("RGB", (8, 6), colour) for colour in ("red", "blue", "green")]
    for name in ("scan.tif", "moving.gif"):
        pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    pages[0].save(tmp_path / "one.png")
    sources = [word for name in ("scan.tif", "moving.gif", "one.png")
               for word in ("-i", name)]  # fmt: skip
    code, out, err = run("ask", "What?", *sources, services=World(FakeEngine("Red.")).services)
    assert (code, out) == (0, "Red.\n")
    assert err == (
        "note: of `scan.tif` the model sees page 1 of 3\n"
        "note: of `moving.gif` the model sees one frame of an animation\n"
    )


def test_a_system_instruction_is_a_message_of_its_own_that_precedes() -> None:
    world = World(FakeEngine("x"))
    run("ask", "Hi", "-s", "Be brief.", services=world.services)
    assert asked(world).messages == (
        Message("system", ("Be brief.",)),
        Message("user", ("Hi",)),
    )


@pytest.mark.parametrize(
    ("piped", "argument", "prompt"),
    [
        (b"", "Hi", "Hi"),
        (b"Hi\n", None, "Hi"),
        (b"some text\n", "Summarize.", "some text\nSummarize."),
        (b"\n", "Hi", "Hi"),
        (b"a\nb", None, "a\nb"),
    ],
)
def test_piped_text_precedes_the_prompt_or_is_it(
    piped: bytes, argument: str | None, prompt: str
) -> None:
    world = World(FakeEngine("x"), stdin=io.BytesIO(piped))
    run("ask", *([argument] if argument else []), services=world.services)
    assert asked(world).messages == (Message("user", (prompt,)),)


def test_a_terminal_on_stdin_is_not_read() -> None:
    world = World(FakeEngine("x"), stdin=Terminal(b"typed"))
    assert run("ask", "Hi", services=world.services).code == 0
    assert asked(world).messages == (Message("user", ("Hi",)),)


def test_what_is_no_file_is_read_once_before_the_model_is_loaded(downloads: list[str]) -> None:
    stdin = io.BytesIO(png())
    world = World(FakeEngine("x"), stdin=stdin)
    url = "https://x.org/a.png"
    ran = run("ask", "Hi", "-i", "-", "-i", url, "-i", url, services=world.services)
    assert tuple(ran) == (0, "x\n", "")
    assert asked(world).attachments == (Attachment("-"), Attachment(url), Attachment(url))
    assert downloads == [url]

    world = World(FakeEngine(), stdin=io.BytesIO(b"no picture"))
    ran = run("ask", "Hi", "-i", "-", services=world.services)
    assert ran.code == 1
    assert ran.err.startswith("error: cannot read `stdin`: ")
    assert world.specs == []


def test_the_adapter_says_whether_a_video_may_be_at_an_address() -> None:
    world = World(FakeEngine("x"))
    assert run("ask", "Hi", *PICTURE, "--adapter", "me/style", services=world.services).code == 0
    assert set(world.looked_up) == {"me/style"}


def test_a_file_that_was_copied_is_a_file_and_may_be_large(
    picture: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "read_clipboard", lambda limits: picture)
    for limit in ("10", "1000000"):
        world = World(FakeEngine("x"))
        flags = ("-i", "clipboard:", "--max-bytes", limit)
        assert tuple(run("ask", "Hi", *flags, services=world.services)) == (0, "x\n", "")


def test_an_unknown_model_is_told_before_anything_is_fetched(downloads: list[str]) -> None:
    world = World(FakeEngine(), facts_error=ModelError("unknown model `x`"))
    assert run("ask", "Hi", *PICTURE, services=world.services).code == 1
    assert downloads == []


def test_the_sampling_is_that_of_the_settings() -> None:
    world = World(FakeEngine("x"), IDEFICS_TOP_K="4", IDEFICS_MAX_NEW_TOKENS="9")
    run("ask", "Hi", "--temperature", "0.5", "--top-p", "0.9", "--seed", "3", "--top-k", "5",
        "--repetition-penalty", "1.1", services=world.services)  # fmt: skip
    assert asked(world).sampling == Sampling(0.5, 0.9, 5, 1.1, 9, 3)


def test_a_random_answer_without_seed_tells_the_seed_that_repeats_it() -> None:
    first, second = World(FakeEngine("x")), World(FakeEngine("x"))
    arguments = ("ask", "Hi", "--temperature", "1", "--json")
    seeds = [run(*arguments, services=w.services).record["seed"] for w in (first, second)]
    assert seeds == [asked(first).sampling.seed, asked(second).sampling.seed]
    assert all(isinstance(seed, int) for seed in seeds)
    assert seeds[0] != seeds[1]


def test_what_may_disappoint_is_told_on_stderr_unless_quiet() -> None:
    loud, quiet = (World(FakeEngine("x"), notes=("the GPU is too old",)) for _ in range(2))
    ran = run("ask", "Hi", services=loud.services)
    assert tuple(ran) == (0, "x\n", "warning: the GPU is too old\n")
    assert tuple(run("ask", "Hi", "-q", services=quiet.services)) == (0, "x\n", "")


def test_offline_a_model_that_is_not_here_is_told_once_and_not_loaded() -> None:
    world = World(FakeEngine("x"), is_cached=False)
    ran = run("ask", "Hi", "--offline", services=world.services)
    assert (ran.code, ran.out, ran.err.count("\n"), world.specs) == (1, "", 2, [])
    assert "is not in the cache" in ran.err


def test_the_choices_reach_the_load_spec() -> None:
    world = World(FakeEngine("x"), model="demo")
    run("ask", "Hi", "--device", "cpu", "--dtype", "bfloat16", "--attn-implementation", "eager",
        "--no-splitting", "--offline", "--threads", "3", "--max-pixels", "5", "--max-bytes", "6",
        "--timeout-seconds", "7", "--truncated", "keep", "--background", "#0a0b0c",
        services=world.services)  # fmt: skip
    (spec,) = world.specs
    assert (spec.device, spec.dtype, spec.attention) == ("cpu", "bfloat16", "eager")
    assert (spec.splitting, spec.offline, spec.threads) == (False, True, 3)
    limits = spec.limits
    assert (limits.max_pixels, limits.max_bytes, limits.timeout_seconds) == (5, 6, 7.0)
    assert limits.keeps_truncated
    assert limits.background == (10, 11, 12)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            "#12345",
            "error: --background must be a CSS colour such as black, gray or #1a2b3c, "
            "not `#12345`\n",
        ),
        (
            "notacolour",
            "error: `notacolour` is not a colour\nhint: such as black, gray or #1a2b3c\n",
        ),
        ("blakc", "error: `blakc` is not a colour\nhint: did you mean `black`?\n"),
    ],
)
def test_a_background_that_is_no_colour_is_refused_before_loading(
    given: str, message: str, tmp_path: Path
) -> None:
    world = World(FakeEngine("x"))
    picture = tmp_path / "a.jpg"
    picture.touch()
    for command in (("ask", "Hi"), ("caption", str(picture))):
        ran = run(*command, "--background", given, services=world.services)
        assert (ran.code, ran.err, world.specs) == (2, message, [])


def test_the_model_of_the_flag_the_variable_or_the_default_is_looked_up() -> None:
    names = []
    for arguments, variable in (((), ""), ((), "a"), (("-m", "b"), "a")):
        world = World(FakeEngine("x"), IDEFICS_MODEL=variable)
        run("ask", "Hi", *arguments, services=world.services)
        names += world.looked_up
    assert names == ["smolvlm-500m", "a", "b"]


# Raw prompts


@pytest.mark.parametrize(
    ("prompt", "images", "parts"),
    [
        ("Once upon", (), ("Once upon",)),
        ("<image>In this", ("a",), (Attachment("a"), "In this")),
        (
            "A<image>B<image><image>C",
            ("a", "b", "c"),
            ("A", Attachment("a"), "B", Attachment("b"), Attachment("c"), "C"),
        ),
        (" x <image> ", ("a",), (" x ", Attachment("a"), " ")),
    ],
)
def test_a_raw_prompt_is_completed_as_it_is_with_pictures_at_their_marks(
    prompt: str, images: Sequence[str], parts: tuple[Part, ...]
) -> None:
    world = World(FakeEngine("x"))
    urls = {name: f"https://x.org/{name}" for name in images}
    flags = [flag for name in images for flag in ("-i", urls[name])]
    ran = run("ask", prompt, "--raw", *flags, services=world.services)
    assert tuple(ran) == (0, "x\n", "")
    expected = tuple(Attachment(urls[p.source]) if isinstance(p, Attachment) else p for p in parts)
    assert asked(world).messages == (Message("user", expected),)
    assert asked(world).mode == "complete"


@pytest.mark.parametrize(
    ("prompt", "images", "error"),
    [
        ("<image> a <image>", 1, "the prompt has 2 `<image>`, and 1 picture is given"),
        ("a", 1, "the prompt has 0 `<image>`, and 1 picture is given"),
        ("<image>", 0, "the prompt has 1 `<image>`, and 0 pictures are given"),
    ],
)
def test_marks_and_pictures_of_a_raw_prompt_must_be_as_many(
    prompt: str, images: int, error: str
) -> None:
    world = World(FakeEngine())
    flags = ["-i", "https://x.org/a"] * images
    ran = run("ask", prompt, "--raw", *flags, services=world.services)
    hint = "write `<image>` where each picture belongs, and `-i` for each"
    assert tuple(ran) == (2, "", f"error: {error}\nhint: {hint}\n")


def test_an_image_mark_without_a_picture_is_refused_unless_it_is_escaped() -> None:
    world = World(FakeEngine("x"))
    ran = run("ask", "What is <image>?", services=world.services)
    hint = r"give a picture with `-i` for each; `\<image>` is text"
    error = "the prompt has 1 `<image>`, and 0 pictures are given"
    assert tuple(ran) == (2, "", f"error: {error}\nhint: {hint}\n")
    run("ask", r"What is \<image>?", services=world.services)
    assert asked(world).messages == (Message("user", ("What is <image>?",)),)


def test_a_raw_prompt_names_all_of_its_pictures() -> None:
    first, second = Attachment("https://x.org/a"), Attachment("https://x.org/b")
    flags = ("--raw", "-i", first.source, "-i", second.source)
    world = World(FakeEngine("x"))
    assert run("ask", "[2] is not [1], but", *flags, services=world.services).code == 0
    parts = (second, " is not ", first, ", but")
    assert asked(world).messages == (Message("user", parts),)
    ran = run("ask", "[2] is", *flags, services=world.services)
    assert tuple(ran)[:2] == (2, "")
    assert ran.err == (
        "error: the raw prompt has no place for picture 1\nhint: write `[1]` where it belongs\n"
    )
    ran = run("ask", r"\<image> [2] [1]", *flags, services=world.services)
    assert ran.err.startswith("error: a raw prompt cannot hold `<image>` as text\n")


def test_a_system_instruction_has_no_place_in_a_raw_prompt_but_a_standing_one_may_be() -> None:
    ran = run("ask", "x", "--raw", "-s", "y", services=World(FakeEngine()).services)
    error = (
        "error: --system does not apply to a raw prompt\nhint: write the instruction into PROMPT\n"
    )
    assert tuple(ran) == (2, "", error)
    world = World(FakeEngine("x"), IDEFICS_SYSTEM="y")
    assert run("ask", "x", "--raw", services=world.services).code == 0
    assert asked(world).messages == (Message("user", ("x",)),)


# Errors


@pytest.mark.parametrize("piped", [b"", b"\n", b" \n\t"])
@pytest.mark.parametrize("argument", [None, "", "  "])
def test_an_empty_prompt_is_an_error(piped: bytes, argument: str | None) -> None:
    world = World(FakeEngine(), stdin=io.BytesIO(piped))
    arguments = [] if argument is None else [argument]
    ran = run("ask", *arguments, services=world.services)
    hint = "`idefics ask 'What is in the picture?' -i PICTURE`"
    assert tuple(ran) == (2, "", f"error: the prompt is empty\nhint: {hint}\n")
    assert world.specs == []


def test_a_prompt_that_is_no_text_is_an_error() -> None:
    ran = run("ask", "a\udcff", services=World(FakeEngine()).services)
    assert tuple(ran) == (2, "", "error: the prompt is not valid UTF-8 text\n")


def test_stdin_holds_one_picture_at_most() -> None:
    world = World(FakeEngine(), stdin=io.BytesIO(b"x"))
    ran = run("ask", "Hi", "-i", "-", "-i", "-", services=world.services)
    error = "error: `-i -` is given twice, but stdin holds one picture\n"
    assert tuple(ran) == (2, "", error)


@pytest.mark.parametrize("stdin", [None, Terminal()])
def test_a_picture_on_stdin_must_be_piped(stdin: io.BytesIO | None) -> None:
    ran = run("ask", "Hi", "-i", "-", services=World(FakeEngine(), stdin=stdin).services)
    hint = "`idefics ask PROMPT -i - <PICTURE`"
    error = f"error: `-i -` needs a picture on stdin\nhint: {hint}\n"
    assert tuple(ran) == (2, "", error)


def test_a_picture_file_that_cannot_be_used_fails_before_the_model_loads(
    picture: str, tmp_path: Path
) -> None:
    text = tmp_path / "text.png"
    text.write_text("no picture")
    torn = tmp_path / "torn.png"
    Image.effect_noise((64, 64), 50).save(torn)
    torn.write_bytes(torn.read_bytes()[:2000])
    for bad in (tmp_path / "missing.png", text, torn, tmp_path):
        for source in (str(bad), bad.as_uri()):
            world = World(FakeEngine())
            ran = run("ask", "Hi", "-i", picture, "-i", source, services=world.services)
            assert (ran.code, ran.out, world.specs) == (1, "", []), bad
            assert ran.err.startswith("error: ")
            assert bad.name in ran.err
            assert "Traceback" not in ran.err


def test_pictures_over_the_pixel_limit_fail_before_the_model_loads(picture: str) -> None:
    world = World(FakeEngine())
    ran = run("ask", "Hi", "-i", picture, "--max-pixels", "47", services=world.services)
    assert (ran.code, ran.out, world.specs) == (1, "", [])
    world = World(FakeEngine("x"))
    ran = run("ask", "Hi", "-i", picture, "--max-pixels", "48", services=world.services)
    assert tuple(ran) == (0, "x\n", "")


ERRORS = [
    (IdeficsError("a", hint="b"), 1),
    (ImageError("a", kind="missing", hint="b"), 1),
    (ModelError("a", hint="b"), 1),
    (MemoryLimitError("a", hint="b"), 1),
    (PromptError("a", hint="b"), 2),
    (ContextError("a", hint="b"), 2),
    (PlanError("a", hint="b"), 2),
]


@pytest.mark.parametrize(("error", "code"), ERRORS, ids=lambda v: type(v).__name__)
@pytest.mark.parametrize("stage", ["facts", "load", "prepare", "answer"])
@pytest.mark.parametrize("terminal", [True, False])
def test_an_error_at_any_stage_is_two_lines_and_its_code(
    error: IdeficsError, code: int, stage: str, terminal: bool
) -> None:
    engine = FakeEngine(
        "x",
        image_errors={"https://x.org/a": error} if stage == "prepare" else {},
        completion_error=lambda _: error if stage == "answer" else None,
    )
    world = World(
        engine,
        facts_error=error if stage == "facts" else None,
        load_error=error if stage == "load" else None,
        NO_COLOR="1",
    )
    arguments = ("ask", "Hi", "-i", "https://x.org/a")
    ran = run(*arguments, services=world.services, terminal=terminal)
    assert tuple(ran) == (code, "", "error: a\nhint: b\n")
    assert engine.is_closed == (stage in ("prepare", "answer"))


def test_the_engine_is_closed_after_an_answer() -> None:
    world = World(FakeEngine("x"))
    run("ask", "Hi", services=world.services)
    assert world.engine.is_closed


def test_ctrl_c_keeps_the_partial_answer_on_a_terminal_and_exits_130() -> None:
    world = World(FakeEngine("one two three", interrupt_after=2))
    ran = run("ask", "Hi", *PICTURE, services=world.services, terminal=True)
    assert tuple(ran) == (130, "one two\n", "")
    assert world.engine.is_closed


def test_ctrl_c_in_a_pipe_leaves_no_half_answer() -> None:
    world = World(FakeEngine("one two three", interrupt_after=2))
    assert tuple(run("ask", "Hi", services=world.services)) == (130, "", "")
    assert world.engine.is_closed


# Base models, plans, chat


def test_chatting_with_a_base_model_fails_before_it_loads() -> None:
    world = World(FakeEngine(), model="idefics2-8b-base")
    ran = run("ask", "Hi", services=world.services)
    assert (ran.code, ran.out, world.specs) == (2, "", [])
    assert ran.err.startswith("error: `idefics2-8b-base` is a base model: ")
    assert "hint: chat with `-m idefics2-8b`, or complete with `idefics ask --raw" in ran.err


def test_a_base_model_completes() -> None:
    world = World(FakeEngine("x"), model="idefics2-8b-base")
    assert tuple(run("ask", "Once", "--raw", "-q", services=world.services)) == (0, "x\n", "")


@pytest.mark.parametrize("command", ["ask", "chat"])
def test_a_dry_run_shows_the_plan_without_the_network_and_stdin(command: str, picture: str) -> None:
    stdin = io.BytesIO(b"Hi")
    world = World(FakeEngine(), stdin=stdin)
    pictures = ("-i", picture, "-i", "-", "-i", "https://nowhere.invalid/a.png")
    ran = run(command, "--dry-run", *pictures, services=world.services)
    assert (ran.code, ran.err, world.specs, stdin.tell()) == (0, "", [], 0)
    assert "cpu" in ran.out
    ran = run(command, "--dry-run", "--json", services=world.services)
    assert (ran.code, ran.err, world.specs) == (0, "", [])
    assert isinstance(ran.record, dict)


@pytest.mark.parametrize("content", [None, b"no picture", b"\x89PNG\r\n\x1a\ncut off"])
def test_a_dry_run_refuses_a_bad_picture_as_the_run_does(
    content: bytes | None, tmp_path: Path
) -> None:
    bad = tmp_path / "bad.png"
    if content is not None:
        bad.write_bytes(content)
    world = World(FakeEngine("x"))
    refused = run("ask", "Hi", "-i", str(bad), services=world.services)
    assert (refused.code, refused.out, world.specs) == (1, "", [])
    assert run("ask", "Hi", "-i", str(bad), "--dry-run", services=world.services) == refused


def test_a_dry_run_needs_no_pipe() -> None:
    world = World(FakeEngine(), stdin=Terminal())
    assert run("chat", "--dry-run", services=world.services).code == 0


def test_a_piped_chat_is_ask_with_the_prompt_on_stdin(picture: str) -> None:
    flags = ("-i", picture, "-s", "Brief.", "--max-new-tokens", "2")
    one = World(FakeEngine("a b c"), stdin=io.BytesIO(b"What?\n"))
    other = World(FakeEngine("a b c"))
    chatted = run("chat", *flags, services=one.services)
    answered = run("ask", "What?", *flags, services=other.services)
    assert chatted == answered
    assert asked(one) == asked(other)


def test_a_chat_at_the_keyboard_without_a_terminal_says_what_else_there_is() -> None:
    world = World(FakeEngine(), stdin=Terminal())
    hint = "`idefics ask PROMPT -i PICTURE`, or pipe the question into `idefics chat`"
    error = f"error: a chat at the keyboard needs a terminal on stderr\nhint: {hint}\n"
    assert tuple(run("chat", services=world.services)) == (2, "", error)


def test_a_chat_with_a_closed_or_empty_stdin_has_an_empty_prompt() -> None:
    for stdin in (None, io.BytesIO()):
        ran = run("chat", services=World(FakeEngine(), stdin=stdin).services)
        assert (ran.code, ran.out) == (2, "")
        assert ran.err.startswith("error: the prompt is empty\n")


def test_a_chat_whose_stdin_is_the_picture_has_no_prompt() -> None:
    ran = run("chat", "-i", "-", services=World(FakeEngine(), stdin=io.BytesIO(b"x")).services)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: the prompt is empty\n")


# Libraries


def test_libraries_are_hushed_unless_verbose() -> None:
    quiet, verbose = World(FakeEngine("x")), World(FakeEngine("x"))
    run("ask", "Hi", services=quiet.services)
    run("ask", "Hi", "-v", services=verbose.services)
    assert quiet.services.environ["TRANSFORMERS_VERBOSITY"] == "error"
    assert verbose.services.environ["TRANSFORMERS_VERBOSITY"] == "info"


def test_what_the_user_set_for_a_library_stays() -> None:
    world = World(FakeEngine("x"), TRANSFORMERS_VERBOSITY="debug")
    run("ask", "Hi", services=world.services)
    assert world.services.environ["TRANSFORMERS_VERBOSITY"] == "debug"


def test_the_stronger_of_quiet_and_verbose_wins() -> None:
    arguments = ("ask", "Hi", "--max-new-tokens", "1")
    for verbose, quiet, flag, is_quiet in (("1", "", "-q", True), ("", "1", "-v", False)):
        world = World(FakeEngine("one two"), IDEFICS_VERBOSE=verbose, IDEFICS_QUIET=quiet)
        ran = run(*arguments, flag, services=world.services)
        assert (ran.code, ran.out, ran.err == "") == (0, "one\n", is_quiet)
        level = world.services.environ["TRANSFORMERS_VERBOSITY"]
        assert level == ("error" if is_quiet else "info")


@pytest.mark.parametrize(
    ("arguments", "stdin", "terminal", "is_told"),
    [
        (("Hi",), None, True, True),
        (("Hi",), None, False, False),
        (("Hi", "--json"), None, True, False),
        (("Hi", "--quiet"), None, True, False),
        (("Hi",), b"some text", True, False),
        (("Hi", *PICTURE), None, True, False),
    ],
)
def test_only_at_a_terminal_a_note_says_that_no_picture_was_given(
    arguments: tuple[str, ...], stdin: bytes | None, terminal: bool, is_told: bool
) -> None:
    world = World(FakeEngine("x"), stdin=None if stdin is None else io.BytesIO(stdin))
    ran = run("ask", *arguments, services=world.services, terminal=terminal)
    assert ran.code == 0
    assert ("no picture was given" in ran.err) is is_told
