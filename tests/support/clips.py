"""Short videos, written by PyAV."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass

import av
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Clip:
    """What a clip is like; its frames get brighter from left to right, and over time.

    Attributes:
        frames: Number of frames.
        rate: Frames per second.
        size: (width, height) in pixels, even numbers.
        container: FFmpeg's name of the container format.
        codec: FFmpeg's name of the encoder.
        gop: Number of frames from one key frame to the next.
        b_frames: Number of frames in a row that refer to later ones.
        turn: Degrees by which a player turns the frames counterclockwise.
        times: Time of each frame, in units of a frame; None for 0, 1, 2 and so on.
    """

    frames: int = 60
    rate: int = 30
    size: tuple[int, int] = (64, 48)
    container: str = "mp4"
    codec: str = "mpeg4"
    gop: int = 12
    b_frames: int = 0
    turn: int = 0
    times: Sequence[int] | None = None

    def encode(self) -> bytes:
        """Return the clip as a file."""
        buffer = io.BytesIO()
        with av.open(buffer, "w", format=self.container) as container:
            stream = container.add_stream(self.codec, rate=self.rate)
            assert isinstance(stream, av.VideoStream)
            stream.width, stream.height = self.size
            stream.pix_fmt = "yuv420p"
            stream.gop_size, stream.max_b_frames = self.gop, self.b_frames
            if self.turn:
                stream.set_display_rotation(self.turn)
            for number in range(self.frames):
                frame = av.VideoFrame.from_ndarray(self.picture(number), format="rgb24")
                frame.pts = number if self.times is None else self.times[number]
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
        return buffer.getvalue()

    def picture(self, number: int) -> NDArray[np.uint8]:
        """Return frame *number* before it is encoded."""
        width, height = self.size
        pixels = np.zeros((height, width, 3), np.uint8)
        pixels[..., 0] = np.linspace(0, 255, width)
        pixels[..., 1] = 255 * number // max(1, self.frames - 1)
        pixels[: height // 2, :, 2] = 200
        return pixels


def sound() -> bytes:
    """Return an MP4 file with sound and no video."""
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16_000)
        assert isinstance(stream, av.AudioStream)
        silence = np.zeros((1, 1024), np.float32)
        frame = av.AudioFrame.from_ndarray(silence, format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16_000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return buffer.getvalue()
