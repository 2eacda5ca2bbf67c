"""Videos in `ask`, `chat` and `caption`."""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from idefics_cli.chat.attachments import PictureOpener
from idefics_cli.chat.descriptions import describe_staged
from idefics_cli.cli.services import Services
from idefics_cli.core.errors import ImageError
from idefics_cli.core.sources import describe_source
from idefics_cli.core.types import Attachment, ImageLimits
from idefics_cli.images.media import MediaLoader, first_image
from tests.support.clips import Clip, sound
from tests.support.commands import TWO_CORES, Ran, run
from tests.support.pictures import encoded, noise

LIMIT = ("--max-new-tokens", "6", "--dtype", "float32")
CLIP = Clip(frames=90, rate=30, size=(80, 60))
TAKES_PICTURES = "it is a video, and `demo` takes pictures, not videos"


@pytest.fixture
def model(checkpoint: Callable[[str], Path]) -> tuple[str, str]:
    return "-m", str(checkpoint("smolvlm2"))


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "in"
    folder.mkdir()
    (folder / "clip.mp4").write_bytes(CLIP.encode())
    (folder / "a.png").write_bytes(encoded(noise(), "PNG"))
    (folder / "notes.txt").write_text("milk\n")
    return folder


def call(*arguments: str, stdin: bytes | None = None) -> Ran:
    stream = None if stdin is None else io.TextIOWrapper(io.BytesIO(stdin))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdin", stream)  # the engine reads it
        buffer = None if stream is None else stream.buffer
        return run(*arguments, services=replace(Services(), stdin=buffer, probe=lambda: TWO_CORES))


def records(path: str) -> dict[str, dict[str, object]]:
    rows = map(json.loads, Path(path).read_text().splitlines())
    return {row["file_name"]: row for row in rows}


def test_a_question_about_a_video_is_answered(model: tuple[str, str]) -> None:
    ran = call("ask", "What happens?", "-i", "in/clip.mp4", *model, *LIMIT, "--json")
    assert ran.code == 0
    assert ran.err == "note: the answer was cut after 6 tokens; `--max-new-tokens` sets the limit\n"
    answer = json.loads(ran.out)
    # Three frames of one token each, with the text around them.
    assert answer["prompt_tokens"] > 100
    data = CLIP.encode()
    piped = call("ask", "What happens?", "-i", "-", *model, *LIMIT, "--json", stdin=data)
    assert json.loads(piped.out)["token_ids"] == answer["token_ids"]


def test_a_raw_prompt_says_where_the_video_is(model: tuple[str, str]) -> None:
    ran = call("ask", "--raw", "A: <image> B:", "-i", "in/clip.mp4", *model, *LIMIT, "--json")
    assert ran.code == 0
    assert json.loads(ran.out)["prompt_tokens"] > 80


@pytest.mark.parametrize("words", ["ask What? -i in/clip.mp4", "chat -i in/clip.mp4"])
def test_a_model_for_pictures_refuses_a_video_before_it_is_loaded(words: str) -> None:
    ran = call(*words.split(), "-m", "demo", stdin=b"What?")
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == (
        f"error: cannot read `in/clip.mp4`: {TAKES_PICTURES}\n"
        "hint: models for videos are smolvlm2-256m, smolvlm2-500m and smolvlm2-2.2b; or save a "
        "frame of it as a picture: ffmpeg -i VIDEO -vframes 1 a.png\n"
    )


def test_a_model_for_pictures_refuses_a_video_on_stdin() -> None:
    ran = call("ask", "What?", "-i", "-", "-m", "demo", stdin=CLIP.encode())
    assert (ran.code, ran.out) == (1, "")
    assert f"error: cannot read `stdin`: {TAKES_PICTURES}\n" in ran.err


