"""One row for each model family: everything that the rest of the package knows of it, no torch.

A new family is a module in this folder and a row in `FAMILIES`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, TypeAlias

from idefics_cli.models.families.geometry import (
    Geometry,
    cut_to_edge,
    grid_and_whole,
    one_tile,
    one_token,
    perceiver_latents,
    quarters_and_whole,
    scale_to_edge,
    shuffled_patches,
)

PromptKind: TypeAlias = Literal["template", "interleaved"]
"""How the library's processor takes a prompt: a text made with a chat template and its pictures
apart, or a list of texts and pictures."""

IMAGE_TOKEN = "<image>"
"""Stands for a picture in a prompt, also where a user writes a raw prompt."""
FAKE_TOKEN = "<fake_token_around_image>"
END_OF_UTTERANCE = "<end_of_utterance>"
"""Ends each turn of a conversation."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers of an architecture from which its memory follows; see `planning/memory.py`.

    Attributes:
        hidden: Width of the text model.
        intermediate: Width of its feed-forward layers.
        layers: Number of its layers.
        heads: Query heads of a layer.
        kv_heads: Key and value heads of a layer.
        head_dim: Width of a head.
        patches: Patches of one image tile, at most.
        vision_heads: Heads of a layer of the vision model.
        widest: Width of the widest layer that computes single patches.
        tiles: Tiles of a large picture when it is split, at most; 1 without splitting.
        tile_tokens: Prompt tokens of one tile.
        cross_layers: Layers of cross attention to the pictures (IDEFICS-1).
        cross_inputs: Width of what these layers attend to.
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


@dataclass(frozen=True, slots=True)
class LibraryClasses:
    """The classes of the library that run a family, each as "module:Class".

    The class of the tokenizer is not here: it differs between checkpoints of a family, and
    `AutoTokenizer` reads it from their files.
    """

    config: str
    model: str
    image_processor: str
    processor: str


@dataclass(frozen=True, slots=True)
class FamilySpec:
    """One model family.

    Attributes:
        name: The `model_type` of its configs.
        title: Its name in messages.
        runner: Our subclass of `Family`, as "module:Class".
        classes: Classes of the library.
        prompt: How the library's processor takes a prompt.
        geometry: How the size of a model follows from its configuration files.
        unquantized: Full names of the modules that quantization leaves in the model's dtype.
        patch_modules: Full names of the modules that compute all patches of a picture, so
            hundreds of rows at once.
        rms_norms: Class names of the library's RMS norms in its models.
        stop_tokens: Tokens that end every reply.
        turn_end: Token that ends a turn of a conversation, and the replies of models that chat.
        needs_legacy_tokenizer: Whether its tokenizers need the flag `legacy`, which keeps the word
            mark `▁` after special tokens; checkpoints that transformers saved again lack it.
        sees_last_only: Whether a text in the prompt attends to the last picture before it only.
        supports_flash: `_supports_flash_attn` of the library's model class.
        flash_caution: What a user of flash attention should know, after the name of the
            attention.
        float16_caution: Why float16 may give wrong replies.
        float16_caution_parameters: Number of weights from which on *float16_caution* holds.
    """

    name: str
    title: str
    runner: str
    classes: LibraryClasses
    prompt: PromptKind
    geometry: Geometry
    unquantized: tuple[str, ...]
    patch_modules: tuple[str, ...]
    rms_norms: tuple[str, ...]
    stop_tokens: tuple[str, ...] = ()
    turn_end: str = END_OF_UTTERANCE
    needs_legacy_tokenizer: bool = False
    sees_last_only: bool = False
    supports_flash: bool = True
    flash_caution: str | None = None
    float16_caution: str | None = None
    float16_caution_parameters: int = 0


# transformers matches from the start of a module's full name, so "vision_model" would skip
# nothing, and a list of ours replaces its own, which holds lm_head. The widths of the vision
# tower (1152, 4304) crash the packed CPU kernels, and quantizing the modules between vision and
# text costs quality (the AWQ checkpoints of the authors spare them).
_UNQUANTIZED = ("model.vision_model", "model.connector", "lm_head")
_PATCH_MODULES = ("model.vision_model", "model.connector.modality_projection")
_TEXT_NORMS = ("LlamaRMSNorm", "MistralRMSNorm")

