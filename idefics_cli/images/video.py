"""Videos: what a file holds, and the frames that a model asks for. PyAV decodes them.

A frame is named by its index in the order in which frames are shown, as in `read_video_pyav` of
transformers 5.24 (video_utils.py). Only the frames that are asked for become RGB, one at a time, so
the length of a video does not matter for the memory.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from fractions import Fraction
from typing import TYPE_CHECKING, BinaryIO

import numpy as np
from numpy.typing import NDArray

from idefics_cli.core.closing import Closing
from idefics_cli.core.errors import ImageError
from idefics_cli.core.sources import describe_source
from idefics_cli.core.types import ImageLimits
from idefics_cli.images.facts import RareKind
from idefics_cli.images.failures import as_image_error
from idefics_cli.images.formats import FileFormat
from idefics_cli.images.memory import MemoryBudget

if TYPE_CHECKING:
    from av import Packet, VideoFrame
    from av.container import InputContainer
    from av.video.stream import VideoStream

INSTALL_HINT = "pip install 'idefics-cli[video]'"
# Without this list, FFmpeg also opens playlists, whose entries can name any file or address.
_DEMUXERS = "mov,matroska,webm,avi,mpegts,mpeg,flv,asf"
# Seeks are used only in these formats, in which a seek ends at the requested key frame.
_SEEKABLE = ("mov", "matroska")
# If the last wanted frame comes before this one, all frames are decoded. This takes less time than
# reading all packets and seeking.
_FEW_FRAMES = 2000
_THREADS = 4
# Bytes per pixel that a decoder needs with its threads and reference frames, plus the frame in RGB.
_BYTES_PER_PIXEL = 40
# A header may count a few frames that no player shows, such as those that an edit list cuts off.
_LOST_SHARE = 0.1
_DECODE_SECONDS = 300.0
_SHRINK_HINT = "shorten or shrink it: ffmpeg -i VIDEO -t 60 -vf scale=640:-2 b.mp4"
# A video may last at most ten years. A damaged header can state any duration, and the prompt names
# the time of each frame.
_MOST_SECONDS = 10 * 366 * 24 * 3600
_NO_RATE = Fraction(24)


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What the header of a video says; if it has no number of frames, they are counted.

    Attributes:
        frames: Number of frames.
        frames_per_second: The average.
        duration_seconds: *frames* divided by the average rate.
    """

    frames: int
    frames_per_second: float
    duration_seconds: float


@dataclass(frozen=True, slots=True)
class Frame:
    """One frame of a video.

    Attributes:
        index: Its index in the order of showing.
        pixels: RGB and upright, (H, W, 3).
    """

    index: int
    pixels: NDArray[np.uint8]


