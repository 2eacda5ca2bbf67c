"""The registry: all models that are known by name, as plain data that is cheap to import.

The numbers of parameters were counted in the real architectures, made without weights. Shapes,
contexts, splitting defaults and dtypes come from the config files of the checkpoints on the Hub.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from idefics_cli.core.errors import ModelError, PromptError
from idefics_cli.core.types import DtypeName
from idefics_cli.models.families.geometry import Edges
from idefics_cli.models.families.spec import Shape

# The edges of each family, in the order of the fields of `Edges`: the usual, the smallest and the
# largest length of the longer side of a picture, and the edges of a tile and of a patch.
_980 = Edges(980, 378, 980, None, 14)
_364 = Edges(1456, 364, 2184, 364, 14)
_384 = Edges(1536, 384, 2304, 384, 14)
_512 = Edges(2048, 512, 3072, 512, 16)
# The numbers are in the order of the fields of `Shape`. The number of patches is
# (edge / patch size) squared.
_IDEFICS_9B = Shape(4096, 11_008, 32, 32, 32, 128, 16**2, 16, 5120, 1, 3, 8, 1280)
_IDEFICS_80B = Shape(8192, 22_016, 80, 64, 64, 128, 16**2, 16, 5120, 1, 3, 20, 1280)
_IDEFICS2_8B = Shape(4096, 14_336, 32, 32, 8, 128, 70**2, 16, 14_336, 5, 66, edges=_980)
_IDEFICS3_8B = Shape(4096, 14_336, 32, 32, 8, 128, 26**2, 16, 4304, 17, 171, edges=_364)
_SMOLVLM_256M = Shape(576, 1536, 30, 9, 3, 64, 32**2, 12, 3072, 17, 66, edges=_512)
_SMOLVLM_500M = Shape(960, 2560, 32, 15, 5, 64, 32**2, 12, 3072, 17, 66, edges=_512)
_SMOLVLM_2B = Shape(2048, 8192, 24, 32, 32, 64, 27**2, 16, 4304, 17, 83, edges=_384)
_DEMO = Shape(192, 512, 4, 6, 3, 32, 8**2, 6, 576, 5, 18, edges=Edges(112, 42, 112, None, 14))


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """What is known about a checkpoint before its files are read.

    Attributes:
        name: Alias that the user types after `-m`.
        repo: Hub id; for the built-in model, "demo".
        family: Key of `FAMILIES`.
        parameters: Number of weights.
        shape: The numbers from which the memory of the model is computed.
        stored: Dtype of the weights on the Hub, from which the size of the download is computed;
            None if unknown.
        context_tokens: Largest number of tokens of prompt and reply together.
        chats: Whether the model chats; False for base models, which only complete text.
        instruct: For a base model, the alias of the model that chats instead; else None.
        splitting: Whether the checkpoint splits pictures into tiles by default; None if it
            cannot.
        caption_prompt: Prompt of `idefics caption` if the user gives none. A base model continues
            this text.
        summary: One line for listings.
    """

    name: str
    repo: str
    family: str
    parameters: int
    shape: Shape
    stored: DtypeName | None
    context_tokens: int
    chats: bool
    instruct: str | None
    splitting: bool | None
    caption_prompt: str
    summary: str


DEMO = "demo"
_DESCRIBE = "Describe this image."
_BEGIN = "This is an image of"


def _idefics1(size: str, parameters: int, shape: Shape, *, instruct: bool) -> ModelSpec:
    name = f"idefics-{size}" + ("-instruct" if instruct else "")
    return ModelSpec(
        name=name,
        repo=f"HuggingFaceM4/{name}",
        family="idefics",
        parameters=parameters,
        shape=shape,
        stored="bfloat16",
        context_tokens=2048,
        chats=instruct,
        instruct=None if instruct else f"{name}-instruct",
        splitting=None,
        caption_prompt=_DESCRIBE if instruct else _BEGIN,
        summary="the first IDEFICS, of 2023",
    )


def _idefics2(
    name: str, parameters: int, *, chats: bool, splitting: bool, summary: str
) -> ModelSpec:
    return ModelSpec(
        name=name,
        repo=f"HuggingFaceM4/{name}",
        family="idefics2",
        parameters=parameters,
        shape=_IDEFICS2_8B,
        stored="float32",
        context_tokens=32_768,
        chats=chats,
        instruct=None if chats else "idefics2-8b",
        splitting=splitting,
        caption_prompt=_DESCRIBE if chats else "In this image,",
        summary=summary,
    )


def _smolvlm(
    name: str,
    repo: str,
    family: str,
    *,
    parameters: int,
    shape: Shape,
    stored: DtypeName | None,
    context: int,
    summary: str,
) -> ModelSpec:
    return ModelSpec(
        name=name,
        repo=f"HuggingFaceTB/{repo}",
        family=family,
        parameters=parameters,
        shape=shape,
        stored=stored,
        context_tokens=context,
        chats=True,
        instruct=None,
        splitting=True,
        caption_prompt=_DESCRIBE,
        summary=summary,
    )


_SPECS = (
    ModelSpec(
        name=DEMO,
        repo=DEMO,
        family="idefics2",
        parameters=4_781_376,
        shape=_DEMO,
        stored="bfloat16",
        context_tokens=1024,
        chats=True,
        instruct=None,
        splitting=False,
        caption_prompt=_DESCRIBE,
        summary="built in; knows drawn scenes only",
    ),
    _smolvlm(
        "smolvlm-256m",
        "SmolVLM-256M-Instruct",
        "idefics3",
        parameters=256_484_928,
        shape=_SMOLVLM_256M,
        stored="bfloat16",
        context=8192,
        summary="the smallest; fast without a GPU",
    ),
    _smolvlm(
        "smolvlm-500m",
        "SmolVLM-500M-Instruct",
        "idefics3",
        parameters=507_482_304,
        shape=_SMOLVLM_500M,
        stored="bfloat16",
        context=8192,
        summary="small; good without a GPU",
    ),
    _smolvlm(
        "smolvlm-2.2b",
        "SmolVLM-Instruct",
        "idefics3",
        parameters=2_246_272_880,
        shape=_SMOLVLM_2B,
        stored="bfloat16",
        context=16_384,
        summary="the best of the small ones",
    ),
    _smolvlm(
        "smolvlm2-256m",
        "SmolVLM2-256M-Video-Instruct",
        "smolvlm",
        parameters=256_484_928,
        shape=_SMOLVLM_256M,
        stored=None,
        context=8192,
        summary="takes videos, too",
    ),
    _smolvlm(
        "smolvlm2-500m",
        "SmolVLM2-500M-Video-Instruct",
        "smolvlm",
        parameters=507_482_304,
        shape=_SMOLVLM_500M,
        stored="float32",
        context=8192,
        summary="takes videos, too",
    ),
    _smolvlm(
        "smolvlm2-2.2b",
        "SmolVLM2-2.2B-Instruct",
        "smolvlm",
        parameters=2_246_784_880,
        shape=_SMOLVLM_2B,
        stored=None,
        context=16_384,
        summary="takes videos, too",
    ),
    _idefics2(
        "idefics2-8b",
        8_402_768_112,
        chats=True,
        splitting=True,
        summary="answers in few words; reads text in images",
    ),
    _idefics2(
        "idefics2-8b-chatty",
        8_402_768_112,
        chats=True,
        splitting=True,
        summary="tuned for long conversations",
    ),
    _idefics2(
        "idefics2-8b-base",
        8_402_759_920,
        chats=False,
        splitting=False,
        summary="completes prompts; for fine-tuning",
    ),
    ModelSpec(
        name="idefics3-8b",
        repo="HuggingFaceM4/Idefics3-8B-Llama3",
        family="idefics3",
        parameters=8_462_086_384,
        shape=_IDEFICS3_8B,
        stored="bfloat16",
        context_tokens=131_072,
        chats=True,
        instruct=None,
        splitting=True,
        caption_prompt=_DESCRIBE,
        summary="the strongest on documents and fine detail",
    ),
    _idefics1("9b", 8_929_679_632, _IDEFICS_9B, instruct=False),
    _idefics1("9b", 8_929_687_824, _IDEFICS_9B, instruct=True),
    _idefics1("80b", 79_967_843_624, _IDEFICS_80B, instruct=False),
    _idefics1("80b", 79_967_860_008, _IDEFICS_80B, instruct=True),
)

MODELS: Mapping[str, ModelSpec] = MappingProxyType({spec.name: spec for spec in _SPECS})
"""Every model known by name, in the order of listings."""


def find_model(name: str) -> ModelSpec | None:
    """Return the model with the alias or Hub id *name*, in upper or lower case, or None."""
    lowered = name.lower()
    for spec in MODELS.values():
        if lowered in (spec.name, spec.repo.lower()):
            return spec
    return None


def unknown_model(name: str) -> ModelError:
    """Return the error for a *name* that is no alias, no Hub id and no folder."""
    close = difflib.get_close_matches(name.lower(), MODELS, n=3, cutoff=0.5)
    return ModelError(
        f"unknown model `{name}`" if name.strip() else "the name of the model is empty",
        hint=f"did you mean {' or '.join(f'`{c}`' for c in close)}?"
        if close
        else "`idefics models` lists the names; a Hub id `owner/name` or a local folder works too",
    )


def default_caption_prompt(repo: str, *, chats: bool) -> str:
    """Return the prompt for a caption, or the first words of the caption for a base model.

    Args:
        repo: Hub id of the model, or a folder.
        chats: Whether the model chats; only used for models that are not in the registry.
    """
    known = find_model(repo)
    if known is not None:
        return known.caption_prompt
    return _DESCRIBE if chats else _BEGIN


def base_model_error(name: str) -> PromptError:
    """Return the error for a user who wants to chat with the base model *name*."""
    known = find_model(name)
    better = known.instruct if known else None
    return PromptError(
        f"`{name}` is a base model: it completes texts and does not chat",
        hint=(f"chat with `-m {better}`, or " if better else "")
        + "complete with `idefics ask --raw '<image>In this image,' -i PICTURE`",
    )
