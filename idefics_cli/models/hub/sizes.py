"""Bytes of a number, and the number of weights that quantization shrinks."""

from __future__ import annotations

from idefics_cli.core.types import DtypeName
from idefics_cli.models.families.spec import Shape

NUMBER_BYTES: dict[DtypeName, int] = {"bfloat16": 2, "float16": 2, "float32": 4}
"""Size in bytes of one number of each dtype."""


def quantized_weights(shape: Shape) -> int:
    """Return the number of weights that quantization shrinks.

    They are the weights of the linear layers of the text model.
    """
    width = shape.heads * shape.head_dim
    key_value = shape.kv_heads * shape.head_dim
    feed_forward = 3 * shape.hidden * shape.intermediate
    layer = 2 * shape.hidden * width + 2 * shape.hidden * key_value + feed_forward
    cross = 2 * shape.hidden * width + 2 * shape.cross_inputs * width + feed_forward
    return shape.layers * layer + shape.cross_layers * cross
