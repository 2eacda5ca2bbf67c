"""The number of prompt tokens that a picture costs, for each size to which it can be scaled."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from idefics_cli.core.types import LoadSpec
from idefics_cli.models.hub.facts import ModelFacts


@dataclass(frozen=True, slots=True)
class PictureCost:
    """The tokens of a picture of 4:3, whose longer side is scaled to *longest_edge* pixels.

    Attributes:
        longest_edge: None if the model scales all pictures to one size.
        tiles: Number of tiles if it is cut; None if the model does not cut pictures.
        whole_tokens: About this many tokens if it is not cut.
        split_tokens: About this many tokens if it is cut; None if the model does not cut pictures.
        is_planned: Whether the plan scales pictures to this length.
    """

    longest_edge: int | None
    tiles: int | None
    whole_tokens: int
    split_tokens: int | None
    is_planned: bool


def picture_costs(facts: ModelFacts, spec: LoadSpec) -> list[PictureCost]:
    """Return the cost of a picture for each length of the longer side, or for some lengths."""
    return list(_costs(facts, spec))


def _costs(facts: ModelFacts, spec: LoadSpec) -> Iterator[PictureCost]:
    shape, edges = facts.shape, facts.shape.edges
    each = shape.tile_tokens
    if edges is None:
        yield PictureCost(None, None, each, None, is_planned=True)
        return
    planned = spec.longest_edge or edges.usual
    for edge in sorted({*edges.examples, planned}):
        tiles = shape.picture_tiles(edge, splitting=True) if facts.splitting is not None else None
        split = None if tiles is None else tiles * each
        yield PictureCost(edge, tiles, each, split, is_planned=edge == planned)
