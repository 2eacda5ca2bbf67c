"""Rules that compute the sizes of a model from its configuration files, without torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from idefics_cli.core.text import or_list
from idefics_cli.core.types import PictureDetail

Json: TypeAlias = Mapping[str, object]
"""The object in a JSON file."""


@dataclass(frozen=True, slots=True)
class Edges:
    """The lengths in pixels to which a model can scale the longer side of a picture.

    Attributes:
        usual: The length in the settings of the checkpoint.
        least: The smallest length.
        most: The largest length.
        tile: Edge of a tile, of which every length is a multiple; None if the vision model takes
            pictures of any size.
        patch: Edge of a patch of the vision model.
    """

    usual: int
    least: int
    most: int
    tile: int | None
    patch: int

    def allows(self, edge: int) -> bool:
        """Return whether the model can scale pictures to *edge*."""
        is_inside = self.least <= edge <= self.most
        return edge == self.usual or (is_inside and edge % (self.tile or 1) == 0)

    @property
    def allowed(self) -> str:
        """The lengths, for people: "from 378 to 980", or "364, 728 or 1092"."""
        if self.tile is None:
            return f"from {self.least} to {self.most}"
        return or_list([str(edge) for edge in self.examples])

    @property
    def examples(self) -> list[int]:
        """All lengths if they are multiples of a tile; else the least, a middle and the most."""
        if self.tile is not None:
            return sorted({*range(self.least, self.most + 1, self.tile), self.usual})
        middle = (self.least + self.most) // 2 // self.patch * self.patch
        return sorted({self.least, middle, self.most, self.usual})


def find_detail_fault(
    detail: PictureDetail, edges: Edges | None, title: str
) -> tuple[str, str] | None:
    """Return why a model cannot see pictures in *detail*, and what it can do; None if it can.

    Args:
        detail: The wish.
        edges: The lengths to which the model can scale pictures.
        title: The model in the message.
    """
    edge = detail.longest_edge
    if edge is None or (edges is not None and edges.allows(edge)):
        return None
    if edges is None:
        return f"{title} scales all pictures to one size", "leave the longest edge out"
    return (
        f"{title} cannot scale pictures to a longest edge of {edge} pixels",
        f"the longest edge can be {edges.allowed}",
    )


@dataclass(frozen=True, slots=True)
class Geometry:
    """The rules of one family: how the sizes of a model follow from its configuration files.

    Attributes:
        vision_defaults: Values that the settings of the vision model may leave out, from the config
            classes of transformers 5.23: `image_size`, `patch_size`, `intermediate_size` and
            `num_attention_heads`.
        count_tiles: Takes the settings of the image processor; returns the largest number of
            tiles of one picture.
        count_tile_tokens: Takes the config and the number of patches of one tile; returns the
            number of image tokens of that tile.
        text_section: Key of the text model's settings in the config; None if they are in the
            config itself.
        text_model: Type of the text model, if its settings do not state one.
        splits_by_default: Whether the image processor splits pictures if its settings do not
            say so; None if the family cannot split pictures.
        is_tile_limited: Whether the image processor limits the longest edge of a tile. This is the
            case if the vision model takes tiles of any size.
        projects_patches: Whether every patch passes through a layer that is as wide as the
            feed-forward layers of the text model.
        has_cross_attention: Whether the text model has separate layers that attend to pictures.
        tile_settings: Takes the edge in pixels of the vision model's input; returns the
            settings with which the image processor makes tiles of that size. None if the vision
            model takes tiles of any size.
        scaled_edges: Takes the settings of the image processor, and the edges in pixels of the
            vision model's input and of its patches; returns the lengths to which a picture can be
            scaled, or None if there is only one. None if the family has only one.
    """

    vision_defaults: Mapping[str, int]
    count_tiles: Callable[[Json], int]
    count_tile_tokens: Callable[[Json, int], int]
    text_section: str | None = "text_config"
    text_model: str = "llama"
    splits_by_default: bool | None = True
    is_tile_limited: bool = False
    projects_patches: bool = False
    has_cross_attention: bool = False
    tile_settings: Callable[[int], Json] | None = None
    scaled_edges: Callable[[Json, int, int], Edges | None] | None = None

    def edges(self, config: Json, images: Json) -> Edges | None:
        """Return the lengths to which the model can scale a picture; None if it has only one.

        Args:
            config: The config of the model.
            images: The settings of the image processor.
        """
        if self.scaled_edges is None or images.get("do_resize") is False:
            return None
        edge, patch = (self.vision_number(config, key) for key in ("image_size", "patch_size"))
        return self.scaled_edges(images, edge, max(1, patch))

    def text_number(self, config: Json, key: str, default: int = 0) -> int:
        """Return the setting *key* of the text model.

        Args:
            config: The config of the whole model.
            key: The name of the setting in transformers.
            default: The value if neither the config nor its class has the setting.
        """
        text = config if self.text_section is None else section(config, self.text_section)
        stated = None if self.text_section is None else text.get("model_type")
        known = {**TEXT_DEFAULT, **TEXT_DEFAULTS.get(str(stated or self.text_model), {})}
        return whole_number(text.get(key), known.get(key, default))

    def vision_number(self, config: Json, key: str) -> int:
        """Return the setting *key*, one of `vision_defaults`, of the vision model."""
        vision = section(config, "vision_config")
        return whole_number(vision.get(key), self.vision_defaults[key])

    def patches(self, config: Json, images: Json) -> int:
        """Return the largest number of patches of one tile.

        Args:
            config: The config of the model.
            images: The settings of the image processor.
        """
        edge = self.vision_number(config, "image_size")
        limit = longest_edge(images, "size")
        if self.is_tile_limited and limit:
            edge = min(edge, limit)
        patch = max(1, self.vision_number(config, "patch_size"))
        return int(max(1, edge // patch) ** 2)


def scale_to_edge(edge: int) -> Json:
    """Return settings that let an image processor scale pictures to squares of *edge* pixels."""
    return {"size": {"height": edge, "width": edge}}


def cut_to_edge(edge: int) -> Json:
    """Return settings that let an image processor cut pictures into squares of *edge* pixels."""
    return {"max_image_size": {"longest_edge": edge}}


# Tokenizers have tokens for at most 6 rows and 6 columns of tiles, and transformers scales no side
# beyond 4,096 pixels (5.24, image_processing_pil_idefics3.py).
_MOST_TILES = 6
_MOST_PIXELS = 4096


def between_edges(images: Json, edge: int, patch: int) -> Edges | None:
    """Return the lengths of the longer side, if the image processor limits both sides of a picture.

    The least length is the `shortest_edge` of the processor. The largest is the edge of the vision
    model's input, which has no positions for more patches. The usual length is always allowed.
    """
    size = section(images, "size")
    if size and not {"shortest_edge", "longest_edge"} <= size.keys():
        return None
    usual, least = longest_edge(images, "size") or 980, whole_number(size.get("shortest_edge"), 378)
    return Edges(usual, min(least, usual), max(edge, usual), None, patch)


def multiples_of_tile(images: Json, edge: int, patch: int) -> Edges | None:
    """Return the lengths of an image processor that cuts pictures into a grid of tiles."""
    size = section(images, "size")
    if size and not longest_edge(images, "size"):
        return None
    tile = max(1, longest_edge(images, "max_image_size") or edge)
    usual = longest_edge(images, "size") or 4 * 364
    most = min(_MOST_TILES * tile, _MOST_PIXELS // tile * tile)
    return Edges(usual, min(tile, usual), max(most, usual), tile, patch)


def one_tile(images: Json) -> int:
    """Return 1, the number of tiles in a family that cannot split pictures."""
    return 1


def quarters_and_whole(images: Json) -> int:
    """Return 5, the number of tiles of a split picture: four quarters and the whole picture."""
    return 5


def grid_and_whole(images: Json) -> int:
    """Return the largest number of tiles of a picture that is cut into a grid.

    A tile of the grid is as large as the input of the vision model. The whole picture, scaled
    down, is one tile more.
    """
    whole = longest_edge(images, "size") or 4 * 364
    tile = longest_edge(images, "max_image_size") or 364
    return math.ceil(whole / tile) ** 2 + 1


def one_token(config: Json, patches: int) -> int:
    """Return 1, the number of image tokens of a tile in a family with cross attention."""
    return 1


def perceiver_latents(config: Json, patches: int) -> int:
    """Return the number of latents to which a perceiver reduces the patches of a tile."""
    return whole_number(section(config, "perceiver_config").get("resampler_n_latents"), 64)


def shuffled_patches(config: Json, patches: int) -> int:
    """Return the number of image tokens after pixel shuffle, which merges squares of patches."""
    return patches // max(1, whole_number(config.get("scale_factor"), 2)) ** 2


def section(config: Json, key: str) -> Json:
    """Return the object under *key*, empty if there is none."""
    value = config.get(key)
    return value if isinstance(value, dict) else {}


def whole_number(value: object, default: int) -> int:
    """Return *value*, or the largest whole number in it if it is a list; else *default*."""
    if isinstance(value, list):
        value = max((v for v in value if isinstance(v, int)), default=None)
    return value if isinstance(value, int) and not isinstance(value, bool) else default


def longest_edge(images: Json, key: str) -> int:
    """Return the longest edge in pixels under *key* of an image processor's settings, or 0."""
    return whole_number(section(images, key).get("longest_edge"), 0)


# The settings of a text model may leave out these values. They are from the config classes of
# transformers 5.23: first for every type, then what differs for some types.
TEXT_DEFAULT = {
    "hidden_size": 4096,
    "intermediate_size": 11_008,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "max_position_embeddings": 32_768,
}
TEXT_DEFAULTS: Mapping[str, Mapping[str, int]] = {
    "mistral": {"intermediate_size": 14_336, "num_key_value_heads": 8},
    "idefics": {"max_position_embeddings": 2048, "cross_layer_interval": 1},
    "llama": {"max_position_embeddings": 2048},
}
