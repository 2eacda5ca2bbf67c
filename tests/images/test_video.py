"""Videos: their facts and frames are those of the library, and bad files are errors."""

from __future__ import annotations

import gc
import io
import os
import random
import struct
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from transformers.video_utils import read_video_pyav

from idefics_cli.core.errors import ImageError
from idefics_cli.core.types import Attachment, ImageLimits
from idefics_cli.images.formats import identify
from idefics_cli.images.media import MediaLoader
from idefics_cli.images.memory import MemoryBudget
from idefics_cli.images.video import Video
from tests.support.clips import Clip, sound
from tests.support.pictures import encoded, noise

CLIPS = {
    "mp4": Clip(),
    "mp4 with B frames": Clip(codec="libx264", b_frames=3),
    "mov of changing rate": Clip(container="mov", times=[i * i for i in range(60)]),
    "mkv": Clip(container="matroska", codec="libx264", b_frames=2),
    "webm": Clip(container="webm", codec="libvpx-vp9"),
    "avi": Clip(container="avi"),
    "mpegts": Clip(container="mpegts", codec="mpeg2video", b_frames=2),
    "flv": Clip(container="flv", codec="flv"),
    "a still picture": Clip(frames=1, codec="libx264"),
}
TWO_FRAMES = Clip(frames=2).encode()


def opened(data: bytes, limits: ImageLimits | None = None) -> Video:
    return opened_as("clip.mp4", data, limits)


def opened_as(name: str, data: bytes, limits: ImageLimits | None = None) -> Video:
    video = MediaLoader(limits or ImageLimits()).open_media_stream(io.BytesIO(data), name)
    assert isinstance(video, Video)
    return video


def frames_of(video: Video, indices: Sequence[int]) -> list[NDArray[np.uint8]]:
    with video:
        frames = list(video.read_frames(indices))
    assert [frame.index for frame in frames] == list(indices)[: len(frames)]
    return [frame.pixels for frame in frames]


def refusal(data: bytes, limits: ImageLimits | None = None) -> ImageError:
    with pytest.raises(ImageError) as caught, opened(data, limits) as video:
        list(video.read_frames(range(video.facts.frames)))
    assert "`clip.mp4`" in str(caught.value)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize("name", CLIPS)
