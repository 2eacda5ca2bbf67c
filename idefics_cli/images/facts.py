"""Facts of a file that Pillow ignores: how its pixels are to be read, or why they cannot be."""

from __future__ import annotations

from dataclasses import dataclass

Box = tuple[int, int, int, int]


class RareKind(Exception):
    """Raised for a kind of picture that Pillow would decode to wrong pixels.

    Args:
        reason: What is rare about it.
        hint: How the user can convert it.
    """

    def __init__(self, reason: str, hint: str = "convert it to PNG or JPEG first") -> None:
        super().__init__(reason)
        self.hint = hint


class CameraRaw(Exception):
    """Raised for a camera raw file, whose first picture is only a thumbnail."""


@dataclass(frozen=True, slots=True)
class PixelFacts:
    """How the pixels that Pillow decodes are to be read.

    Attributes:
        has_alpha: Whether the alpha channel is transparency. Otherwise it is ignored.
        frame: The part of the canvas that the first frame covers; None for all. The rest is clear.
        is_white_zero: Whether 0 is white in grey pictures of 16 bits or floats.
        grey_bits: Bits of a sample of mode `I;16`.
        is_unsigned: Whether samples of mode `I` are unsigned.
        transfer: `colour.PQ` or `colour.HLG` for high dynamic range; 0 for all else.
        primaries: Colour primaries of high dynamic range (ITU-T H.273).
    """

    has_alpha: bool = True
    frame: Box | None = None
    is_white_zero: bool = False
    grey_bits: int = 16
    is_unsigned: bool = False
    transfer: int = 0
    primaries: int = 0
