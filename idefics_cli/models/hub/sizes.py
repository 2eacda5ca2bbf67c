"""Bytes of weights by dtype and quantization."""

from __future__ import annotations

from idefics_cli.core.types import DtypeName
from idefics_cli.models.families.spec import Shape

BYTES: dict[DtypeName, int] = {"bfloat16": 2, "float16": 2, "float32": 4}


def quantized_weights(shape: Shape) -> int:
    """Return how many weights quantization shrinks: the linear layers of the text model."""
    width = shape.heads * shape.head_dim
    key_value = shape.kv_heads * shape.head_dim
    feed_forward = 3 * shape.hidden * shape.intermediate
    layer = 2 * shape.hidden * width + 2 * shape.hidden * key_value + feed_forward
    cross = 2 * shape.hidden * width + 2 * shape.cross_inputs * width + feed_forward
    return shape.layers * layer + shape.cross_layers * cross
