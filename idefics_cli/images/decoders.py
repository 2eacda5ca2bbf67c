"""Decoders for samples that Pillow reads pixel by pixel, which takes seconds a megapixel."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile

_CHUNK_PIXELS = 1 << 18


class _SampleDecoder(ImageFile.PyDecoder):
    """Reads whole rows of pixels of equal size from the file."""

    _pulls_fd = True

    def read_pixels(self, pixel_bytes: int, bands: int, dtype: str) -> bytes:
        """Return all pixels, converted by `convert`."""
        assert self.fd is not None
        count = self.state.xsize * self.state.ysize
        out = np.empty((count, bands), dtype)
        for start in range(0, count, _CHUNK_PIXELS):
            length = min(_CHUNK_PIXELS, count - start)
            data = self.fd.read(length * pixel_bytes)
            if len(data) < length * pixel_bytes:
                raise ValueError("not enough image data")
            out[start : start + length] = self.convert(data)
        return out.tobytes()

    def convert(self, data: bytes) -> NDArray[Any]:
        """Return the samples of each pixel in *data*, of shape (pixels, bands)."""
        raise NotImplementedError


class _PnmDecoder(_SampleDecoder):
    """Binary PNM files whose largest sample is not 255; the argument is that number."""

    def decode(self, buffer: Image.DecoderInput) -> tuple[int, int]:
        largest = self.args[-1]
        self.type = np.dtype(np.uint8 if largest < 256 else ">u2")
        self.bands = Image.getmodebands(self.mode)
        most = 65535 if self.mode == "I" else 255
        samples = np.arange(256**self.type.itemsize)
        self.values = np.minimum(most, np.rint(samples / largest * most)).astype(np.uint32)
        wide = self.mode == "I"
        data = self.read_pixels(
            self.type.itemsize * self.bands, self.bands, "<u4" if wide else "u1"
        )
        self.set_as_raw(data, "I;32" if wide else self.mode)
        return -1, 0

    def convert(self, data: bytes) -> NDArray[Any]:
        samples: NDArray[Any] = self.values[np.frombuffer(data, self.type)]
        return samples.reshape(-1, self.bands)


class _MaskDecoder(_SampleDecoder):
    """Pixels whose samples are bits of an integer; the arguments are its bits, and their masks."""

    def decode(self, buffer: Image.DecoderInput) -> tuple[int, int]:
        bits, self.masks = self.args
        self.pixel_bytes = bits // 8
        if not 1 <= self.pixel_bytes <= 4:
            raise ValueError(f"unsupported number of bits a pixel: {bits}")
        self.set_as_raw(self.read_pixels(self.pixel_bytes, len(self.masks), "u1"))
        return -1, 0

    def convert(self, data: bytes) -> NDArray[Any]:
        packed = np.frombuffer(data, np.uint8).reshape(-1, self.pixel_bytes)
        wide = np.zeros((len(packed), 4), np.uint8)
        wide[:, : self.pixel_bytes] = packed
        pixels = wide.view("<u4")
        samples = np.zeros((len(packed), len(self.masks)), np.uint8)
        for band, mask in enumerate(self.masks):
            low = mask & -mask
            if mask:
                levels = (pixels[:, 0] & np.uint32(mask)) // np.uint32(low)
                samples[:, band] = np.rint(levels * (255 / (mask // low)))
        return samples


def use_fast_decoders(image: ImageFile.ImageFile) -> None:
    """Let the decoders of this module decode an unloaded *image*, if they can."""
    for theirs, ours, decoder in _DECODERS:
        if any(tile.codec_name == theirs for tile in image.tile):
            Image.register_decoder(ours, decoder)
            image.tile = [tile._replace(codec_name=ours) for tile in image.tile]


_DECODERS: tuple[tuple[str, str, type[ImageFile.PyDecoder]], ...] = (
    ("ppm", "idefics_pnm", _PnmDecoder),
    ("dds_rgb", "idefics_masks", _MaskDecoder),
)
