"""The choice of the requests that start together: they have one shape and about the same cost."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median_low

from idefics_cli.engine.protocol import Prepared

# These figures only serve to compare requests, so they need not be exact for every family: a patch
# has 14x14 pixels, a tile becomes 64 tokens of the prompt, and a token has four letters.
_PATCH_PIXELS = 14 * 14
_TILE_TOKENS = 64
_TOKEN_LETTERS = 4
# A reply counts for at most this many tokens. Captions have some dozens, and nearly all end before
# their limit, so a larger limit says little.
_USUAL_REPLY_TOKENS = 64
# A group may cost at most this many times as much as a full group would cost if all its requests
# had the median cost.
_SLACK = 2


def cost(prepared: Prepared) -> int:
    """Return an estimate of the cost of a request: patches, prompt tokens and new tokens.

    A patch counts as much as a token, although it takes less time. This hardly changes the order of
    the requests of one run, because a request with many patches also has many image tokens.
    """
    patches = sum(picture.pixels for picture in prepared.pictures) // _PATCH_PIXELS
    tiles = sum(len(picture.tile_sizes) for picture in prepared.pictures)
    letters = sum(len(message.text) for message in prepared.request.messages)
    reply = min(prepared.request.sampling.max_new_tokens, _USUAL_REPLY_TOKENS)
    return patches + tiles * _TILE_TOKENS + letters // _TOKEN_LETTERS + reply


def choose_group(waiting: Sequence[Prepared], most: int) -> list[int]:
    """Return the indices of up to *most* requests of *waiting* to start together.

    The group always holds the first request, so that no request waits for ever. The next choice is
    requests whose pictures have the same shapes, because one forward encodes them all, and then
    requests of similar cost. A request with another number of image tokens is left out, because
    shorter prompts are padded to the longest.

    The whole group costs at most twice as much as *most* requests of median cost. So a huge
    picture among many small ones starts alone. In a full group, it would delay the small ones, and
    its memory would be needed at the same time as theirs.

    Returns:
        Ascending indices.
    """
    costs = [cost(prepared) for prepared in waiting]
    first = waiting[0]
    near = sorted(
        (prepared.shape_key != first.shape_key, abs(costs[index] - costs[0]), index)
        for index, prepared in enumerate(waiting)
        if index and _tile_counts(prepared) == _tile_counts(first)
    )
    chosen, total = [0], costs[0]
    for _, _, index in near[: most - 1]:
        total += costs[index]
        if total > _SLACK * most * median_low(costs):
            break
        chosen.append(index)
    return sorted(chosen)


def _tile_counts(prepared: Prepared) -> list[int]:
    # A tile of any size takes the same number of tokens.
    return [len(picture.tile_sizes) for picture in prepared.pictures]
