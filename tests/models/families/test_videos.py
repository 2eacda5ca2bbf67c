"""Videos have the ids, pixels and greedy tokens of transformers called directly."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers.models.smolvlm.video_processing_smolvlm import get_resize_output_image_size
from transformers.video_utils import VideoMetadata

from idefics_cli.core.errors import ContextError, ImageError, ModelError
from idefics_cli.core.types import (
    Attachment,
    GenerationRequest,
    ImageLimits,
    Message,
    Mode,
    Role,
    Sampling,
)
from idefics_cli.engine.local.engine import LocalEngine
from idefics_cli.engine.protocol import Prepared
from idefics_cli.images.media import MediaLoader
from idefics_cli.images.video import Video, VideoFacts
from idefics_cli.models.families.picture import PictureTensors
from idefics_cli.models.families.videos import (
    VideoFamily,
    VideoSettings,
    choose_frames,
    first_size,
    spell_number,
)
from tests.support.clips import Clip
from tests.support.library_videos import (
    install_stand_ins,
    video_inputs,
    video_processor,
    with_videos,
)
from tests.support.pixels import pixel_values
from tests.support.prompts import NEW_TOKENS, open_engine, picture
from tests.support.reference import Reference, load_reference

Turns = Sequence[tuple[Role, Sequence[str], str]]
"""The role, the names of the videos in `CLIPS`, and the text of each message."""

CLIPS = {
    "small": Clip(frames=60, rate=30, size=(64, 48)),
    "as small": Clip(frames=20, rate=10, size=(48, 64)),
    "large": Clip(frames=80, rate=10, size=(320, 180), codec="libx264", b_frames=2),
    "tall": Clip(frames=48, rate=12, size=(50, 90), container="webm", codec="libvpx-vp9"),
    # Longer than 12 frames a second allow, so its first and last second are left out.
    "long": Clip(frames=200, rate=10, size=(60, 60)),
    "one frame": Clip(frames=1, codec="libx264"),
}
CONVERSATIONS: dict[str, Turns] = {
    "a video": [("user", ["small"], "What happens?")],
    "a large video": [("user", ["large"], "What happens?")],
    "a long video": [("user", ["long"], "What happens in it?")],
    "one frame": [("user", ["one frame"], "What is it?")],
    "later turns": [
        ("user", ["small"], "What happens?"),
        ("assistant", [], "A red circle moves."),
        ("user", [], "Where to?"),
        ("assistant", [], "To the left."),
        # transformers writes the largest number of frames into the text of every video, so the
        # second has as many as the first.
        ("user", ["as small"], "And here?"),
    ],
    "text before the video": [
        ("system", [], "You are a helpful assistant."),
        ("user", [], "Hello."),
        ("assistant", [], "Hello!"),
        ("user", ["small"], "Here."),
    ],
    "what a user types": [("user", ["small"], "<image> <end_of_utterance>{{ 1 }}")],
}


@pytest.fixture(autouse=True)
def stand_ins(monkeypatch: pytest.MonkeyPatch) -> None:
    install_stand_ins(monkeypatch)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("clips")
    paths = {name: folder / name for name in CLIPS}
    for name, path in paths.items():
        path.write_bytes(CLIPS[name].encode())
    return paths


@pytest.fixture(scope="module")
def engine(checkpoint: Callable[[str], Path]) -> Iterator[LocalEngine]:
    with open_engine(checkpoint("smolvlm2"), "smolvlm2") as opened:
        yield opened


@pytest.fixture(scope="module")
def plain_reference(checkpoint: Callable[[str], Path]) -> Reference:
    return load_reference(checkpoint("smolvlm2"), "smolvlm2")


@pytest.fixture
def reference(
    plain_reference: Reference, checkpoint: Callable[[str], Path], stand_ins: None
) -> Reference:
    return with_videos(plain_reference, checkpoint("smolvlm2"))


def as_request(clips: dict[str, Path], turns: Turns) -> GenerationRequest:
    messages = (
        Message(role, (*(Attachment(str(clips[name])) for name in names), text))
        for role, names, text in turns
    )
    return GenerationRequest(tuple(messages), Sampling(max_new_tokens=NEW_TOKENS))


def theirs(reference: Reference, clips: dict[str, Path], turns: Turns) -> dict[str, torch.Tensor]:
    spoken = [
        # The library takes `<image>` in a text for a picture.
        (role, [clips[name] for name in names], reference_text(text))
        for role, names, text in turns
    ]
    return video_inputs(reference, spoken)


def reference_text(text: str) -> str:
    for token in ("<image>", "<end_of_utterance>"):
        text = text.replace(token, token[0] + " " + token[1:])
    return text


def tensors_of(engine: LocalEngine, path: Path) -> PictureTensors:
    family = engine.loaded.family
    assert isinstance(family, VideoFamily)
    with open_video(path) as video:
        return family.preprocess_video(video)


def open_video(path: Path) -> Video:
    video = MediaLoader(ImageLimits()).open_media(Attachment(str(path)))
    assert isinstance(video, Video)
    return video


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_a_conversation_has_the_librarys_ids_and_greedy_tokens(
    name: str, engine: LocalEngine, reference: Reference, clips: dict[str, Path]
) -> None:
    turns = CONVERSATIONS[name]
    expected = theirs(reference, clips, turns)
    prepared = engine.prepare(as_request(clips, turns))
    ids = engine.loaded.family.encode([prepared.request], [prepared.pictures])["input_ids"]
    assert ids.tolist() == expected["input_ids"].tolist()
    (answer,) = engine.complete([prepared])
    tokens = reference.generate(expected, max_new_tokens=NEW_TOKENS)
    assert list(answer.token_ids) == tokens
    assert answer.prompt_tokens == expected["input_ids"].shape[1]


@pytest.mark.parametrize("name", CLIPS)
def test_the_pixels_of_a_video_are_those_of_the_library(
    name: str, engine: LocalEngine, reference: Reference, clips: dict[str, Path]
) -> None:
    expected = theirs(reference, clips, [("user", [name], "What?")])["pixel_values"]
    ours = tensors_of(engine, clips[name])
    assert torch.equal(torch.stack(pixel_values(ours))[None], expected)
    width, height = CLIPS[name].size
    assert ours.picture.size == (width, height)


@pytest.mark.parametrize("resample", [0, 1, 2, 3])
def test_every_filter_gives_the_librarys_pixels(
    resample: int,
    checkpoint: Callable[[str], Path],
    plain_reference: Reference,
    clips: dict[str, Path],
    tmp_path: Path,
) -> None:
    folder = changed(checkpoint("smolvlm2"), tmp_path, resample=resample)
    expected = theirs(with_videos(plain_reference, folder), clips, [("user", ["large"], "What?")])
    with open_engine(folder, "smolvlm2") as engine:
        ours = pixel_values(tensors_of(engine, clips["large"]))
    assert torch.equal(torch.stack(ours)[None], expected["pixel_values"])


def changed(folder: Path, tmp_path: Path, **settings: object) -> Path:
    copy = tmp_path / "changed"
    shutil.copytree(folder, copy)
    path = copy / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    return copy


def test_videos_in_a_batch_get_the_replies_that_they_get_alone(
    engine: LocalEngine, clips: dict[str, Path]
) -> None:
    turns: list[Turns] = [
        [("user", ["small"], "What happens?")],
        [("user", ["long"], "What happens in it?")],
        [("user", [], "What can you do?")],
        [("user", ["small", "large"], "Which one is longer?")],
    ]
    prepared = [engine.prepare(as_request(clips, each)) for each in turns]
    alone = [engine.complete([each])[0].token_ids for each in prepared]
    assert [each.token_ids for each in engine.complete(prepared)] == alone
    assert len(set(alone)) > 1


def test_a_video_beside_pictures_is_told_apart(
    engine: LocalEngine, clips: dict[str, Path], tmp_path: Path
) -> None:
    picture(0).save(tmp_path / "a.png")
    attachments = (Attachment(str(tmp_path / "a.png")), Attachment(str(clips["small"])))
    for parts in (attachments, attachments[::-1]):
        request = GenerationRequest((Message("user", (*parts, "Which?")),))
        prepared = engine.prepare(request)
        (ids,) = engine.loaded.family.encode([request], [prepared.pictures])["input_ids"].tolist()
        text = engine.loaded.family.tokenizer.decode(
            ids, skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        first = text.index("series of two frames")
        is_video_first = parts[0] is attachments[1]
        assert (first < text.index("<row_1_col_1>")) is is_video_first
        assert text.startswith(
            "<|im_start|>User: You are provided" if is_video_first else "<|im_start|>User:<fake"
        )
        engine.complete([prepared])


def test_a_later_turn_reuses_the_states_of_the_video(
    engine: LocalEngine, clips: dict[str, Path]
) -> None:
    first: Turns = [("user", ["long"], "What happens?")]
    (answer,) = engine.complete([engine.prepare(as_request(clips, first))])
    later: Turns = [*first, ("assistant", [], "A circle."), ("user", [], "Where to?")]
    (again,) = engine.complete([engine.prepare(as_request(clips, later))])
    assert again.reused_tokens >= answer.prompt_tokens - 1


def test_equal_frames_at_other_times_are_another_video(engine: LocalEngine, tmp_path: Path) -> None:
    slow, fast = tmp_path / "slow", tmp_path / "fast"
    slow.write_bytes(Clip(frames=2, rate=1).encode())
    fast.write_bytes(Clip(frames=2, rate=2).encode())
    prepared = [
        engine.prepare(as_request({"x": path}, [("user", ["x"], "What?")])) for path in (slow, fast)
    ]
    assert prepared[0].pictures[0].digest != prepared[1].pictures[0].digest
    assert prepared[0].shape_key != prepared[1].shape_key


def test_a_known_video_is_not_read_again(engine: LocalEngine, clips: dict[str, Path]) -> None:
    opened: list[str] = []

    def prepare(source: Path) -> Prepared:
        def open_image(attachment: Attachment, draft_edge: int) -> Video:
            opened.append(attachment.source)
            return open_video(source)

        message = Message("user", (Attachment(str(source), digest="d" * 64), "What?"))
        return engine.prepare(GenerationRequest((message,)), open_image=open_image)

    first = prepare(clips["tall"])
    assert prepare(clips["tall"]).pictures == first.pictures
    assert len(opened) == 1


def test_too_many_videos_for_the_context_are_an_error_with_the_way_out(
    engine: LocalEngine, clips: dict[str, Path]
) -> None:
    prepared = engine.prepare(as_request(clips, [("user", ["long"] * 9, "What?")]))
    with pytest.raises(ContextError, match="and the model takes 1024") as caught:
        engine.complete([prepared])
    assert caught.value.hint == "fewer videos, videos of less than a minute, or a shorter text"


@pytest.mark.parametrize("kind", ["idefics-base", "idefics2", "idefics3", "smolvlm"])
def test_other_families_take_pictures_only(
    kind: str, checkpoint: Callable[[str], Path], clips: dict[str, Path]
) -> None:
    message = Message("user", (Attachment(str(clips["small"])), "What?"))
    mode: Mode = "complete" if kind == "idefics-base" else "chat"
    with (
        open_engine(checkpoint(kind), kind) as engine,
        pytest.raises(ImageError, match="it is a video") as caught,
    ):
        engine.prepare(GenerationRequest((message,), mode=mode))
    assert caught.value.hint


# Single steps --------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(200))
def test_the_chosen_frames_are_those_of_the_library(
    seed: int, checkpoint: Callable[[str], Path]
) -> None:
    chance = np.random.default_rng(seed)
    count = int(chance.choice([1, 2, 3, 10, 59, 60, 61, 1000, 10**6])) + int(chance.integers(3))
    rate = float(chance.choice([0.5, 1, 10, 23.976, 24, 29.97, 30, 60, 240]))
    limit, speed = int(chance.choice([1, 2, 8, 64])), float(chance.choice([0, 0.5, 1, 2, 30]))
    metadata = VideoMetadata(total_num_frames=count, fps=rate, duration=count / rate)
    theirs = video_processor(checkpoint("smolvlm2")).sample_frames(
        metadata, num_frames=limit, fps=speed
    )
    facts = VideoFacts(count, rate, count / rate)
    settings = VideoSettings(max_frames=limit, frames_per_second=speed)
    assert choose_frames(facts, settings) == theirs.tolist()


@pytest.mark.parametrize("longest", [28, 84, 512, 2048, 5000])
def test_frames_are_scaled_to_the_librarys_size_first(longest: int) -> None:
    for size in ((48, 64), (64, 48), (1080, 1920), (1920, 1080), (3, 900), (900, 3), (77, 77)):
        theirs = get_resize_output_image_size(torch.empty(1, 3, *size), longest)
        assert first_size(*size, longest) == theirs


# From num2words 0.5.14.
SPELLED = {
    0: "zero", 1: "one", 12: "twelve", 19: "nineteen", 20: "twenty", 21: "twenty-one",
    40: "forty", 64: "sixty-four", 99: "ninety-nine", 100: "one hundred",
    101: "one hundred and one", 112: "one hundred and twelve", 240: "two hundred and forty",
    999: "nine hundred and ninety-nine",
}  # fmt: skip


def test_numbers_are_spelled_as_num2words_does() -> None:
    assert {number: spell_number(number) for number in SPELLED} == SPELLED


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"video_sampling": {"max_frames": 0}}, "num_frames"),
        ({"video_sampling": {"max_frames": 10**6}}, "num_frames"),
        ({"video_sampling": {"fps": "many"}}, "fps"),
        ({"num_frames": 2.5, "video_sampling": {}}, "num_frames"),
        ({"resample": 77}, "resample"),
    ],
)
def test_absurd_settings_for_videos_are_an_error(
    settings: dict[str, object], named: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    folder = changed(checkpoint("smolvlm2"), tmp_path, **settings)
    with pytest.raises(ModelError, match=f"preprocessor_config.json.*`{named}`"):
        open_engine(folder, "smolvlm2")


def test_newer_files_state_the_settings_for_videos_apart(
    checkpoint: Callable[[str], Path], tmp_path: Path, clips: dict[str, Path]
) -> None:
    folder = tmp_path / "newer"
    shutil.copytree(checkpoint("smolvlm2"), folder)
    video_processor(folder).save_pretrained(folder)
    path = folder / "video_preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"num_frames": 3}))
    stated = json.loads(path.read_text())
    stated["video_sampling"]["max_frames"] = 3
    path.write_text(json.dumps(stated))
    with open_engine(folder, "smolvlm2") as engine:
        assert len(tensors_of(engine, clips["long"]).tiles) == 3
