"""The loader: a `LoadSpec` becomes a model with its processor and its family."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import transformers
from torch import Tensor
from transformers.utils import logging as library_logging

from idefics_cli.core.errors import ModelError
from idefics_cli.core.types import LoadSpec, PictureDetail, Progress
from idefics_cli.hardware.machine import Machine, probe_processor
from idefics_cli.models.families.base import Family, family_class
from idefics_cli.models.families.classes import config_class
from idefics_cli.models.families.detail import with_detail
from idefics_cli.models.families.geometry import Json, section
from idefics_cli.models.families.protocols import Config, Model, Processor
from idefics_cli.models.families.spec import find_family
from idefics_cli.models.families.videos import VideoFamily
from idefics_cli.models.hub import download, facts
from idefics_cli.models.hub.cache import cached_folder
from idefics_cli.models.hub.checkpoint import family_of, read_config
from idefics_cli.models.hub.files import read_json
from idefics_cli.models.hub.registry import DEMO
from idefics_cli.models.hub.weights import tensor_names
from idefics_cli.models.kernels.text_step.step import TextStep
from idefics_cli.models.loading.device_check import check_devices
from idefics_cli.models.loading.errors import library_errors
from idefics_cli.models.loading.family_check import check_family
from idefics_cli.models.loading.layers import ChosenKernels
from idefics_cli.models.loading.processors import gives_ids_of_file, load_processor
from idefics_cli.models.loading.text_step import step_of
from idefics_cli.models.loading.video_settings import video_settings
from idefics_cli.models.loading.weights import (
    WORTH_KEEPING_BYTES,
    Source,
    load_weights,
    store_quantized,
)

_TOKENIZER_HINT = (
    "tokenizer.json and tokenizer_config.json do not fit together: copy both from one checkpoint"
    if (5, 17) <= tuple(map(int, transformers.__version__.split(".")[:2])) < (5, 25)
    else "this version of transformers reads it wrongly; install a tested one: "
    "pip install 'transformers>=5.17,<5.25'"
)


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that is ready to answer.

    Attributes:
        model: The model, in eval mode, on its device or devices.
        family: Makes the inputs of the model, with the processor of the checkpoint.
        folder: Folder with the files of the model.
        revision: Commit of the Hub repository; None for a local folder.
        context_tokens: Largest number of tokens, prompt and reply together.
        vocabulary: Number of rows of the embedding.
        vision_pixels: Maximum number of pixels in one forward of the vision tower, by the plan;
            None if the plan leaves it to the engine.
        uses_graphs: Whether the plan allows CUDA graphs.
        text_step: Runs the newest tokens through the text model; None if torch runs its layers
            one by one.
    """

    model: Model
    family: Family
    folder: Path
    revision: str | None
    context_tokens: int
    vocabulary: int
    vision_pixels: int | None = None
    uses_graphs: bool = True
    text_step: TextStep | None = None


def load(
    spec: LoadSpec,
    *,
    report: Progress | None = None,
    machine: Machine | None = None,
    worth_keeping_bytes: int = WORTH_KEEPING_BYTES,
) -> Loaded:
    """Load the model of *spec*. The weights are mapped from the files, not copied.

    Args:
        spec: The model, and all choices for it.
        report: Called with the phase of loading.
        machine: This machine; None probes it.
        worth_keeping_bytes: Weights quantized from files of at least this many bytes are kept.

    Raises:
        ModelError: If the model is not there or broken, or a kernel of the plan cannot run here.
        PlanError: If this computer lacks a device of the plan, or the package of its attention.
        MemoryLimitError: If it does not fit.
    """
    say, kernels = report or (lambda phase, share: None), _checked_kernels(spec, machine)
    folder, revision = _find(spec, say)
    with quiet_library(), library_errors(spec):
        config = load_config(folder)
        say("loading the processor", None)
        family = load_family(folder, spec, config)
        say("loading the weights", None)
        source = Source(folder, config, spec, kernels)
        model = load_weights(source, report=say, worth_keeping_bytes=worth_keeping_bytes)
        return Loaded(
            model=model,
            family=family,
            folder=folder,
            revision=revision,
            context_tokens=config.get_text_config().max_position_embeddings,
            vocabulary=_rows(model),
            vision_pixels=_vision_pixels(spec, config),
            uses_graphs=spec.uses_graphs,
            text_step=step_of(model, find_family(spec.family), kernels),
        )


def open_family(spec: LoadSpec, *, report: Progress | None = None) -> tuple[Family, Path]:
    """Return the family of a model, without its weights, and the folder of its files.

    Args:
        spec: The model, and all choices for it.
        report: Called with the phase of loading.

    Raises:
        ModelError: If the model is not there, or its processor is broken.
    """
    folder, _ = _find(spec, report or (lambda phase, share: None))
    with quiet_library(), library_errors(spec):
        return load_family(folder, spec, load_config(folder)), folder


def keep_quantized(
    spec: LoadSpec, *, report: Progress | None = None, machine: Machine | None = None
) -> Path:
    """Quantize the model of *spec*, unless this was done before; return the folder of the weights.

    Args:
        spec: The model, and all choices for it.
        report: Called with the phase of loading.
        machine: This machine; None probes it.

    Raises:
        ModelError: If the model is not there or broken, or the weights cannot be kept.
        MemoryLimitError: If it does not fit.
    """
    say = report or (lambda phase, share: None)
    kernels = ChosenKernels(spec.kernels, machine or probe_processor(), device=spec.device)
    folder, _ = _find(spec, say)
    with quiet_library(), library_errors(spec):
        source = Source(folder, load_config(folder), spec, kernels)
        return store_quantized(source, report=say)


