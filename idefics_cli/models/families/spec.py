"""One torch-free row for each model family."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

FamilyName = Literal["idefics", "idefics2", "idefics3", "smolvlm"]


FAMILIES: Mapping[str, str] = MappingProxyType(
    {
        "idefics": "idefics_cli.models.families.idefics1:Idefics1",
        "idefics2": "idefics_cli.models.families.idefics2:Idefics2",
        "idefics3": "idefics_cli.models.families.idefics3:Idefics3",
        "smolvlm": "idefics_cli.models.families.idefics3:Idefics3",
    }
)
"""`model_type` of a config -> "module:Class" of what runs it."""


def sees_last_only(family: str) -> bool:
    """Whether a text in the prompt attends to nothing but the last picture before it."""
    return family == "idefics"


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers of an architecture that its memory follows from; see `memory.py`.

    Attributes:
        hidden: Width of the text model.
        intermediate: Width of its feed-forward layers.
        layers: Its number of layers.
        heads: Query heads of a layer.
        kv_heads: Key and value heads of a layer.
        head_dim: Width of a head.
        patches: Of one image tile, at most.
        vision_heads: Heads of a layer of the vision model.
        widest: Width of the widest layer that sees single patches.
        tiles: Tiles of a large picture when it is split, at most; 1 without splitting.
        tile_tokens: Prompt tokens of one tile.
        cross_layers: Layers of cross attention to the pictures (IDEFICS-1).
        cross_inputs: Width of what they attend to.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    patches: int
    vision_heads: int
    widest: int
    tiles: int
    tile_tokens: int
    cross_layers: int = 0
    cross_inputs: int = 0


# Left in the model's dtype, by full name: transformers matches from the start of the name, so
# "vision_model" would skip nothing, and a list of ours replaces its own, which holds lm_head.
# The vision tower's widths (1152, 4304) crash the packed CPU kernels, and quantizing the
# modules between vision and text costs quality (the AWQ checkpoints of the authors spare them).
SKIPPED: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "idefics": ("model.vision_model", "model.perceiver_resampler", "lm_head"),
        "idefics2": ("model.vision_model", "model.connector", "lm_head"),
        "idefics3": ("model.vision_model", "model.connector", "lm_head"),
        "smolvlm": ("model.vision_model", "model.connector", "lm_head"),
    }
)


@dataclass(frozen=True, slots=True)
class _Paths:
    """Module below `transformers.models` and name of each class."""

    config: str
    model: str
    image_processor: str
    processor: str


_PATHS: Mapping[str, _Paths] = MappingProxyType(
    {
        "idefics": _Paths(
            "idefics.configuration_idefics:IdeficsConfig",
            "idefics.modeling_idefics:IdeficsForVisionText2Text",
            "idefics.image_processing_pil_idefics:IdeficsImageProcessorPil",
            "idefics.processing_idefics:IdeficsProcessor",
        ),
        "idefics2": _Paths(
            "idefics2.configuration_idefics2:Idefics2Config",
            "idefics2.modeling_idefics2:Idefics2ForConditionalGeneration",
            "idefics2.image_processing_pil_idefics2:Idefics2ImageProcessorPil",
            "idefics2.processing_idefics2:Idefics2Processor",
        ),
        "idefics3": _Paths(
            "idefics3.configuration_idefics3:Idefics3Config",
            "idefics3.modeling_idefics3:Idefics3ForConditionalGeneration",
            "idefics3.image_processing_pil_idefics3:Idefics3ImageProcessorPil",
            "idefics3.processing_idefics3:Idefics3Processor",
        ),
        # Idefics3's processor gives the same ids and pixels as SmolVLM's, without the video half.
        "smolvlm": _Paths(
            "smolvlm.configuration_smolvlm:SmolVLMConfig",
            "smolvlm.modeling_smolvlm:SmolVLMForConditionalGeneration",
            "smolvlm.image_processing_pil_smolvlm:SmolVLMImageProcessorPil",
            "idefics3.processing_idefics3:Idefics3Processor",
        ),
    }
)