@pytest.mark.parametrize(
    ("data", "message"),
    [(sound(), "it has only sound"), (CLIP.encode()[:900], "a video that is cut off or damaged")],
)
def test_a_bad_video_is_found_before_the_model_is_loaded(
    data: bytes, message: str, model: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    Path("bad.mp4").write_bytes(data)
    ran = call("ask", "What?", "-i", "bad.mp4", *model, *LIMIT)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err.startswith(f"error: cannot read `bad.mp4`: {message}")


def test_without_pyav_the_error_says_what_to_install(
    model: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    ran = call("ask", "What?", "-i", "in/clip.mp4", *model, *LIMIT)
    assert (ran.code, ran.out) == (1, "")
    assert ran.err == (
        "error: cannot read `in/clip.mp4`: it is a video, which needs PyAV\n"
        "hint: pip install 'idefics-cli[video]'\n"
    )


# Captions ------------------------------------------------------------------------------------


def test_a_folder_has_videos_only_for_a_model_that_takes_them(model: tuple[str, str]) -> None:
    pictures = call("caption", "in", "-m", "demo", "-o", "pictures.jsonl")
    assert pictures.code == 0
    assert set(records("pictures.jsonl")) == {"in/a.png"}
    both = call("caption", "in", *model, *LIMIT, "-o", "both.jsonl")
    assert both.code == 0
    assert set(records("both.jsonl")) == {"in/a.png", "in/clip.mp4"}
    row = records("both.jsonl")["in/clip.mp4"]
    assert (row["width"], row["height"], row["error"]) == (80, 60, None)
    alone = call("caption", "in/clip.mp4", *model, *LIMIT, "-o", "alone.jsonl")
    assert alone.code == 0
    assert records("alone.jsonl")["in/clip.mp4"]["caption"] == row["caption"]


def test_a_named_video_is_a_failure_for_other_models() -> None:
    ran = call("caption", "in/clip.mp4", "in/a.png", "-m", "demo", "-o", "out.jsonl")
    assert ran.code == 3
    row = records("out.jsonl")["in/clip.mp4"]
    assert row["error"] == "cannot read `in/clip.mp4`: it is a video"


def test_a_rehearsal_reads_the_header_of_a_video(model: tuple[str, str]) -> None:
    Path("in/sound.mp4").write_bytes(sound())
    ran = call("caption", "in", *model, *LIMIT, "--dry-run")
    assert "cannot read `in/sound.mp4`: it has only sound" in ran.err
    assert "clip.mp4" not in ran.err


def test_a_prompt_can_have_the_size_of_a_video(model: tuple[str, str]) -> None:
    prompt = ("--prompt", "{width} by {height}, {stem}?")
    ran = call("caption", "in/clip.mp4", *model, *LIMIT, *prompt, "-o", "out.jsonl")
    assert ran.code == 0


def test_a_report_shows_the_first_frame_of_a_video(model: tuple[str, str]) -> None:
    ran = call("caption", "in", *model, *LIMIT, "-o", "out.jsonl", "--report", "report.html")
    assert ran.code == 0
    assert Path("report.html").read_text().count("data:image/") == 2


# Batches --------------------------------------------------------------------------------------


def test_requests_of_a_batch_may_be_about_videos(model: tuple[str, str]) -> None:
    parts = [{"type": "video", "path": "clip.mp4"}, {"type": "text", "text": "What happens?"}]
    rows = [
        {"prompt": "What happens?", "video": "clip.mp4"},
        {"messages": [{"role": "user", "content": parts}]},
        {"prompt": "What is it?", "image": "a.png"},
    ]
    Path("in/r.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = call("batch", "in/r.jsonl", *model, *LIMIT)
    assert ran.code == 0, ran.err
    replies = [json.loads(line)["reply"] for line in ran.out.splitlines()]
    alone = [
        call("ask", prompt, "-i", f"in/{name}", *model, *LIMIT, "--json").record["text"]
        for prompt, name in (("What happens?", "clip.mp4"), ("What is it?", "a.png"))
    ]
    assert replies == [alone[0], *alone]
    ran = call("batch", "in/r.jsonl", *model, *LIMIT, "--dry-run")
    assert (ran.code, ran.err) == (0, "")


def test_requests_of_a_batch_can_have_videos(model: tuple[str, str]) -> None:
    rows = [
        {"prompt": "What happens?", "images": ["in/clip.mp4"]},
        {"prompt": "Which is red?", "images": ["in/a.png", "in/clip.mp4"]},
        {"prompt": "What happens?", "images": ["in/notes.txt"]},
    ]
    Path("rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ran = call("batch", "rows.jsonl", *model, *LIMIT, "-o", "answers.jsonl")
    assert ran.code == 3
    answers = [json.loads(line) for line in Path("answers.jsonl").read_text().splitlines()]
    asked = call("ask", "What happens?", "-i", "in/clip.mp4", *model, *LIMIT, "--json")
    assert answers[0]["reply"] == json.loads(asked.out)["text"]
    assert [row.get("error") is None for row in answers] == [True, True, False]


# Chats ---------------------------------------------------------------------------------------


def test_a_staged_video_has_its_length_and_its_first_frame(place: Path) -> None:
    path = str(place / "clip.mp4")
    opener = PictureOpener(ImageLimits(), offline=True)
    staged = opener.stage(path)
    assert describe_staged(1, staged, place) == ("[1] clip.mp4, 80x60 landscape, video of 0:00:03")
    assert staged.suffix == ".mp4"
    first = first_image(MediaLoader(ImageLimits()).open_media(Attachment(path)))
    assert isinstance(staged.thumbnail, Image.Image)
    assert staged.thumbnail.tobytes() == first.tobytes()


def test_a_loaded_model_for_pictures_refuses_to_stage_a_video(
    place: Path, checkpoint: Callable[[str], Path]
) -> None:
    from idefics_cli.chat.budget import TokenBudget
    from tests.support.prompts import open_engine

    opener = PictureOpener(ImageLimits(), offline=True)
    with open_engine(checkpoint("idefics3"), "idefics3") as engine:
        budget = TokenBudget(engine, opener.open_kept)
        with pytest.raises(ImageError) as caught:
            opener.stage(str(place / "clip.mp4"), budget.stage)
    shown = describe_source(str(place / "clip.mp4"))
    assert str(caught.value) == (
        f"cannot read `{shown}`: it is a video, and Idefics3 takes pictures, not videos"
    )
    with open_engine(checkpoint("smolvlm2"), "smolvlm2") as engine:
        budget = TokenBudget(engine, opener.open_kept)
        staged = opener.stage(str(place / "clip.mp4"), budget.stage)
    assert staged.tokens is not None
    assert staged.tokens > 50