def load_config(folder: Path) -> Config:
    """Return the config of the checkpoint in *folder*, with the values that config.json leaves out.

    These are the values with which the model was trained, as far as they differ from the defaults
    of transformers.
    """
    raw = read_config(folder, folder.name)
    kind = family_of(raw, folder.name).name
    config = cast("Config", config_class(kind).from_pretrained(folder))
    family_class(kind).complete_config(config, raw)
    if _ties_in_text_only(raw) and "lm_head.weight" not in tensor_names(folder, folder.name):
        # transformers reads `tie_word_embeddings` from the settings of the whole model only. If it
        # is missing there, transformers fills the head, which is not in the files, with random
        # numbers.
        config.tie_word_embeddings = True
    return config


def _ties_in_text_only(raw: Json) -> bool:
    """Return whether only the settings of the text model say that head and embedding are one."""
    text = section(raw, "text_config")
    return text.get("tie_word_embeddings") is True and "tie_word_embeddings" not in raw


def load_family(folder: Path, spec: LoadSpec, config: Config) -> Family:
    """Load the processor in *folder*, and return the family of the model with it.

    Raises:
        ModelError: If the tokenizer does not give the ids on which the model was trained, or if
            prompts and pictures do not have the form that the model takes.
    """
    processor = load_processor(folder, config)
    detail = PictureDetail(spec.splitting, spec.longest_edge)
    processor.image_processor = with_detail(processor.image_processor, detail)
    check_tokenizer(processor, folder, name=spec.name or spec.repo)
    has_template = find_family(config.model_type).prompt == "template"
    if has_template and not spec.uses_template:
        processor.chat_template = None
    elif spec.chats and has_template and processor.chat_template is None:
        raise ModelError(
            f"`{spec.name or spec.repo}` has no chat template",
            hint="copy chat_template.jinja into its folder; `idefics models pull` fetches it "
            "again, `--raw` needs none",
        )
    family = family_class(config.model_type)(
        processor, config, chats=spec.chats, stop_ids=_generation_stop_ids(folder)
    )
    if isinstance(family, VideoFamily):
        family.video_settings = video_settings(folder, processor)
    check_family(family, name=spec.name or spec.repo)
    return family


def check_tokenizer(processor: Processor, folder: Path, *, name: str) -> None:
    """Check that the loaded tokenizer gives the ids of the checkpoint's `tokenizer.json`.

    Raises:
        ModelError: If it gives other ids.
    """
    if not gives_ids_of_file(processor.tokenizer, folder):
        raise ModelError(
            f"the tokenizer of `{name}` gives other tokens than those the model was trained on",
            hint=_TOKENIZER_HINT,
        )


def _checked_kernels(spec: LoadSpec, machine: Machine | None) -> ChosenKernels:
    """Return the kernels of *spec*, after a check that its devices are here."""
    check_devices(spec)
    return ChosenKernels(spec.kernels, machine or probe_processor(), device=spec.device)


def _find(spec: LoadSpec, say: Progress) -> tuple[Path, str | None]:
    say("finding the model", None)
    if spec.repo == DEMO:
        return facts.demo_folder(), None
    local = Path(spec.repo)
    # A relative path is a Hub id, even if there is a folder of the same name.
    if local.is_absolute():
        return local, None
    folder = cached_folder(spec.repo, spec.revision)
    if folder is None:
        folder = download.pull(spec.repo, spec.revision, offline=spec.offline, report=say)
    # The name of a snapshot folder in the Hugging Face cache is its commit.
    return folder, folder.name


def _vision_pixels(spec: LoadSpec, config: Config) -> int | None:
    return spec.vision_tiles and spec.vision_tiles * config.vision_config.image_size**2


def _rows(model: Model) -> int:
    embedding = model.get_input_embeddings()
    # IDEFICS-1 keeps the rows of its image and chat tokens in a second table, so both are counted.
    extra = getattr(embedding, "num_additional_embeddings", 0)
    weight = embedding.weight
    if not isinstance(weight, Tensor):
        raise TypeError("the model's embedding has no weight")
    return int(getattr(embedding, "num_embeddings", weight.shape[0])) + int(extra)


def _generation_stop_ids(folder: Path) -> list[int]:
    stated = read_json(folder / "generation_config.json", folder.name).get("eos_token_id")
    listed = stated if isinstance(stated, list) else [] if stated is None else [stated]
    ids = [i for i in listed if type(i) is int and i >= 0]
    if len(ids) < len(listed):
        raise ModelError(
            f"generation_config.json of `{folder.name}` has an eos_token_id that is no token",
            hint="copy or download the file again",
        )
    return ids


@contextmanager
def quiet_library() -> Iterator[None]:
    """Keep progress bars and warnings of transformers off the terminal while a model loads."""
    bars = library_logging.is_progress_bar_enabled()
    level = library_logging.get_verbosity()
    noisy = os.environ.get("TRANSFORMERS_VERBOSITY") in ("debug", "info", "detail")
    if not noisy:
        library_logging.disable_progress_bar()
        library_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            if not noisy:
                warnings.simplefilter("ignore")
            yield
    finally:
        library_logging.set_verbosity(level)
        if bars:
            library_logging.enable_progress_bar()
