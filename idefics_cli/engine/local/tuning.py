"""Sizes that change the speed and the memory use of an inference, but not its replies."""

from __future__ import annotations

from dataclasses import dataclass

from idefics_cli.engine.local.decode.slots import BLOCK_TOKENS
from idefics_cli.engine.local.vision.features import KEPT_BYTES
from idefics_cli.engine.local.vision.tiles import ForwardCost


@dataclass(frozen=True, slots=True)
class Tuning:
    """The sizes of one `Inference`.

    Attributes:
        chunk_tokens: Number of tokens of each row in one forward of the prefill; None chooses by
            device and model.
        block_tokens: The buffers of slots grow in steps of this many tokens.
        vision_pixels: Maximum number of pixels of one forward of the vision encoder; None takes
            that of the plan, or chooses by device.
        vision_cost: The cost of one forward of the vision encoder; None estimates it by device and
            dtype.
        feature_bytes: Maximum number of bytes of image features that are kept between requests.
        tile_bytes: Maximum number of bytes of the pixels of prepared pictures whose request has not
            started; None takes a part of the free RAM.
        kv_bytes: Maximum number of bytes of KV states; None takes most of the free memory.
        interactive_slots: Maximum number of interactive requests at a time.
    """

    chunk_tokens: int | None = None
    block_tokens: int = BLOCK_TOKENS
    vision_pixels: int | None = None
    vision_cost: ForwardCost | None = None
    feature_bytes: int = KEPT_BYTES
    tile_bytes: int | None = None
    kv_bytes: int | None = None
    interactive_slots: int = 16
