"""Which classes of transformers a model type takes, imported when they are asked for.

The library's own tables (`AutoConfig` and the like) know these too, but choose processors that
want packages which nothing here needs (see `processors.py`), and take time to be imported.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, cast

from idefics_cli.models.importing import quick_imports

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.image_processing_utils import BaseImageProcessor
    from transformers.processing_utils import ProcessorMixin


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


def config_class(model_type: str) -> type[PreTrainedConfig]:
    """Return the class of the config of *model_type*."""
    return cast("type[PreTrainedConfig]", _resolve(_PATHS[model_type].config))


def model_class(model_type: str) -> type[PreTrainedModel]:
    """Return the class of the models of *model_type*."""
    return cast("type[PreTrainedModel]", _resolve(_PATHS[model_type].model))


def processor_classes(model_type: str) -> tuple[type[BaseImageProcessor], type[ProcessorMixin]]:
    """Return the classes of the image processor (by PIL) and of the processor of *model_type*."""
    paths = _PATHS[model_type]
    return (
        cast("type[BaseImageProcessor]", _resolve(paths.image_processor)),
        cast("type[ProcessorMixin]", _resolve(paths.processor)),
    )


def _resolve(path: str) -> type:
    module, _, name = path.partition(":")
    with quick_imports():
        found = getattr(importlib.import_module(f"transformers.models.{module}"), name)
    return cast("type", found)