def test_facts_and_frames_are_those_of_the_library(name: str, tmp_path: Path) -> None:
    clip, path = CLIPS[name], tmp_path / "clip"
    path.write_bytes(clip.encode())
    indices = sorted({0, 1, clip.frames // 3, clip.frames // 2, clip.frames - 1} & {*range(60)})
    expected, metadata = read_video_pyav(str(path), lambda metadata: indices)
    video = MediaLoader(ImageLimits()).open_media(Attachment(str(path)))
    assert isinstance(video, Video)
    facts = video.facts
    assert np.array_equal(frames_of(video, indices), expected)
    assert facts.frames == clip.frames
    assert facts.frames_per_second == metadata.fps
    # Where the header has no number of frames, the library takes it for 0.
    if metadata.total_num_frames:
        assert (facts.frames, facts.duration_seconds) == (
            metadata.total_num_frames,
            metadata.duration,
        )
    assert facts.duration_seconds == pytest.approx(clip.frames / facts.frames_per_second)


@pytest.mark.parametrize(
    "clip",
    [
        Clip(frames=2500, size=(32, 32)),
        Clip(frames=2500, size=(32, 32), codec="libx264", b_frames=3, gop=50),
        Clip(frames=2500, size=(32, 32), container="matroska", codec="libx264", b_frames=2),
    ],
    ids=["mp4", "mp4 with B frames", "mkv"],
)
def test_frames_of_a_long_video_are_found_by_seeking(clip: Clip, tmp_path: Path) -> None:
    indices = [0, 3, 49, 50, 600, 601, 1700, 2001, 2499]
    path = tmp_path / "clip"
    path.write_bytes(clip.encode())
    expected, _ = read_video_pyav(str(path), lambda metadata: indices)
    video = opened(path.read_bytes())
    assert np.array_equal(frames_of(video, indices), expected)
    assert video.decoded < 700


@pytest.mark.parametrize(
    ("turn", "size"), [(90, (64, 48, 3)), (180, (48, 64, 3)), (-90, (64, 48, 3))]
)
def test_the_frames_of_a_turned_video_are_upright(turn: int, size: tuple[int, ...]) -> None:
    clip = Clip(frames=2)
    (lying,) = frames_of(opened(clip.encode()), [0])
    (upright,) = frames_of(opened(Clip(frames=2, turn=turn).encode()), [0])
    assert upright.shape == size
    assert np.array_equal(upright, np.rot90(lying, turn // 90))


def test_a_picture_stays_a_picture() -> None:
    loader = MediaLoader(ImageLimits(), stdin=io.BytesIO(encoded(noise(), "PNG")))
    assert isinstance(loader.open_media(Attachment("-")), Image.Image)


def test_a_video_is_read_from_stdin_too() -> None:
    loader = MediaLoader(ImageLimits(), stdin=io.BytesIO(Clip().encode()))
    video = loader.open_media(Attachment("-"))
    assert isinstance(video, Video)
    assert len(frames_of(video, [0, 59])) == 2


# Bad files -----------------------------------------------------------------------------------


def test_a_file_with_sound_alone_is_an_error() -> None:
    error = refusal(sound())
    assert error.kind == "not_an_image"
    assert "only sound" in str(error)


@pytest.mark.parametrize("share", [0.02, 0.5, 0.97])
def test_a_cut_file_is_an_error(share: float) -> None:
    data = Clip().encode()
    error = refusal(data[: int(len(data) * share)])
    assert error.kind == "truncated"
    assert str(error).startswith("cannot read `clip.mp4`: a video that is cut off or damaged (")
    assert "Errno" not in str(error)


def with_header_first(data: bytes) -> bytes:
    """Return the MP4 file *data* with its `moov` box before its `mdat` box, as on web pages."""
    boxes = {}
    start = 0
    while start < len(data):
        (size,) = struct.unpack_from(">I", data, start)
        boxes[data[start + 4 : start + 8]] = data[start : start + size]
        start += size
    moov = bytearray(boxes[b"moov"])
    place = moov.find(b"stco") + 8
    (count,) = struct.unpack_from(">I", moov, place)
    for each in range(place + 4, place + 4 + 4 * count, 4):
        (offset,) = struct.unpack_from(">I", moov, each)
        struct.pack_into(">I", moov, each, offset + len(moov) - len(boxes.get(b"free", b"")))
    return boxes[b"ftyp"] + bytes(moov) + boxes[b"mdat"]


def test_a_cut_file_with_its_header_first_is_an_error_or_gives_what_there_is() -> None:
    whole = with_header_first(Clip(codec="libx264", gop=6).encode())
    assert len(frames_of(opened(whole), range(60))) == 60
    half = whole[: len(whole) * 2 // 3]
    error = refusal(half)
    assert error.kind == "truncated"
    kept = frames_of(opened(half, ImageLimits(keeps_truncated=True)), range(60))
    assert 5 < len(kept) < 55


def test_frames_that_the_file_lacks_are_left_out() -> None:
    with opened(Clip().encode()) as video:
        frames = list(video.read_frames([58, 59, 62]))
    assert [frame.index for frame in frames] == [58, 59]
    keeps = ImageLimits(keeps_truncated=True)
    with (
        opened(Clip().encode(), keeps) as video,
        pytest.raises(ImageError, match="no frame that can be decoded"),
    ):
        list(video.read_frames([60]))


@pytest.mark.parametrize("seed", range(30))
def test_damage_is_an_error_or_costs_only_pixels(
    seed: int, capfd: pytest.CaptureFixture[str]
) -> None:
    chance = random.Random(seed)
    data = bytearray(CLIPS[chance.choice(list(CLIPS))].encode())
    for _ in range(chance.choice((1, 10, 200))):
        data[chance.randrange(16, len(data))] = chance.randrange(256)
    with suppress(ImageError), opened(bytes(data)) as video:
        for frame in video.read_frames([0, video.facts.frames // 2]):
            assert frame.pixels.shape[2] == 3
    assert capfd.readouterr() == ("", "")


def test_a_time_that_makes_no_sense_is_an_error() -> None:
    data = bytearray(Clip().encode())
    struct.pack_into(">I", data, data.find(b"mdhd") + 16, 1)  # ticks in a second
    struct.pack_into(">I", data, data.find(b"stts") + 16, 2**31 - 1)  # ticks of a frame
    error = refusal(bytes(data))
    assert error.kind == "unsupported"
    assert "longer than ten years" in str(error)


def test_a_list_of_files_opens_none_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.mp4").write_bytes(Clip().encode())
    lists = (
        b"ffconcat version 1.0\nfile secret.mp4\n",
        b"#EXTM3U\n#EXTINF:1,\nsecret.mp4\n#EXT-X-ENDLIST\n",
    )
    for data in lists:
        assert not identify(data).is_video
        with pytest.raises(ImageError, match="cut off or damaged"):
            Video(
                io.BytesIO(data),
                "clip.mp4",
                identify(Clip().encode()),
                limits=ImageLimits(),
                memory=MemoryBudget(),
            )


def test_a_frame_over_the_pixel_limit_is_an_error() -> None:
    error = refusal(Clip(frames=2).encode(), ImageLimits(max_pixels=3000))
    assert error.kind == "too_large"
    assert "64x48" in str(error)


def test_a_video_that_takes_too_long_is_an_error() -> None:
    data = Clip().encode()
    with (
        pytest.raises(ImageError, match="longer than 0 s") as caught,
        Video(
            io.BytesIO(data),
            "clip.mp4",
            identify(data),
            limits=ImageLimits(),
            memory=MemoryBudget(),
            decode_seconds=0,
        ) as video,
    ):
        list(video.read_frames([0]))
    assert "ffmpeg" in str(caught.value.hint)


def test_without_pyav_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    error = refusal(TWO_FRAMES)
    assert error.hint == "pip install 'idefics-cli[video]'"


def test_files_are_closed(tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    for data in (Clip(frames=2).encode(), sound(), b"\x1a\x45\xdf\xa3" + bytes(40)):
        path.write_bytes(data)
        loader = MediaLoader(ImageLimits())
        try:
            video = loader.open_media(Attachment(str(path)))
        except ImageError:
            continue
        assert isinstance(video, Video)
        frames_of(video, [0])
    gc.collect()
    open_files = (os.path.realpath(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd"))
    assert str(path) not in set(open_files)


@pytest.mark.parametrize(
    ("head", "is_video"),
    [
        (b"\0\0\0\x08wide\0\0\0\0mdat", True),
        (b"\0\0\x03\0moov", True),
        (b"\x30\x26\xb2\x75\x8e\x66\xcf\x11", True),
        (b"The wide road", False),
        (b"G" + b"o" * 4000, False),
        (CLIPS["mpegts"].encode(), True),
    ],
)
def test_videos_are_known_by_their_first_bytes(head: bytes, is_video: bool) -> None:
    assert identify(head[:4096]).is_video is is_video
