"""Access to the classes that run a family; each is imported when it is asked for.

The tables of transformers (`AutoConfig` and the like) name these classes too. They are not used,
because they take time to import, and choose processors that need further packages (see
`loading/processors.py`).
"""

from __future__ import annotations

import importlib
import sys
from functools import partial
from typing import TYPE_CHECKING, cast

from idefics_cli.core.imports import import_transformers, quick_imports
from idefics_cli.core.threads import in_background
from idefics_cli.models.families.compiler_imports import without_compiler
from idefics_cli.models.families.spec import find_family

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel
    from transformers.image_processing_utils import BaseImageProcessor
    from transformers.processing_utils import ProcessorMixin

_BASES = (
    "transformers.modeling_utils",
    "transformers.generation.utils",
    "transformers.processing_utils",
)


def import_class(path: str) -> type:
    """Return the class that *path* names, as "module:Class"."""
    module, _, name = path.partition(":")
    if module not in sys.modules:
        # The import runs in its own thread, because an optional import that fails leaves a
        # traceback behind. In this thread, the traceback would keep the variables of all callers
        # alive, such as a model that is being loaded.
        in_background(partial(_import, module), name=f"importing {module}").result()
    return cast("type", getattr(sys.modules[module], name))


def _import(module: str) -> None:
    with quick_imports(), without_compiler():
        import_transformers()
        importlib.import_module(module)


def import_bases() -> None:
    """Import the modules on which the classes of all families depend."""
    for module in _BASES:
        _import(module)


def config_class(model_type: str) -> type[PreTrainedConfig]:
    """Return transformers' class for the config of *model_type*."""
    return cast("type[PreTrainedConfig]", import_class(find_family(model_type).classes.config))


def model_class(model_type: str) -> type[PreTrainedModel]:
    """Return transformers' class for the models of *model_type*."""
    return cast("type[PreTrainedModel]", import_class(find_family(model_type).classes.model))


def processor_classes(model_type: str) -> tuple[type[BaseImageProcessor], type[ProcessorMixin]]:
    """Return transformers' classes for the image processor, which uses PIL, and the processor."""
    classes = find_family(model_type).classes
    return (
        cast("type[BaseImageProcessor]", import_class(classes.image_processor)),
        cast("type[ProcessorMixin]", import_class(classes.processor)),
    )