class Video(Closing):
    """An open video file. One thread uses it, and closes it.

    Args:
        stream: The file, seekable; closed with the video.
        source: Name of the video in errors.
        content: What `identify` says about it.
        limits: `max_pixels` is the limit for a frame. With `keeps_truncated`, damaged frames are
            left out.
        memory: The budget for decoding.
        decode_seconds: Time limit of all reading.

    Attributes:
        name: Name of the video in errors.
        facts: What its header says.
        decoded: Number of frames that were decoded, including those on the way to others.

    Raises:
        ImageError: If the file cannot be read, or has no video.
    """

    def __init__(
        self,
        stream: BinaryIO,
        source: str,
        content: FileFormat,
        *,
        limits: ImageLimits,
        memory: MemoryBudget,
        decode_seconds: float = _DECODE_SECONDS,
    ) -> None:
        self._file = stream
        self.name = describe_source(source)
        self._source, self._content = source, content
        self._limits, self._memory = limits, memory
        self._decode_seconds = decode_seconds
        self._until = time.monotonic() + decode_seconds
        self.decoded = 0
        self._table: _FrameTable | None = None
        self._container = self._open()
        with _as_image_error(content, source):
            self._stream = self._find_stream()
            self.facts = self._read_facts()

    def read_frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Yield the frames of *indices*, which are sorted and below `facts.frames`.

        Frames that a header counts, but that the file does not have, are left out at the end.

        Raises:
            ImageError: If the file is damaged or cut off, if a frame exceeds a limit, or if the
                time is over.
        """
        size = self._stream.codec_context
        with (
            self._memory.reserve(size.width * size.height * _BYTES_PER_PIXEL),
            _as_image_error(self._content, self._source),
        ):
            done = 0
            if indices and indices[-1] >= _FEW_FRAMES and self._can_seek():
                for frame in self._seek_frames(indices):
                    yield frame
                    done += 1
            if done < len(indices):
                for frame in self._decode_frames(indices[done:]):
                    yield frame
                    done += 1
            if not done:
                raise OSError("it has no frame that can be decoded")

    def close(self) -> None:
        """Close the file; idempotent."""
        self._container.close()
        self._file.close()

    def _open(self) -> InputContainer:
        try:
            import av
        except ImportError as error:
            raise ImageError(
                f"cannot read `{self.name}`: it is a video, which needs PyAV",
                kind="unsupported",
                hint=INSTALL_HINT,
            ) from error
        with _as_image_error(self._content, self._source):
            return av.open(
                self._file,
                mode="r",
                metadata_errors="replace",
                container_options={"format_whitelist": _DEMUXERS},
                options={"max_pixels": str(self._limits.max_pixels)},
            )

    def _find_stream(self) -> VideoStream:
        from av.stream import Disposition

        streams = self._container.streams
        # The cover of a music file is a stream, too.
        found = [s for s in streams.video if not s.disposition & Disposition.attached_pic]
        if not found:
            what = "only sound" if streams.audio else "no video"
            raise ImageError(
                f"cannot read `{self.name}`: it has {what}",
                kind="not_an_image",
                hint="give a file with a video track",
            )
        stream = found[0]
        # PyAV gives None for a stream whose codec FFmpeg does not know. typeshed does not say so.
        context: object = stream.codec_context
        if context is None:
            raise RareKind("with an unknown codec", _SHRINK_HINT)
        self._check_size(stream.codec_context.width, stream.codec_context.height)
        stream.thread_type = "AUTO"
        stream.codec_context.thread_count = _THREADS
        return stream

    def _read_facts(self) -> VideoFacts:
        stream = self._stream
        count = stream.frames or len(self._frame_table().times)
        if count < 1:
            raise ImageError(
                f"cannot read `{self.name}`: a video without frames",
                kind="truncated",
                hint="copy or download it again",
            )
        rate = stream.average_rate or stream.guessed_rate or _NO_RATE
        if (duration := count / rate) > _MOST_SECONDS:
            raise RareKind("that lasts longer than ten years", "copy or download it again")
        return VideoFacts(count, float(rate), float(duration))

    def _decode_frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Yield the frames of *indices* from decoding all frames before them, too."""
        wanted, last = set(indices), indices[-1]
        self._container.seek(0)
        count = 0
        for frame in self._decoded():
            if count in wanted:
                yield Frame(count, self._pixels(frame))
            if count == last:
                return
            count += 1
        if count < self.facts.frames * (1 - _LOST_SHARE) and not self._limits.keeps_truncated:
            raise OSError(f"it has {count} of {self.facts.frames} frames")

    def _seek_frames(self, indices: Sequence[int]) -> Iterator[Frame]:
        """Yield the frames of *indices* up to the first that a seek does not find."""
        table = self._frame_table()
        after: int | None = None  # time of the last decoded frame
        frames: Iterator[VideoFrame] = iter(())
        for index in indices:
            target = table.times[index]
            start = table.key_before(target)
            if after is None or start > after:
                self._container.seek(start, stream=self._stream, backward=True)
                frames = self._decoded()
            for frame in frames:
                if frame.pts is None or frame.pts > target:
                    return
                after = frame.pts
                if after == target:
                    yield Frame(index, self._pixels(frame))
                    break
            else:
                return

    def _can_seek(self) -> bool:
        is_known = self._container.format.name.startswith(_SEEKABLE)
        table = self._frame_table() if is_known else _FrameTable()
        return len(table.times) == self.facts.frames and table.is_complete

    def _frame_table(self) -> _FrameTable:
        """Return the times of all frames, from one reading of the file without decoding."""
        if self._table is None:
            self._table = _FrameTable()
            self._container.seek(0)
            for packet in self._packets():
                self._table.add(packet)
            self._table.sort()
        return self._table

    def _decoded(self) -> Iterator[VideoFrame]:
        import av

        for packet in self._packets(with_end=True):
            try:
                frames = packet.decode()
            except av.InvalidDataError:
                if not self._limits.keeps_truncated:
                    raise
                continue
            for frame in frames:
                self._check_time()
                self.decoded += 1
                yield frame

    def _packets(self, *, with_end: bool = False) -> Iterator[Packet[VideoStream]]:
        """Yield the packets from here; *with_end* adds the empty one that flushes the decoder."""
        for packet in self._container.demux(self._stream):
            self._check_time()
            if packet.size or with_end:
                yield packet

    def _pixels(self, frame: VideoFrame) -> NDArray[np.uint8]:
        self._check_size(frame.width, frame.height)
        pixels = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
        # A telephone that is held upright stores its frames turned by 90 degrees, and states the
        # rotation.
        turns = round(frame.rotation / 90) % 4
        return np.ascontiguousarray(np.rot90(pixels, turns)) if turns else pixels

    def _check_size(self, width: int, height: int) -> None:
        if width * height > self._limits.max_pixels:
            raise ImageError(
                f"`{self.name}` is too large: {width}x{height} pixels,"
                f" the limit is {self._limits.max_pixels}",
                kind="too_large",
                hint="raise --max-pixels, or shrink it first",
            )

    def _check_time(self) -> None:
        if time.monotonic() > self._until:
            raise ImageError(
                f"cannot read `{self.name}`: a video that takes longer than"
                f" {self._decode_seconds:g} s to decode",
                kind="too_large",
                hint=_SHRINK_HINT,
            )


