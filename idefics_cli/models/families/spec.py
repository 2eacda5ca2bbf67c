"""The table of model families: all that the rest of the package knows about each, without torch.

To add a family, write a module in this folder and a row of `FAMILIES`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Literal, TypeAlias

from idefics_cli.core.conversation.marks import PICTURE_MARK
from idefics_cli.models.families.geometry import (
    Edges,
    Geometry,
    between_edges,
    cut_to_edge,
    grid_and_whole,
    multiples_of_tile,
    one_tile,
    one_token,
    perceiver_latents,
    quarters_and_whole,
    scale_to_edge,
    shuffled_patches,
)

PromptKind: TypeAlias = Literal["template", "interleaved"]
"""How transformers' processor takes a prompt: "template" is a text from a chat template with its
pictures in a separate list, "interleaved" is one list of texts and pictures."""

PartName: TypeAlias = Literal["text", "connector", "vision"]
"""A part of a model that can be trained: the text model with its cross attention and its head, what
lies between vision and text, or the vision tower."""

IMAGE_TOKEN = PICTURE_MARK
"""The token that stands for a picture in a prompt. In a raw prompt, the user writes it."""
FAKE_TOKEN = "<fake_token_around_image>"
END_OF_UTTERANCE = "<end_of_utterance>"
"""The token that ends each turn of a conversation."""


@dataclass(frozen=True, slots=True)
class Shape:
    """The numbers of an architecture from which its memory follows; see `planning/memory.py`.

    Attributes:
        hidden: Width of the text model.
        intermediate: Width of the feed-forward layers of the text model.
        layers: Number of layers of the text model.
        heads: Number of query heads of a layer.
        kv_heads: Number of key and value heads of a layer.
        head_dim: Width of a head.
        patches: Largest number of patches of one tile.
        vision_heads: Number of heads of a layer of the vision model.
        widest: Width of the widest layer through which single patches pass.
        tiles: Largest number of tiles of a split picture; 1 if the family cannot split.
        tile_tokens: Number of prompt tokens of one tile.
        cross_layers: Number of layers with cross attention to the pictures (IDEFICS-1).
        cross_inputs: Width of the image features to which these layers attend.
        edges: The lengths to which pictures can be scaled; None if there is only one.
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
    edges: Edges | None = None

    def at_edge(self, edge: int) -> Shape:
        """Return the shape of the model if the longer side of a picture is scaled to *edge*."""
        if self.edges is None or edge == self.edges.usual:
            return self
        if self.edges.tile is None:
            return replace(self, patches=max(1, edge // self.edges.patch) ** 2)
        return replace(self, tiles=math.ceil(edge / self.edges.tile) ** 2 + 1)

    def picture_tiles(self, edge: int, *, splitting: bool, ratio: float = 4 / 3) -> int:
        """Return the number of tiles of a picture.

        Args:
            edge: Length in pixels to which its longer side is scaled.
            splitting: Whether it is cut into tiles.
            ratio: Its longer side divided by its shorter side.
        """
        if not splitting or self.edges is None or self.edges.tile is None:
            return self.tiles if splitting else 1
        tile = self.edges.tile
        tiles = math.ceil(edge / tile) * math.ceil(int(edge / ratio) / tile)
        return tiles + 1 if tiles > 1 else 1


@dataclass(frozen=True, slots=True)
class LibraryClasses:
    """The classes of transformers that run a family, each as "module:Class".

    The class of the tokenizer is not here, because it differs between checkpoints of a family.
    `AutoTokenizer` reads it from their files.
    """

    config: str
    model: str
    image_processor: str
    processor: str


@dataclass(frozen=True, slots=True)
class TrainablePart:
    """One part of a model that can be trained.

    Attributes:
        layers: Regular expression for the full names of the linear layers that get LoRA matrices.
            It leaves out heads: a LoRA on a head that shares its weights with the embedding is lost
            when it is merged (peft #2777), and the head of IDEFICS-1 has a second table.
        weights: Full names of the modules that hold all weights of the part.
    """

    layers: str
    weights: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class FamilySpec:
    """One model family.

    Attributes:
        name: The `model_type` in the configs of the family.
        title: The name of the family in messages.
        runner: Our subclass of `Family`, as "module:Class".
        classes: Classes of transformers.
        prompt: How transformers' processor takes a prompt.
        geometry: The rules that compute the sizes of a model from its configuration files.
        unquantized: Full names of the modules that quantization leaves in the model's dtype.
        patch_modules: Full names of the modules that compute all patches of a picture, which are
            hundreds of rows at once.
        rms_norms: Names of the classes of RMS norms in the models of the family.
        stop_tokens: Tokens that end every reply.
        turn_end: Token that ends a turn of a conversation. It ends the replies of models that chat.
        text_path: Full name of the text model if it has Llama's structure; None for another.
        text_path: Full name of the text model, if it has the structure of Llama; None for another.
        needs_legacy_tokenizer: Whether tokenizers of the family need the flag `legacy`, which keeps
            the word mark `▁` after special tokens; see `loading/processors.py`.
        takes_videos: Whether the runner is a `VideoFamily`.
        sees_last_only: Whether a text in the prompt attends only to the last picture before it.
        supports_flash: `_supports_flash_attn` of transformers' model class.
        flash_caution: A known weakness of flash attention in this family, as the rest of a sentence
            that begins with the name of the attention.
        float16_caution: Why float16 may give wrong replies.
        float16_caution_parameters: *float16_caution* holds for models with at least this many
            weights.
        float32_modules: Full names of the modules that leave the range of float16.
        float32_parameters: Number of their weights, divided by the squared width of the text model.
        parts: The parts that can be trained.
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
    text_path: str | None = None
    needs_legacy_tokenizer: bool = False
    takes_videos: bool = False
    sees_last_only: bool = False
    supports_flash: bool = True
    flash_caution: str | None = None
    float16_caution: str | None = None
    float16_caution_parameters: int = 0
    float32_modules: tuple[str, ...] = ()
    float32_parameters: float = 0
    parts: Mapping[PartName, TrainablePart] = field(default_factory=dict)


# These are full names, because transformers matches from the start of a module's full name. The
# vision tower stays unquantized, because its widths (1152, 4304) crash bitsandbytes' packed CPU
# kernels. The connector stays unquantized, because rounding it costs quality; the authors' AWQ
# checkpoints leave it out too. lm_head is here, because our list replaces that of transformers,
# which contains it.
_UNQUANTIZED = ("model.vision_model", "model.connector", "lm_head")
_PATCH_MODULES = ("model.vision_model", "model.connector.modality_projection")
_TEXT_NORMS = ("LlamaRMSNorm", "MistralRMSNorm")

# Names of the linear layers: `_TEXT_LAYER` for Llama and Mistral, `_VISION` for SigLIP and CLIP.
_TEXT_LAYER = r"(self_attn\.(q|k|v|o)|mlp\.(gate|up|down))_proj"
_VISION = TrainablePart(
    r"model\.vision_model\.encoder\.layers\.\d+\.(self_attn\.(q|k|v|out)_proj|mlp\.fc[12])",
    ("model.vision_model",),
)
_TEXT = TrainablePart(
    rf"model\.text_model\.layers\.\d+\.{_TEXT_LAYER}", ("model.text_model", "lm_head")
)

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
    parts=MappingProxyType(
        {
            "text": TrainablePart(
                rf"model\.(layers\.\d+\.{_TEXT_LAYER}|gated_cross_attn_layers\.\d+"
                r"\.(cross_attn\.(q|k|v|o)|mlp\.(gate|up|down))_proj)",
                (
                    "model.embed_tokens",
                    "model.layers",
                    "model.gated_cross_attn_layers",
                    "model.norm",
                    "lm_head",
                ),
            ),
            "connector": TrainablePart(
                r"model\.perceiver_resampler\.blocks\.\d+"
                r"\.(0\.(q|k|v|output)_proj|1\.(fc|c_proj))",
                ("model.perceiver_resampler",),
            ),
            "vision": _VISION,
        }
    ),
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
        scaled_edges=between_edges,
        # Every patch is projected to the width of the text model before it is resampled.
        projects_patches=True,
    ),
    unquantized=_UNQUANTIZED,
    patch_modules=_PATCH_MODULES,
    rms_norms=(*_TEXT_NORMS, "Idefics2RMSNorm"),
    text_path="model.text_model",
    needs_legacy_tokenizer=True,
    flash_caution=(
        "in Idefics2's perceiver once gave answers unrelated to the picture (transformers 4.41 to "
        "4.43) and is unproven here: compare with `--attention sdpa`"
    ),
    float16_caution="Idefics2's connector can leave the range of float16",
    float32_modules=("model.connector",),
    # The connector of idefics2-8b has 743 million parameters, and its text model is 4,096 wide:
    # 743e6 / 4096**2 = 44.3.
    float32_parameters=44.3,
    parts=MappingProxyType(
        {
            "text": _TEXT,
            "connector": TrainablePart(
                r"model\.connector\.(modality_projection\.(gate|up|down)_proj"
                rf"|perceiver_resampler\.layers\.\d+\.{_TEXT_LAYER})",
                ("model.connector",),
            ),
            "vision": _VISION,
        }
    ),
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
    scaled_edges=multiples_of_tile,
)
_IDEFICS3_PARTS: Mapping[PartName, TrainablePart] = MappingProxyType(
    {
        "text": _TEXT,
        "connector": TrainablePart(
            r"model\.connector\.modality_projection\.proj", ("model.connector",)
        ),
        "vision": _VISION,
    }
)
# Idefics3 is built on Llama 3, and may also end a turn with one of the tokens of Llama 3.
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
    text_path="model.text_model",
    parts=_IDEFICS3_PARTS,
)

_SMOLVLM = FamilySpec(
    name="smolvlm",
    title="SmolVLM2",
    runner="idefics_cli.models.families.smolvlm:SmolVLM",
    classes=LibraryClasses(
        "transformers.models.smolvlm.configuration_smolvlm:SmolVLMConfig",
        "transformers.models.smolvlm.modeling_smolvlm:SmolVLMForConditionalGeneration",
        "transformers.models.smolvlm.image_processing_pil_smolvlm:SmolVLMImageProcessorPil",
        # For pictures, this processor gives the same ids and pixels as SmolVLM's own processor,
        # which also needs torchvision and num2words for videos. `families/videos.py` needs neither.
        "transformers.models.idefics3.processing_idefics3:Idefics3Processor",
    ),
    prompt="template",
    geometry=_IDEFICS3_GEOMETRY,
    unquantized=_UNQUANTIZED,
    patch_modules=_PATCH_MODULES,
    rms_norms=_TEXT_NORMS,
    stop_tokens=_LLAMA3_ENDS,
    text_path="model.text_model",
    takes_videos=True,
    parts=_IDEFICS3_PARTS,
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
