"""What a run writes for its user: the adapter in PEFT's format, or a whole checkpoint."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, cast

from safetensors.torch import save
from torch import nn

from idefics_cli.core.files import cannot_write
from idefics_cli.models.families.spec import FamilySpec
from idefics_cli.models.hub.adapters import CONFIG, WEIGHTS
from idefics_cli.models.loading.merging import write_checkpoint
from idefics_cli.training.targets import LoraChoice, adapter_tensors, layer_pattern, lora_config
from idefics_cli.training.tuning.output import OutputFolder

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CONFIG_LAST = "config.json"


def write_adapter(
    output: OutputFolder, model: nn.Module, family: FamilySpec, choice: LoraChoice, *, base: str
) -> None:
    """Write the LoRA matrices of *model*; PEFT, transformers and `--adapter` load them.

    Args:
        output: The folder.
        model: The model, after `insert_lora`.
        family: The family of the model.
        choice: The form of the adapter.
        base: Hub id or path of the model.

    Raises:
        IdeficsError: If a file cannot be written. The former weights stay.
    """
    config = lora_config(layer_pattern(family, choice.parts), choice, base=base)
    config.inference_mode = True
    with tempfile.TemporaryDirectory() as folder:
        config.save_pretrained(folder)
        output.write(CONFIG, Path(folder, CONFIG).read_bytes())
    output.write(WEIGHTS, save(adapter_tensors(model), {"format": "pt"}))


def write_model(output: OutputFolder, model: nn.Module, source: Path) -> None:
    """Write the whole *model* as a checkpoint that `-m` and transformers load.

    Args:
        output: The folder.
        model: The model.
        source: Folder of the model from which it was made, for the files of its processor.

    Raises:
        IdeficsError: If a file cannot be written.
    """
    partial = output.path / ".partial-model"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        write_checkpoint(cast("PreTrainedModel", model), source, partial)
        # config.json comes last. Without it, a folder with weights is not taken for a model, so an
        # interruption leaves no broken model.
        for name in sorted(os.listdir(partial), key=lambda name: name == _CONFIG_LAST):
            os.replace(partial / name, output.path / name)
    except OSError as error:
        raise cannot_write(output.path, error) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