@dataclass(slots=True)
class _FrameTable:
    """The times of the frames of a video, in units of its stream.

    Attributes:
        times: Of all frames, in the order of showing.
        keys: Of the key frames, from which decoding can start.
        is_complete: Whether every frame has a time of its own, and the first is a key frame.
    """

    times: list[int] = field(default_factory=list)
    keys: list[int] = field(default_factory=list)
    is_complete: bool = True

    def add(self, packet: Packet[VideoStream]) -> None:
        """Add the frame of *packet*."""
        if packet.is_discard:
            return
        if packet.pts is None:
            self.is_complete = False
        self.times.append(packet.pts or 0)
        if packet.is_keyframe:
            self.keys.append(packet.pts or 0)

    def sort(self) -> None:
        """Bring the frames from the order of decoding into that of showing."""
        self.times.sort()
        self.keys.sort()
        is_distinct = len(set(self.times)) == len(self.times)
        self.is_complete &= is_distinct and self.keys[:1] == self.times[:1] != []

    def key_before(self, time: int) -> int:
        """Return the time of the last key frame that is not after *time*."""
        return self.keys[bisect_right(self.keys, time) - 1]


@contextmanager
def _as_image_error(content: FileFormat, source: str) -> Iterator[None]:
    """Convert any error of PyAV to an `ImageError`, with FFmpeg's words for it."""
    import av

    with as_image_error(content, source):
        try:
            yield
        except av.FFmpegError as error:
            if isinstance(error, MemoryError):
                raise
            raise OSError((error.strerror or "").lower()) from error
