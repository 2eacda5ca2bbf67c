"""Which classes of transformers a model type takes, imported when they are asked for.

The library's own tables (`AutoConfig` and the like) know these too, but choose processors that
want packages which nothing here needs (see `processors.py`), and take time to be imported.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, cast

from idefics_cli.core.imports import quick_imports
from idefics_cli.models.families.spec import _PATHS

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.image_processing_utils import BaseImageProcessor
    from transformers.processing_utils import ProcessorMixin


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
