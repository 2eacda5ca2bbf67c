"""A made-up model family, as a contributor adds one: this module, and its row."""

from __future__ import annotations

from transformers import Idefics2Config, Idefics2ForConditionalGeneration

from idefics_cli.models.families.geometry import Geometry, perceiver_latents, quarters_and_whole
from idefics_cli.models.families.idefics2 import Idefics2
from idefics_cli.models.families.spec import FamilySpec, LibraryClasses

IDEFICS2 = "transformers.models.idefics2"


class KiteConfig(Idefics2Config):  # type: ignore[misc]  # the library has no types
    """The config of a model with an architecture that transformers has under another name."""

    model_type = "kite"


class KiteForConditionalGeneration(Idefics2ForConditionalGeneration):  # type: ignore[misc]  # the same
    """The model of that architecture."""

    config_class = KiteConfig


class Kite(Idefics2):
    """Makes its prompts and tensors, in the ways of Idefics2."""


ROW = FamilySpec(
    name="kite",
    title="Kite",
    runner=f"{__name__}:Kite",
    classes=LibraryClasses(
        config=f"{__name__}:KiteConfig",
        model=f"{__name__}:KiteForConditionalGeneration",
        image_processor=(f"{IDEFICS2}.image_processing_pil_idefics2:Idefics2ImageProcessorPil"),
        processor=f"{IDEFICS2}.processing_idefics2:Idefics2Processor",
    ),
    prompt="template",
    geometry=Geometry(
        vision_defaults={
            "image_size": 224,
            "patch_size": 32,
            "intermediate_size": 3072,
            "num_attention_heads": 12,
        },
        count_tiles=quarters_and_whole,
        count_tile_tokens=perceiver_latents,
        text_model="mistral",
        splits_by_default=False,
    ),
    unquantized=("model.vision_model", "lm_head"),
    patch_modules=("model.vision_model",),
    rms_norms=("MistralRMSNorm", "Idefics2RMSNorm"),
    needs_legacy_tokenizer=True,
    float16_caution="no kite has flown in float16",
)
