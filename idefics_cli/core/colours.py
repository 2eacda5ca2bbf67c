"""Colours in sRGB."""

from __future__ import annotations

Colour = tuple[int, int, int]
"""A colour in sRGB: red, green, blue, each 0 to 255."""

WHITE: Colour = (255, 255, 255)


def hex_of(colour: Colour) -> str:
    """Return *colour* as `#rrggbb`."""
    return f"#{bytes(colour).hex()}"