_IDEFICS1 = FamilySpec(
    name="idefics",
    title="IDEFICS-1",
    runner="idefics_cli.models.families.idefics1:Idefics1",
    classes=LibraryClasses(
        "transformers.models.idefics.configuration_idefics:IdeficsConfig",
        "transformers.models.idefics.modeling_idefics:IdeficsForVisionText2Text",
        "transformers.models.idefics.image_processing_pil_idefics:IdeficsImageProcessorPil",
        "transformers.models.idefics.processing_idefics:IdeficsProcessor",
    ),
    prompt="interleaved",
    geometry=Geometry(
        vision_defaults={
            "image_size": 224,
            "patch_size": 14,
            "intermediate_size": 5120,
            "num_attention_heads": 16,
        },
        count_tiles=one_tile,
        count_tile_tokens=one_token,
        text_section=None,
        text_model="idefics",
        splits_by_default=None,
        has_cross_attention=True,
        tile_settings=scale_to_edge,
    ),
    unquantized=("model.vision_model", "model.perceiver_resampler", "lm_head"),
    patch_modules=("model.vision_model",),
    rms_norms=("IdeficsRMSNorm",),
    needs_legacy_tokenizer=True,
    sees_last_only=True,
    supports_flash=False,
    float16_caution="IDEFICS-1 80B leaves the range of float16, which garbles answers",
    float16_caution_parameters=20_000_000_000,
)

_IDEFICS2 = FamilySpec(
    name="idefics2",
    title="Idefics2",
    runner="idefics_cli.models.families.idefics2:Idefics2",
    classes=LibraryClasses(
        "transformers.models.idefics2.configuration_idefics2:Idefics2Config",
        "transformers.models.idefics2.modeling_idefics2:Idefics2ForConditionalGeneration",
        "transformers.models.idefics2.image_processing_pil_idefics2:Idefics2ImageProcessorPil",
        "transformers.models.idefics2.processing_idefics2:Idefics2Processor",
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
        is_tile_limited=True,
        # Every patch is projected to the width of the text model before it is resampled.
        projects_patches=True,
    ),
    unquantized=_UNQUANTIZED,
    patch_modules=_PATCH_MODULES,
    rms_norms=(*_TEXT_NORMS, "Idefics2RMSNorm"),
    needs_legacy_tokenizer=True,
    flash_caution=(
        "in Idefics2's perceiver once gave answers unrelated to the picture (transformers 4.41 to "
        "4.43) and is unproven here: compare with `--attention sdpa`"
    ),
    float16_caution="Idefics2's connector can leave the range of float16",
)

_IDEFICS3_GEOMETRY = Geometry(
    vision_defaults={
        "image_size": 224,
        "patch_size": 32,
        "intermediate_size": 3072,
        "num_attention_heads": 16,
    },
    count_tiles=grid_and_whole,
    count_tile_tokens=shuffled_patches,
    tile_settings=cut_to_edge,
)
# Idefics3 is built on Llama 3, which may also end a turn with one of its own tokens.
_LLAMA3_ENDS = (END_OF_UTTERANCE, "<|eot_id|>", "<|end_of_text|>", "<|eom_id|>")

_IDEFICS3 = FamilySpec(
    name="idefics3",
    title="Idefics3",
    runner="idefics_cli.models.families.idefics3:Idefics3",
    classes=LibraryClasses(
        "transformers.models.idefics3.configuration_idefics3:Idefics3Config",
        "transformers.models.idefics3.modeling_idefics3:Idefics3ForConditionalGeneration",
        "transformers.models.idefics3.image_processing_pil_idefics3:Idefics3ImageProcessorPil",
        "transformers.models.idefics3.processing_idefics3:Idefics3Processor",
    ),
    prompt="template",
    geometry=_IDEFICS3_GEOMETRY,
    unquantized=_UNQUANTIZED,
    patch_modules=_PATCH_MODULES,
    rms_norms=_TEXT_NORMS,
    stop_tokens=_LLAMA3_ENDS,
)

_SMOLVLM = FamilySpec(
    name="smolvlm",
    title="SmolVLM2",
    runner="idefics_cli.models.families.idefics3:Idefics3",
    classes=LibraryClasses(
        "transformers.models.smolvlm.configuration_smolvlm:SmolVLMConfig",
        "transformers.models.smolvlm.modeling_smolvlm:SmolVLMForConditionalGeneration",
        "transformers.models.smolvlm.image_processing_pil_smolvlm:SmolVLMImageProcessorPil",
        # It gives the same ids and pixels as SmolVLM's own, without the half for videos.
        "transformers.models.idefics3.processing_idefics3:Idefics3Processor",
    ),
    prompt="template",
    geometry=_IDEFICS3_GEOMETRY,
    unquantized=_UNQUANTIZED,
    patch_modules=_PATCH_MODULES,
    rms_norms=_TEXT_NORMS,
    stop_tokens=_LLAMA3_ENDS,
)

FAMILIES: Mapping[str, FamilySpec] = MappingProxyType(
    {row.name: row for row in (_IDEFICS1, _IDEFICS2, _IDEFICS3, _SMOLVLM)}
)
"""Every family by the `model_type` of its configs."""


def find_family(name: str) -> FamilySpec:
    """Return the family whose configs have the `model_type` *name*.

    Raises:
        KeyError: If there is none.
    """
    return FAMILIES[name]
