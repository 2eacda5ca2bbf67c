"""Limits of the numbers in the files of a checkpoint.

transformers accepts any number. It would build a model of -1 layers, which answers nonsense, and
scale a picture to 40,000 pixels, which takes gigabytes. No known checkpoint comes near the limits.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from idefics_cli.core.errors import ModelError
from idefics_cli.core.text import abbreviated
from idefics_cli.models.families.geometry import Geometry, Json, section

# Pictures may be scaled to at most this multiple of the `image_size` of the vision model. Some
# vision models have position embeddings for any size, and take somewhat larger pictures.
_LARGEST_SCALE = 4
_SECTIONS = ("text_config", "vision_config", "perceiver_config")
_WIDTH = (1, 2**20)
_COUNT = (1, 4096)
_EDGE = (1, 2**14)
_CONFIG: Mapping[str, tuple[int, int]] = {
    "hidden_size": _WIDTH,
    "intermediate_size": _WIDTH,
    "embed_dim": _WIDTH,
    "head_dim": _WIDTH,
    "resampler_head_dim": _WIDTH,
    "num_hidden_layers": _COUNT,
    "num_attention_heads": _COUNT,
    "num_key_value_heads": _COUNT,
    "cross_layer_interval": _COUNT,
    "resampler_depth": _COUNT,
    "resampler_n_heads": _COUNT,
    "resampler_n_latents": _COUNT,
    "scale_factor": _COUNT,
    "num_channels": _COUNT,
    "image_size": _EDGE,
    "patch_size": _EDGE,
    "vocab_size": (1, 2**24),
    "additional_vocab_size": (0, 2**24),
    "max_position_embeddings": (1, 2**31),
}
_IMAGES: Mapping[str, tuple[int, int]] = dict.fromkeys(
    ("longest_edge", "shortest_edge", "height", "width", "image_size"), _EDGE
)


def check_config(config: Json, name: str) -> None:
    """Check the numbers in *config*, the object in config.json of the model *name*.

    Raises:
        ModelError: If a value is not a whole number, or is outside the limits.
    """
    for part in ("", *_SECTIONS):
        settings = section(config, part) if part else config
        _check(settings, _CONFIG, f"config.json of `{name}`", part)


def check_image_settings(images: Json, file: str, name: str) -> None:
    """Check the numbers in the settings of an image processor.

    Args:
        images: The settings.
        file: Name of the file that holds them.
        name: Name of the model in errors.

    Raises:
        ModelError: If a value is not a whole number, or is outside the limits.
    """
    where = f"{file} of `{name}`"
    _check(images, _IMAGES, where, "")
    for part in ("size", "max_image_size"):
        _check(section(images, part), _IMAGES, where, part)


def check_scaling(images: Json, config: Json, geometry: Geometry, name: str) -> None:
    """Check that pictures are not scaled far beyond the input of the vision model.

    Args:
        images: Settings of the image processor.
        config: Config of the model.
        geometry: The geometry of the family.
        name: Name of the model in errors.

    Raises:
        ModelError: If they are scaled so far that one picture could take all memory.
    """
    edge = geometry.vision_number(config, "image_size")
    size, tile = section(images, "size"), section(images, "max_image_size")
    stated = [images.get("image_size"), size.get("height"), size.get("width")]
    stated.append(tile.get("longest_edge"))
    if geometry.is_tile_limited:
        stated += [size.get("longest_edge"), size.get("shortest_edge")]
    largest = max((value for value in stated if isinstance(value, int)), default=0)
    if largest > _LARGEST_SCALE * edge:
        raise ModelError(
            f"the image processor of `{name}` scales pictures to {largest} pixels, and its vision "
            f"model was made for {edge}",
            hint="correct the sizes in preprocessor_config.json",
        )


def _check(settings: Json, limits: Mapping[str, tuple[int, int]], where: str, part: str) -> None:
    for key, (least, most) in limits.items():
        for value in _values(settings.get(key)):
            if type(value) is not int or not least <= value <= most:
                full = f"{part}.{key}" if part else key
                raise ModelError(
                    f"{where} says `{full}` is {abbreviated(_shown(value), 30)}, which no model "
                    "of this family has",
                    hint="copy or download the file again",
                )


def _values(value: object) -> Iterator[object]:
    """Yield the numbers in a setting, which may be a list with one number for each axis."""
    if isinstance(value, list) and value:
        yield from value
    elif value is not None:
        yield value


def _shown(value: object) -> str:
    # Python refuses to write integers of more than 4,300 digits, so large ones are shown by their
    # size.
    if isinstance(value, int) and value.bit_length() > 128:
        return "a number of " + str(value.bit_length()) + " bits"
    return str(value)
