"""Which requests to answer together: by what they cost, and by what they share."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low

from idefics_cli.engine.protocol import Prepared

# Only how requests compare matters, so that these need not be true of each family: a patch has
# 14x14 pixels, a tile becomes 64 tokens of the prompt, and a token has four letters.
_PATCH_PIXELS = 14 * 14
_TILE_TOKENS = 64
_TOKEN_LETTERS = 4
# Captions are some dozens of tokens long, and nearly all end before their limit.
_USUAL_REPLY = 64
# Those that begin together may cost so many times what as many ordinary ones do.
_SLACK = 2


def cost(prepared: Prepared) -> int:
    """Return an estimate of what a request costs: patches, tokens of the prompt, and new tokens.

    A patch counts as much as a token, which is more than it takes; but between the requests of
    a run little else differs, and what is large by one is large by the other.
    """
    patches = sum(picture.pixels for picture in prepared.pictures) // _PATCH_PIXELS
    tiles = sum(len(picture.tile_sizes) for picture in prepared.pictures)
    letters = sum(len(message.text) for message in prepared.request.messages)
    reply = min(prepared.request.sampling.max_new_tokens, _USUAL_REPLY)
    return patches + tiles * _TILE_TOKENS + letters // _TOKEN_LETTERS + reply


def together(waiting: Sequence[Prepared], most: int) -> list[int]:
    """Return the indices of up to *most* of *waiting* that are to begin together.

    The first is always among them, so that no request waits for ever; then those whose pictures
    have its shapes, which are encoded in one go; then those whose cost is nearest to its own.
    What takes another number of image tokens is left: prompts would be padded to each other.
    All together cost at most twice what *most* requests of the middle cost in *waiting* do: a
    huge picture among many small ones goes alone, and not with as many as there is room for,
    whose answers it would hold back, and whose memory it would need.

    Returns:
        Ascending indices.
    """
    costs = [cost(prepared) for prepared in waiting]
    first = waiting[0]
    near = sorted(
        (prepared.shape_key != first.shape_key, abs(costs[index] - costs[0]), index)
        for index, prepared in enumerate(waiting)
        if index and _tiles(prepared) == _tiles(first)
    )
    chosen, total = [0], costs[0]
    for _, _, index in near[: most - 1]:
        total += costs[index]
        if total > _SLACK * most * median_low(costs):
            break
        chosen.append(index)
    return sorted(chosen)


def _tiles(prepared: Prepared) -> list[int]:
    # Every tile takes as many tokens, whatever its size.
    return [len(picture.tile_sizes) for picture in prepared.pictures]
