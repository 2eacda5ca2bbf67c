"""Merging of an adapter into the files of its model, as a checkpoint that needs no adapter."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, cast

from safetensors import SafetensorError

from idefics_cli.core.adapters import LoraAdapter
from idefics_cli.core.errors import ModelError
from idefics_cli.core.files import check_new_folder
from idefics_cli.core.paths import display_path, free_bytes
from idefics_cli.core.types import LoadSpec, Progress
from idefics_cli.core.units import format_size
from idefics_cli.models.families.classes import model_class
from idefics_cli.models.hub.adapters import RECORD, REPLAY
from idefics_cli.models.loading.adapters import apply_adapter
from idefics_cli.models.loading.errors import library_errors
from idefics_cli.models.loading.loader import load_config, quiet_library

if TYPE_CHECKING:
    from transformers import PreTrainedModel

# These files are not copied: `save_pretrained` writes them itself, or they describe other weights.
_NOT_COPIED = ("config.json", "model.safetensors.index.json", "README.md", RECORD, REPLAY)
_COPIED = (".json", ".jinja", ".model", ".txt")
_SPARE_BYTES = 2**28


def write_merged(spec: LoadSpec, source: Path, target: Path, *, report: Progress) -> None:
    """Write a model with the adapter of *spec* in its weights to the new folder *target*.

    The weights keep their dtype. The folder appears complete or not at all.

    Args:
        spec: The model, with its adapter.
        source: Folder of the model.
        target: Folder that does not exist, or is empty.
        report: Called with the phase of the work.

    Raises:
        ValueError: If *spec* has no adapter.
        UsageError: If *target* is in use, or takes no files.
        ModelError: If the weights are quantized, the adapter does not fit, or the folder cannot be
            written.
    """
    if spec.adapter is None:
        raise ValueError("there is no adapter to merge")
    check_new_folder(target)
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _check_space(source, target.parent)
        with quiet_library(), library_errors(spec):
            report("reading the weights", None)
            model = _merged_model(source, spec.adapter)
            report("writing the weights", None)
            write_checkpoint(model, source, partial)
        if target.exists():
            target.rmdir()
        partial.rename(target)
    except OSError as error:
        raise ModelError(
            f"cannot write {display_path(target)}: {error.strerror or error}",
            hint="choose another folder with `-o`",
        ) from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _merged_model(source: Path, adapter: LoraAdapter) -> PreTrainedModel:
    config = load_config(source)
    if getattr(config, "quantization_config", None) is not None:
        raise ModelError(
            f"the weights in {display_path(source)} are quantized, and rounding would remove most "
            "of the adapter",
            hint="`--adapter` runs it beside them; or merge it into the unquantized model",
        )
    model = model_class(config.model_type).from_pretrained(
        source, config=config, dtype="auto", use_safetensors=True, trust_remote_code=False
    )
    apply_adapter(model, adapter)
    if model.get_output_embeddings().weight is not model.get_input_embeddings().weight:
        # The adapter has changed the head, so the head no longer shares its weights with the
        # embedding. Both must be saved.
        for each in (model.config, model.config.get_text_config()):
            each.tie_word_embeddings = False
    return cast("PreTrainedModel", model)


def write_checkpoint(model: PreTrainedModel, source: Path, folder: Path) -> None:
    """Write *model*, and the files of its processor in *source*, to *folder*.

    Raises:
        ModelError: If a file cannot be written.
    """
    try:
        model.save_pretrained(folder)
        for path in sorted(source.iterdir()):
            if path.suffix in _COPIED and path.name not in _NOT_COPIED and path.is_file():
                shutil.copyfile(path, folder / path.name)
    except (OSError, SafetensorError) as error:
        raise ModelError(
            f"cannot write {display_path(folder)}: {error}", hint="choose another folder with `-o`"
        ) from error


def _check_space(source: Path, folder: Path) -> None:
    needed = sum(path.stat().st_size for path in source.glob("*.safetensors"))
    free = free_bytes(folder)
    if free is not None and needed + _SPARE_BYTES > free:
        raise ModelError(
            f"the merged model needs {format_size(needed)} of disk space, and {format_size(free)} "
            f"are free in {display_path(folder)}",
            hint="free some space, or name a folder on another disk",
        )
