"""Facts about a file that Pillow ignores: how to read its pixels, or why they cannot be read."""

from __future__ import annotations

from dataclasses import dataclass

Box = tuple[int, int, int, int]


class RareKind(Exception):
    """Raised for a kind of picture that Pillow would decode to wrong pixels.

    Args:
        reason: What is rare about the picture, as a part of a sentence.
        hint: How the user can convert it.
    """

    def __init__(self, reason: str, hint: str = "convert it to PNG or JPEG first") -> None:
        super().__init__(reason)
        self.hint = hint


class CameraRaw(Exception):
    """Raised for a camera raw file, whose first picture is only a thumbnail."""


@dataclass(frozen=True, slots=True)
class PixelFacts:
    """How to read the pixels that Pillow decodes.

    Attributes:
        has_alpha: Whether the alpha channel is transparency. If not, it is ignored.
        may_be_blended: Whether the colours may be blended with white already, so that the alpha
            channel says how much of it is white.
        may_be_unset: Whether an alpha of 0 in all pixels means that there is none.
        frame: The part of the canvas that the first frame covers; None if it covers all. The rest
            is transparent.
        is_white_zero: Whether 0 is white in grey pictures of 16 bits or floats.
        grey_bits: Bits of a sample of mode `I;16`.
        is_unsigned: Whether samples of mode `I` are unsigned.
        transfer: `colour.PQ` or `colour.HLG` for high dynamic range; 0 for standard range.
        primaries: Colour primaries of high dynamic range (ITU-T H.273).
    """

    has_alpha: bool = True
    may_be_blended: bool = False
    may_be_unset: bool = False
    frame: Box | None = None
    is_white_zero: bool = False
    grey_bits: int = 16
    is_unsigned: bool = False
    transfer: int = 0
    primaries: int = 0
